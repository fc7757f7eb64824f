"""How the student's training scales: with the number of posts, their length, the posts of a step, and processes.

    python -m benchmarks.scaling                   # about fifteen minutes of two cores that do nothing else
    python -m benchmarks.scaling --quick           # small sizes, to see that it runs
    python -m benchmarks.scaling --json FILE

Posts, pictures and rationales are generated, and the tiny student learns both tasks from them by the verb that a user
runs, `mulcot fit`, in a process of its own with one thread. All settings take turns, so that what a loaded machine
costs falls on all of them. Two processes share the posts of a step between them, each on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.data import Words, make_posts, mulcot, spread
from mulcot.prompts import get_prompt
from mulcot.types import Rationale, RationaleRecord


@dataclass(frozen=True)
class Setting:
    """One way to train."""

    posts: int = 1000
    """Posts of the training split."""
    words: Words = (5, 30)
    """Words of a post's text, at least and at most."""
    per_step: int = 16
    """Posts of an optimizer step."""
    processes: int = 1
    """Processes that share a step."""


USUAL: Final = Setting()
AXES: Final[dict[str, list[Setting]]] = {
    "posts": [replace(USUAL, posts=10**power) for power in (2, 3, 4, 5)],
    "words of a post": [replace(USUAL, words=(count, count)) for count in (10, 40, 160, 640)],
    "posts of a step": [replace(USUAL, per_step=count) for count in (4, 16, 64)],
    "processes": [replace(USUAL, per_step=64, processes=count) for count in (1, 2)],
}
QUICK: Final[dict[str, list[Setting]]] = {
    "posts": [replace(USUAL, posts=count) for count in (100, 300)],
    "processes": [replace(USUAL, posts=100, processes=count) for count in (1, 2)],
}


def prepare(folder: Path, setting: Setting) -> Path:
    """The posts of a setting, their conversion and their rationales, made once."""
    made = folder / f"{setting.posts}-{setting.words[0]}-{setting.words[1]}"
    if (made / "converted" / "dataset.json").exists():
        return made
    make_posts(made, setting.posts, setting.words)
    if not (folder / "models").exists():
        mulcot("tiny-models", "--out", folder / "models", "--corpus", json.dumps([str(made / "train.jsonl")]))
    write_rationales(made)
    files = json.dumps({split: str(made / f"{split}.jsonl") for split in ("train", "val")})
    mulcot(
        "data", "convert", "--posts", "Table", "--posts.files", files, "--posts.image_root", made / "images",
        "--out", made / "converted", "--model", folder / "models" / "student",
    )  # fmt: skip
    return made


def write_rationales(folder: Path) -> None:
    """A rationale of about sixty words for every training post: its own words, drawn anew."""
    prompt = get_prompt("msc", "teacher_predict").hash
    draw = random.Random(1)
    with (folder / "train.jsonl").open() as posts, (folder / "rationales.jsonl").open("w") as file:
        for line in posts:
            post = json.loads(line)
            words = post["text"].split()
            fields = [" ".join(draw.choices(words, k=15)) for _ in range(4)]
            rationale = Rationale(*fields, prediction=post["label"])
            record = RationaleRecord(post["id"], rationale, "teacher-predicted", "generated", prompt)
            file.write(record.to_json() + "\n")


def train(folder: Path, setting: Setting, steps: int) -> dict[str, Any]:
    """Trains in one setting; gives back what the probe of benchmarks/data.py saw."""
    made, probe = prepare(folder, setting), folder / "probe.json"
    posts = json.dumps({"class_path": "Converted", "init_args": {"folder": str(made / "converted")}})
    callback = json.dumps([{"class_path": "benchmarks.data.Probe", "init_args": {"path": str(probe)}}])
    mulcot(
        "fit", "--config", "student.yaml", "--run_dir", folder, "--stage", "student", "--fresh",
        "--model.init_args.assistant=null", "--model.init_args.lambda_soft=0", "--losses.kl=null",
        "--data.init_args.soft_labels=null", "--data.init_args.references=null",
        "--data.init_args.rationales", json.dumps([str(made / "rationales.jsonl")]), "--data.init_args.posts", posts,
        "--data.init_args.posts_per_step", setting.per_step, "--data.init_args.length_pool", 16,
        "--data.init_args.picture_cache_mb", 0, "--trainer.callbacks", callback,
        "--trainer.max_epochs", ceil(steps * setting.per_step / setting.posts), "--trainer.limit_train_batches", steps,
        "--trainer.limit_val_batches", 1,
        "--trainer.accelerator", "cpu", "--trainer.devices", setting.processes,
        "--trainer.strategy", "ddp" if setting.processes > 1 else "auto",
        "--trainer.enable_progress_bar", "false", "--test_after_fit", "false",
        OMP_NUM_THREADS="1",
    )  # fmt: skip
    return json.loads(probe.read_text())


def measure(folder: Path, axes: dict[str, list[Setting]], repeats: int, steps: int) -> list[dict[str, Any]]:
    """Every setting of every axis, in turns."""
    settings = [(axis, setting) for axis, given in axes.items() for setting in given]
    for _, setting in settings:
        prepare(folder, setting)
    runs: list[list[dict[str, Any]]] = [[] for _ in settings]
    for _ in range(repeats):
        for (_, setting), found in zip(settings, runs, strict=True):
            found.append(train(folder, setting, steps))
    return [
        {
            "axis": axis,
            "value": value_of(axis, setting),
            "samples_per_second": [1000 * setting.per_step / run["step_ms"] for run in found],
            "start_seconds": [run["first"]["seconds"] for run in found],
            "peak_mib": [run["last"]["peak"] for run in found],
        }
        for (axis, setting), found in zip(settings, runs, strict=True)
    ]


def value_of(axis: str, setting: Setting) -> int:
    """What a setting has on an axis."""
    values = {
        "posts": setting.posts,
        "words of a post": setting.words[0],
        "posts of a step": setting.per_step,
        "processes": setting.processes,
    }
    return values[axis]


def show(rows: Sequence[dict[str, Any]], repeats: int) -> None:
    """The table."""
    table = Table(title=f"{repeats} runs each in turns, {os.cpu_count()} cores: median (lowest-highest)")
    for name in ("axis", "value", "samples/s", "of the first", "start to first step, s", "highest memory, MiB"):
        table.add_column(name, justify="left" if name == "axis" else "right")
    first: dict[str, float] = {}
    for row in rows:
        speed = median(row["samples_per_second"])
        start = first.setdefault(row["axis"], speed)
        table.add_row(
            row["axis"],
            f"{row['value']:,}",
            spread(row["samples_per_second"], "{:.1f}"),
            f"{speed / start:.2f}",
            spread(row["start_seconds"], "{:.1f}"),
            spread(row["peak_mib"], "{:.0f}"),
        )
    Console().print(table)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description="How training scales.")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each setting")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of a run")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--folder", type=Path, help="keeps what is generated here and uses it again")
    parser.add_argument("--json", type=Path, help="writes all numbers there")
    given = parser.parse_args()
    repeats, steps = (1, 8) if given.quick else (given.repeats, given.steps)
    with TemporaryDirectory() as temporary:
        rows = measure(given.folder or Path(temporary), QUICK if given.quick else AXES, repeats, steps)
    show(rows, repeats)
    if given.json:
        given.json.write_text(json.dumps({"repeats": repeats, "steps": steps, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
