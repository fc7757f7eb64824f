"""The posts that training benchmarks train on: real lengths, in tables and folders that the product reads.

Posts, pictures and rationales are those of Twitter-2015 with recorded replies (`--data_root`, see
conf/twitter15_recorded.yaml), taken in through `mulcot predict --config teacher.yaml`. A benchmark trains on a few
posts: every n-th of all by the length of the row with the rationale, so that these few are as long as all are. The
tokenizer is trained on the same texts; with 8,192 entries it writes nearly as many tokens for them as Qwen's does, with
32,000 it would know them by heart (`FIGURES` and the table of lengths say how near it is).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Final

from benchmarks.presets import IMAGE_SIZE, Preset, build_models
from data_modules.rationales import read_rationales
from data_modules.readers import TwitterJson
from data_modules.readers.row_log import RowLog
from mulcot.images import upright_size
from mulcot.models import load_processor
from mulcot.rows import RowEncoder, TextRow
from mulcot.types import DEFAULT_LABELS, SPLITS, Post, RationaleRecord, Task, prediction_json

CHECKOUT: Final = Path(__file__).resolve().parents[1]
FIGURES: Final = {
    "shared prefix": (252, None),
    "reasoning prompt": (348, None),
    "rationale": (256, 428),
    "reasoning row": (604, 782),
    "classification prompt": (266, None),
    "classification row": (271, 309),
}
"""Mean and longest of the published workload, with Qwen's tokenizer and the published prompts."""
WASTED: Final = {"reasoning": 22, "classification": 12}
"""Percent of the published workload's tokens that are padding to the longest."""


@dataclass(frozen=True)
class Workload:
    """Where everything lies, and how long rows are."""

    folder: Path
    """Of this benchmark's run; the rest lies in it."""
    models: dict[str, str]
    """Folders of `student`, `assistant_base` and `assistant`, an adapter on the latter."""
    files: dict[str, str]
    """Tables of posts, `train` and `val`, and the `rationales` of the training posts."""
    image_root: str
    """The folder of the pictures."""
    widths: dict[Task, int]
    """The longest row of each task in the whole data set, to which the published recipe pads every row."""
    lengths: dict[str, tuple[float, int]]
    """Mean and longest of each part of a row, over the whole data set."""
    sample: dict[str, float]
    """The mean row of each task over the posts that are trained on."""
    posts: int
    """How many these are."""

    @property
    def reader(self) -> dict[str, Any]:
        """`data.init_args.posts` of the command line."""
        files = {split: self.files[split] for split in ("train", "val")}
        return {"class_path": "Table", "init_args": {"files": files, "image_root": self.image_root}}


def mulcot(*args: object, threads: int, environment: dict[str, str] | None = None) -> str:
    """Runs a verb as a user does, in a process of its own; gives back what it printed.

    Args:
        args: the verb and its flags.
        threads: cores that it may use.
        environment: further variables.
    """
    return run([sys.executable, "-m", "mulcot", *map(str, args)], threads, environment)


