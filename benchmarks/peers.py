"""mulcot beside TRL: the assistant's stage and the student's soft-label step, on equal work.

    pip install -e '.[benchmarks]'
    python -m benchmarks.peers --data_root twitter15              # val.json and Images/ inside; half an hour
    python -m benchmarks.peers --data_root twitter15 --profile    # where the time goes, ten minutes

Both sides train the same model under the same adapter on the same posts, each in a process of its own, in turns, with
equal threads, attention, optimizer, micro-batches and accumulation, in fp32 and without recomputation. A post is two
rows, its rationale and its classification. Every process trains on a micro-batch to warm up, then a whole epoch on a
new model, which is what is measured. That both learn the same response tokens is checked, on text alone that they
compute the same losses. Processor time is told beside the clock's, which a loaded machine lengthens.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from math import isclose
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.peers_arms import Job
from benchmarks.peers_posts import prepare
from benchmarks.presets import PRESETS


@dataclass(frozen=True)
class Arm:
    """One line of a table."""

    side: str
    """A key of `benchmarks.peers_arms.SIDES`."""
    overrides: tuple[str, ...] = ()
    """Further flags of `mulcot fit`."""


PARTS: Final[dict[str, dict[str, Arm]]] = {
    "assistant's stage, pictures and text": {
        "TRL SFTTrainer": Arm("stage of trl"),
        "TRL, head as on a GPU": Arm("stage of trl, compact"),
        "mulcot, paired rows": Arm("stage of mulcot", ("--data.init_args.layout", "paired")),
        "mulcot": Arm("stage of mulcot", ("--data.init_args.layout", "shared")),
    },
    "student's soft-label step, text alone": {
        "TRL GKDTrainer": Arm("step of trl"),
        "mulcot, online assistant": Arm("step of mulcot"),
    },
}
"""The first arm of each part is what the others are compared with."""
Runs = dict[str, list[dict[str, Any]]]
"""What every arm's processes found, in order."""


def measure(job: Job, arms: dict[str, Arm], repeats: int) -> Runs:
    """Runs the arms in turns.

    Args:
        job: What every arm does.
        arms: The arms.
        repeats: Processes of each.
    """
    runs: Runs = {name: [] for name in arms}
    for _ in range(repeats):
        for name, arm in arms.items():
            runs[name].append(run_process(replace(job, side=arm.side, overrides=list(arm.overrides))))
    check_equal(runs)
    return runs


def run_process(job: Job) -> dict[str, Any]:
    """What one process finds."""
    threads = str(job.threads)
    environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "benchmarks.peers_arms", json.dumps(asdict(job))]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{job.side} failed\n{done.stdout}\n{done.stderr}")
    return json.loads(Path(job.out).read_text())


def check_equal(runs: Runs) -> None:
    """Refuses a comparison of unequal work: other response tokens, or other losses where both are to be the same."""
    counts = {name: sorted({run["response_tokens"] for run in found}) for name, found in runs.items()}
    if len({tuple(count) for count in counts.values()}) > 1 or any(len(count) > 1 for count in counts.values()):
        raise SystemExit(f"the sides do not learn the same response tokens: {counts}")
    first, *others = ([run["losses"] for run in found] for found in runs.values())
    for other in others:
        for mine, theirs in zip(first[0], other[0], strict=True):
            if not isclose(mine, theirs, rel_tol=1e-4):
                raise SystemExit(f"the sides do not compute the same losses: {first[0]} and {other[0]}")


MEASURES: Final[dict[str, tuple[Callable[[dict[str, Any], int], float], str]]] = {
    "posts/s": (lambda run, posts: posts / run["seconds"], "{:.2f}"),
    "response tokens/s": (lambda run, posts: run["response_tokens"] / run["seconds"], "{:.0f}"),
    "processor seconds/post": (lambda run, posts: run["processor_seconds"] / posts, "{:.2f}"),
    "tokens/post": (lambda run, posts: run["real_tokens"] / posts, "{:.1f}"),
    "tokens/post with padding": (lambda run, posts: run["positions"] / posts, "{:.1f}"),
    "peak memory of the process, MiB": (lambda run, posts: run["peak_mib"], "{:.0f}"),
}
"""What is told of a run, and how it is written."""


