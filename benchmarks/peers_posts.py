"""The posts of `benchmarks.peers`, written once for all sides: the same texts, rationales and pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.presets import IMAGE_SIZE, Preset, build_models
from data_modules.readers import GroupedSplit, Table, TwitterJson
from mulcot.images import load_image
from mulcot.models import load_processor
from mulcot.prompts import get_prompt
from mulcot.rows import RowEncoder
from mulcot.types import DEFAULT_LABELS, TASKS, Post, RationaleRecord, Task, prediction_json

FILES: Final = ("train.jsonl", "val.jsonl")
VALIDATION: Final = 2
"""Posts to validate on, which a fit of mulcot needs; the clock has stopped by then."""


@dataclass(frozen=True)
class PeerRow:
    """A post in one task, as a trainer of prompts and completions takes it."""

    post: Post
    """The post."""
    task: Task
    """The task."""
    prompt: str
    """The chat up to the answer, the picture's placeholder in it."""
    completion: str
    """The answer up to and with the end of turn."""
    tokens: int
    """Tokens of both, those of the picture included."""


def prepare(folder: Path, data_root: Path, preset: Preset, posts: int) -> None:
    """Writes posts, pictures, rationales and models below `folder`.

    Args:
        folder: Where to.
        data_root: Twitter-2015: `val.json` with recorded rationales, and `Images`.
        preset: The shapes.
        posts: How many posts are trained on.
    """
    command = ["run", "--config", "twitter15_recorded.yaml", "--only", "teacher", "--data_root", str(data_root)]
    done = subprocess.run(
        [sys.executable, "-m", "mulcot", *command, "--run_dir", str(folder / "run")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"mulcot {' '.join(command)}\n{done.stdout}\n{done.stderr}")
    lines = (folder / "run" / "teacher" / "rationales-train.jsonl").read_text(encoding="utf-8").splitlines()
    line_of = {json.loads(line)["post_id"]: line for line in lines}
    reader = GroupedSplit(
        TwitterJson(data_root / "val.json", data_root / "Images"), train=900, val=111, test=111, seed=0
    )
    every = list(reader.read("train"))
    known = [post for post in every if post.id in line_of]
    if len(known) < posts + VALIDATION:
        raise SystemExit(f"--posts {posts}: there are {len(known) - VALIDATION} posts with a rationale")
    (folder / "images").mkdir()
    for name, chosen in zip(FILES, (known[:posts], known[posts : posts + VALIDATION]), strict=True):
        (folder / name).write_text("".join(_line(post, folder) for post in chosen), encoding="utf-8")
    kept = "".join(line_of[post.id] + "\n" for post in known[:posts])
    (folder / "rationales.jsonl").write_text(kept, encoding="utf-8")
    (folder / "models").mkdir()
    build_models(folder / "models", preset, list(_corpus(every, line_of)))


def _line(post: Post, folder: Path) -> str:
    """A post as a line of a table; its picture, squeezed to the size that is trained with, goes beside it."""
    name = f"{post.id}.png"
    load_image(post.image).resize(IMAGE_SIZE).save(folder / "images" / name)
    row = {"id": post.id, "text": post.text, "image": name, "aspect": post.aspect, "label": post.label}
    return json.dumps(row, ensure_ascii=False) + "\n"


def _corpus(posts: list[Post], line_of: dict[str, str]) -> Iterator[str]:
    """What the tokenizer is trained on: every prompt and rationale of the training split."""
    for post in posts:
        for task in TASKS:
            yield _prompt(post, task)
        if post.id in line_of:
            yield RationaleRecord.from_dict(json.loads(line_of[post.id])).rationale.to_json()


def table(folder: Path) -> dict[str, Any]:
    """What mulcot reads the posts with, as a config has it."""
    files = {name.removesuffix(".jsonl"): str(folder / name) for name in FILES}
    return {"class_path": "Table", "init_args": {"files": files, "image_root": str(folder / "images")}}


def peer_rows(folder: Path, role: str, *, pictures: bool = True) -> list[PeerRow]:
    """Both rows of every post, one after another.

    Args:
        folder: What `prepare` wrote.
        role: Whose processor counts the tokens.
        pictures: Whether the picture is in the prompt.
    """
    encoder = RowEncoder(load_processor(str(folder / "models" / role)), DEFAULT_LABELS)
    records = map(json.loads, (folder / "rationales.jsonl").read_text(encoding="utf-8").splitlines())
    rationales = {each["post_id"]: RationaleRecord.from_dict(each).rationale.to_json() for each in records}
    end = encoder.tokenizer.decode(encoder.end_of_turn)
    rows = []
    for post in Table(**table(folder)["init_args"]).read("train"):
        answers: dict[Task, str] = {"reasoning": rationales[post.id], "classification": prediction_json(post.label)}
        for task in TASKS:
            prompt = _chat(encoder, post, task, pictures)
            tokens = encoder.row(post, task, answers[task])
            count = tokens.length + encoder.head_tokens(post.setting, *IMAGE_SIZE)
            rows.append(PeerRow(post, task, prompt, answers[task] + end, count))
    return rows


def _chat(encoder: RowEncoder, post: Post, task: Task, pictures: bool) -> str:
    """The prompt in the model's chat template."""
    content = [*([{"type": "image"}] if pictures else []), {"type": "text", "text": _prompt(post, task)}]
    return encoder.processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )


def _prompt(post: Post, task: Task) -> str:
    """What a post is asked."""
    return "".join(segment.text for segment in get_prompt(post.setting, task).render(post, DEFAULT_LABELS).segments)