def run(command: Sequence[str], threads: int, environment: dict[str, str] | None = None) -> str:
    """Runs a command with so many threads; a failure ends the benchmark with what it printed."""
    variables = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)} | (environment or {})
    done = subprocess.run(
        command, cwd=CHECKOUT, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def prepare(folder: Path, preset: Preset, data_root: Path, posts: int, threads: int = 1) -> Workload:
    """Takes in rationales, trains the tokenizer, builds the models, and writes the tables of the chosen posts.

    Args:
        folder: an empty one.
        preset: the models.
        data_root: holds `val.json` and `Images/`.
        posts: training posts.
        threads: cores that preparing may use.
    """
    mulcot(
        "predict", "--config", "teacher.yaml", "--config", "data/twitter15.yaml",
        "--config", "data/twitter15_teacher.yaml", "--run_dir", folder / "run", "--data_root", data_root,
        threads=threads,
    )  # fmt: skip
    known, records = _labelled(folder, data_root)
    texts = [known[name].text for name in records] + [record.rationale.to_json() for record in records.values()]
    models = build_models(folder, preset, texts)
    encoder = RowEncoder(load_processor(str(models["student"])), DEFAULT_LABELS, IMAGE_SIZE)
    rows = {name: rows_of(encoder, known[name], record) for name, record in records.items()}
    lengths = {name: _lengths(encoder, row) for name, row in rows.items()}
    chosen = _chosen(lengths, posts)
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "val", "rationales")}
    image_root = data_root / "Images"
    others = [name for name in records if name not in set(chosen)][:1]
    _write(Path(files["train"]), [_line(known[name], image_root) for name in chosen])
    _write(Path(files["val"]), [_line(known[name], image_root) for name in others])
    _write(Path(files["rationales"]), [records[name].to_json() for name in chosen])
    found = {part: [length[part] for length in lengths.values()] for part in FIGURES}
    whole: tuple[Task, ...] = ("reasoning", "classification")
    return Workload(
        folder=folder,
        models={role: str(path) for role, path in models.items()},
        files=files,
        image_root=str(image_root),
        widths={task: max(found[f"{task} row"]) for task in whole},
        lengths={part: (mean(values), max(values)) for part, values in found.items()},
        sample={task: mean(lengths[name][f"{task} row"] for name in chosen) for task in whole},
        posts=len(chosen),
    )


def rows_of(encoder: RowEncoder, post: Post, record: RationaleRecord) -> dict[Task, TextRow]:
    """The two rows of a post, with what is to be learnt."""
    assert post.label is not None
    responses: dict[Task, str] = {
        "reasoning": record.rationale.to_json(),
        "classification": prediction_json(post.label),
    }
    return {task: encoder.row(post, task, response) for task, response in responses.items()}


def _labelled(folder: Path, data_root: Path) -> tuple[dict[str, Post], dict[str, RationaleRecord]]:
    """All posts by id, and the rationale of each that has one."""
    reader = TwitterJson(data_root / "val.json", data_root / "Images")
    posts = {post.id: post for _, post in reader.all_entries(RowLog())}
    files = [folder / "run" / "teacher" / f"rationales-{split}.jsonl" for split in SPLITS]
    return posts, {name: given[0] for name, given in read_rationales(files, posts, DEFAULT_LABELS).items()}


def _lengths(encoder: RowEncoder, rows: dict[Task, TextRow]) -> dict[str, int]:
    """Tokens of each part; what both rows begin with is their shared prefix."""
    post = rows["reasoning"].post
    head = encoder.head_tokens(post.setting, *upright_size(post.image))
    tails = [rows[task].tail_ids for task in rows]
    pairs = zip(*tails, strict=False)
    shared = next((at for at, pair in enumerate(pairs) if pair[0] != pair[1]), min(map(len, tails)))
    found = {"shared prefix": head + shared, "rationale": len(rows["reasoning"].response_ids)}
    for task, row in rows.items():
        found |= {f"{task} prompt": head + len(row.tail_ids), f"{task} row": head + row.length}
    return found


def _chosen(lengths: dict[str, dict[str, int]], posts: int) -> list[str]:
    """Ids of posts that are as long as all of them are, in random order."""
    ordered = sorted(lengths, key=lambda name: lengths[name]["reasoning row"])
    step = len(ordered) / min(posts, len(ordered))
    chosen = [ordered[int((number + 0.5) * step)] for number in range(min(posts, len(ordered)))]
    random.Random(0).shuffle(chosen)
    return chosen


def _line(post: Post, image_root: Path) -> str:
    image = Path(str(post.image)).relative_to(image_root)
    fields = {"id": post.id, "text": post.text, "image": str(image), "aspect": post.aspect, "label": post.label}
    return json.dumps(fields, ensure_ascii=False)


def _write(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
