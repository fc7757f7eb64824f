"""What a large table of posts costs: converting it, starting to train on it, waiting for it.

    python -m benchmarks.data                      # a million posts, about 15 minutes on two cores
    python -m benchmarks.data --posts 100000
    python -m benchmarks.data --folder DIR         # keeps posts and conversion in DIR and uses them again

Everything is generated. Both tables are trained on by the verb that a user runs, `mulcot fit`, in a process of its own,
in turns, so that what a loaded machine costs falls on both.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from lightning import Callback
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data.dataloader import _BaseDataLoaderIter

from mulcot.rows import RowEncoder
from mulcot.types import DEFAULT_LABELS

PICTURES = 1000
Words = tuple[int, int]
MIB = 2**20


class Probe(Callback):
    """Notes in a process that trains when its first step ended, what memory it took, and how long it waited.

    Args:
        path: where the numbers go, as JSON.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.began = time.perf_counter()
        self.waited: list[float] = []
        self.steps: list[float] = []
        self.first: dict[str, float] = {}
        self.tokenised = [0, 0]
        self.epoch = 0
        plain_ids, following = RowEncoder.plain_ids, _BaseDataLoaderIter.__next__

        def counted(encoder: RowEncoder, text: str) -> list[int]:
            self.tokenised[min(self.epoch, 1)] += 1
            return plain_ids(encoder, text)

        def timed(loader: Any) -> Any:
            asked = time.perf_counter()
            try:
                return following(loader)
            finally:
                self.waited.append(time.perf_counter() - asked)

        RowEncoder.plain_ids = counted
        _BaseDataLoaderIter.__next__ = timed

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """An epoch begins: its number is noted."""
        self.epoch = trainer.current_epoch

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A step is done: from one step's end to the next is what a step takes, waiting included."""
        if not self.first:
            self.first = {"seconds": time.time() - float(os.environ["STARTED"]), **memory()}
            self.waited.clear()  # the first batch waits for the worker to start, which is part of the start
        else:
            self.steps.append(time.perf_counter() - self.began)
        self.began = time.perf_counter()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Writes the numbers, before anything is validated."""
        found = {
            "first": self.first,
            "last": memory(),
            "waiting": sum(self.waited[: len(self.steps)]) / sum(self.steps),
            "step_ms": 1000 * median(self.steps),
            "steps": len(self.steps),
            "tokenised_in_first_epoch": self.tokenised[0],
            "tokenised_later": self.tokenised[1],
        }
        self.path.write_text(json.dumps(found))


def memory() -> dict[str, float]:
    """This process's memory in MiB: private (not shared with a file), resident, and the highest resident so far."""
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    kib = {line.split(":")[0]: int(line.split()[1]) for line in rollup}
    return {
        "private": kib["Anonymous"] / 1024,
        "resident": kib["Rss"] / 1024,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def mulcot(*args: object, **environment: str) -> float:
    """Runs a verb as a user does; gives back its seconds."""
    started = time.time()
    command = [sys.executable, "-m", "mulcot", *map(str, args)]
    done = subprocess.run(
        command, env=os.environ | environment | {"STARTED": str(started)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return time.time() - started


def make_posts(folder: Path, posts: int, words_of_post: Words = (5, 30)) -> None:
    """Writes a table of posts: random words of a skewed vocabulary, a thousand pictures."""
    draw = random.Random(0)
    (folder / "images").mkdir(parents=True)
    for number in range(PICTURES):
        colour = tuple(draw.randrange(256) for _ in range(3))
        picture = Image.effect_noise((draw.randrange(40, 84), draw.randrange(40, 84)), 64).convert("RGB")
        Image.blend(picture, Image.new("RGB", picture.size, colour), 0.7).save(folder / "images" / f"{number}.jpg")
    words = [f"{draw.choice('bdfgklmnprst')}{draw.choice('aeiou')}{number:x}" for number in range(5000)]
    weights = [1 / (rank + 2) for rank in range(len(words))]
    stream = iter(())
    for split, count in (("train", posts), ("val", 200)):
        with (folder / f"{split}.jsonl").open("w") as file:
            for number in range(count):
                length = draw.randint(*words_of_post)
                text = []
                for _ in range(length):
                    word = next(stream, None)
                    if word is None:
                        stream = iter(draw.choices(words, weights, k=100_000))
                        word = next(stream)
                    text.append(word)
                row = {
                    "id": f"{split}-{number}",
                    "text": " ".join(text),
                    "image": f"{draw.randrange(PICTURES)}.jpg",
                    "label": draw.choice(DEFAULT_LABELS),
                }
                file.write(json.dumps(row) + "\n")


def prepare(folder: Path, posts: int) -> float | None:
    """Posts and their conversion in `folder`; gives back the seconds of the conversion, None when it was there."""
    if not (folder / "train.jsonl").exists():
        make_posts(folder, posts)
    if (folder / "converted" / "dataset.json").exists():
        return None
    files = json.dumps({split: str(folder / f"{split}.jsonl") for split in ("train", "val")})
    return mulcot(
        "data", "convert", "--posts", "Table", "--posts.files", files, "--posts.image_root", folder / "images",
        "--out", folder / "converted", "--model", folder.parent / "models" / "student",
    )  # fmt: skip


def train(
    folder: Path, probe: Path, workers: int, steps: int, epochs: int = 1, converted: bool = True
) -> dict[str, Any]:
    """Trains the tiny student for some steps on a table, converted or as it is."""
    source = {"class_path": "Converted", "init_args": {"folder": str(folder / "converted")}}
    if not converted:
        files = {split: str(folder / f"{split}.jsonl") for split in ("train", "val")}
        source = {"class_path": "Table", "init_args": {"files": files, "image_root": str(folder / "images")}}
    posts = json.dumps(source)
    callback = json.dumps([{"class_path": "benchmarks.data.Probe", "init_args": {"path": str(probe)}}])
    mulcot(
        "fit", "--config", "student.yaml", "--config", "experiment/labels_only.yaml", "--run_dir", folder.parent,
        "--stage", f"stage-{folder.name}", "--fresh", "--data.init_args.posts", posts, "--trainer.callbacks", callback,
        "--trainer.max_epochs", epochs, "--trainer.limit_train_batches", steps, "--trainer.limit_val_batches", 1,
        "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--test_after_fit", "false",
        "--data.init_args.num_workers", workers, "--data.init_args.picture_cache_mb", 0,
        OMP_NUM_THREADS="1",
    )  # fmt: skip
    return json.loads(probe.read_text())


def measure(folder: Path, posts: int, small: int, repeats: int, steps: int) -> dict[str, Any]:
    """All numbers."""
    corpus = folder / "large" / "val.jsonl"
    if not corpus.exists():
        make_posts(folder / "large", posts)
    if not (folder / "models").exists():
        mulcot("tiny-models", "--out", folder / "models", "--corpus", json.dumps([str(corpus)]))
    seconds = prepare(folder / "large", posts)
    prepare(folder / "small", small)
    runs: dict[str, list[dict[str, Any]]] = {"large": [], "small": []}
    for _ in range(repeats):
        for name, found in runs.items():
            found.append(train(folder / name, folder / "probe.json", workers=1, steps=steps))
    again = train(folder / "small", folder / "probe.json", workers=0, steps=20, epochs=2, converted=False)
    return {
        "posts": posts,
        "small": small,
        "repeats": repeats,
        "cores": os.cpu_count(),
        "convert_seconds": seconds,
        "convert_posts_per_second": seconds and posts / seconds,
        "runs": runs,
        "second_epoch": {key: again[key] for key in ("tokenised_in_first_epoch", "tokenised_later")},
    }


def show(found: dict[str, Any]) -> None:
    """The table."""
    table = Table(title=f"{found['repeats']} runs each in turns, {found['cores']} cores: median (lowest-highest)")
    table.add_column("")
    for name in ("small", "large"):
        posts = found["small"] if name == "small" else found["posts"]
        table.add_column(f"{posts:,} posts", justify="right")
    table.add_column("difference", justify="right")
    rows = {
        "process start to first step done, s": ("first", "seconds", "{:.1f}"),
        "private memory then, MiB": ("first", "private", "{:.0f}"),
        "resident memory then, MiB": ("first", "resident", "{:.0f}"),
        "highest resident memory, MiB": ("last", "peak", "{:.0f}"),
    }
    for title, (when, key, form) in rows.items():
        values = {name: [run[when][key] for run in found["runs"][name]] for name in ("small", "large")}
        difference = form.format(median(values["large"]) - median(values["small"]))
        table.add_row(title, *(spread(values[name], form) for name in ("small", "large")), difference)
    waiting = {name: [100 * run["waiting"] for run in found["runs"][name]] for name in ("small", "large")}
    table.add_row("waiting for batches, % of the time", *(spread(waiting[name], "{:.2f}") for name in waiting))
    steps = {name: [run["step_ms"] for run in found["runs"][name]] for name in ("small", "large")}
    table.add_row("training step, ms", *(spread(steps[name], "{:.0f}") for name in steps))
    out = Console()
    out.print(table)
    if found["convert_seconds"]:
        out.print(
            f"conversion: {found['convert_seconds']:.0f} s, {found['convert_posts_per_second']:,.0f} posts/s, once"
        )
    second = found["second_epoch"]
    out.print(
        f"texts tokenised of {found['small']:,} posts, not converted: {second['tokenised_in_first_epoch']:,} until the "
        f"end of the first epoch, {second['tokenised_later']:,} in the second"
    )


def spread(values: Sequence[float], form: str) -> str:
    """A median with its range."""
    return f"{form.format(median(values))} ({form.format(min(values))}-{form.format(max(values))})"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description="What a large table of posts costs.")
    parser.add_argument("--posts", type=int, default=1_000_000, help="posts of the large table")
    parser.add_argument("--small", type=int, default=1000, help="posts of the small table")
    parser.add_argument("--repeats", type=int, default=3, help="training runs on each")
    parser.add_argument("--steps", type=int, default=200, help="steps of a run")
    parser.add_argument("--folder", type=Path, help="keeps posts and conversion here and uses them again")
    parser.add_argument("--json", action="store_true", help="prints all numbers as JSON")
    given = parser.parse_args()
    with TemporaryDirectory() as temporary:
        found = measure(given.folder or Path(temporary), given.posts, given.small, given.repeats, given.steps)
    if given.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)


if __name__ == "__main__":
    main()