def show(console: Console, title: str, runs: Runs, posts: int) -> None:
    """Prints the table of a part.

    Args:
        console: Where to.
        title: The part.
        runs: What its arms found.
        posts: Posts of a run.
    """
    shown = Table(title=f"{title}: median (lowest-highest)")
    for name in ("", *runs):
        shown.add_column(name, justify="right" if name else "left")
    for name, (value, form) in MEASURES.items():
        shown.add_row(name, *(spread([value(run, posts) for run in found], form) for found in runs.values()))
    reference = next(iter(runs.values()))
    for name, key in {"speed": "seconds", "speed by processor time": "processor_seconds"}.items():
        ratios = [[base[key] / run[key] for base, run in zip(reference, found, strict=True)] for found in runs.values()]
        shown.add_row(name, *(spread(each, "{:.2f}") for each in ratios), style="bold")
    console.print(shown)


def spread(values: Sequence[float], form: str) -> str:
    """A median with its range, where there is one."""
    low, middle, high = (form.format(value) for value in (min(values), median(values), max(values)))
    return middle if low == high else f"{middle} ({low}-{high})"


def show_profile(console: Console, title: str, found: dict[str, dict[str, Any]]) -> None:
    """Prints where the processor time of an optimizer step goes: seconds, divided as the profiler's clock was.

    Args:
        console: Where to.
        title: The part.
        found: What each arm found.
    """
    shown = Table(title=f"{title}: processor seconds of an optimizer step, profiled")
    for name in ("", *found):
        shown.add_column(name, justify="right" if name else "left")
    shares = {name: {part: value / sum(run["profile"].values()) for part, value in run["profile"].items()}
              for name, run in found.items()}  # fmt: skip
    for part in dict.fromkeys(part for of in shares.values() for part in of):
        cells = (
            f"{shares[name].get(part, 0.0) * run['processor_seconds']:.2f} ({shares[name].get(part, 0.0):.0%})"
            for name, run in found.items()
        )
        shown.add_row(part, *cells)
    shown.add_row("together", *(f"{run['processor_seconds']:.2f}" for run in found.values()), style="bold")
    console.print(shown)


def versions() -> dict[str, str]:
    """The packages that matter here.

    Raises:
        SystemExit: TRL is not installed.
    """
    try:
        return {name: version(name) for name in ("torch", "transformers", "peft", "lightning", "trl")}
    except PackageNotFoundError as error:
        raise SystemExit(f"{error.name} is not installed: pip install -e '.[benchmarks]'") from error


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", type=Path, required=True, help="Twitter-2015: val.json and Images/")
    parser.add_argument("--preset", choices=PRESETS, default="cpu", help="the sizes of the models")
    parser.add_argument("--layers", type=int, help="so many layers instead of the preset's, to see that it runs")
    parser.add_argument("--part", choices=("both", "stage", "step"), default="both", help="what is compared")
    parser.add_argument("--posts", type=int, default=64, help="posts of a run")
    parser.add_argument("--micro_posts", type=int, default=2, help="posts of a micro-batch: twice as many rows")
    parser.add_argument("--accumulate", type=int, default=4, help="micro-batches of an optimizer step")
    parser.add_argument("--threads", type=int, default=1, help="threads of each side")
    parser.add_argument("--attention", default="sdpa", help="transformers' attention implementation, on both sides")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each arm")
    parser.add_argument("--profile", action="store_true", help="profiles one optimizer step of each arm instead")
    parser.add_argument("--json", action="store_true", help="prints all numbers as JSON")
    given = parser.parse_args()
    settings = {name: value for name, value in vars(given).items() if name != "data_root"}
    result: dict[str, Any] = {"versions": versions(), "cores": os.cpu_count(), "settings": settings}
    console = Console(stderr=given.json)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        preset = PRESETS[given.preset]
        prepare(folder, given.data_root, preset.shrunk(given.layers) if given.layers else preset, given.posts)
        job = Job(
            str(folder), str(folder / "found.json"), "", given.micro_posts, given.accumulate, given.threads,
            given.attention, profile=given.profile,
        )  # fmt: skip
        for title, arms in PARTS.items():
            if given.part != "both" and given.part not in title:
                continue
            runs = result[title] = measure(job, arms, 1 if given.profile else given.repeats)
            if given.profile:
                show_profile(console, title, {name: found[0] for name, found in runs.items()})
            else:
                show(console, title, runs, given.posts)
    if given.json:
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
