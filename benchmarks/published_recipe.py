"""The published student recipe, written anew from what it computes: four forwards a micro-batch, everything padded.

Per micro-batch and task both models read every row, padded on the left to the longest of the data set, and project all
positions to logits. The task's loss is 0.7 · CE + 0.3 · KL at T=2, the KL over every position whose label is not token
0, unshifted, a mean without T². The assistant keeps its adapter's dropout. Micro-batches hold two posts, their losses
are not divided. AdamW at 3e-4, no warm-up, no clipping.

Where the facts leave a choice it is the one that costs less: a task's backward pass follows its forward, so that one
task's logits are alive at a time; the positions of the KL are masked after the sum over the vocabulary, which saves a
copy of the logits; labels are shifted and not logits; rows are encoded before the clock runs and do not count as memory
(the recipe holds those of the whole data set).
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForImageTextToText

from benchmarks.presets import IMAGE_SIZE, PRESETS, Preset
from benchmarks.step_probe import Memory, Watch, clock, wait
from benchmarks.workload import Workload, rows_of
from data_modules.rationales import read_rationales
from data_modules.readers import Table
from data_modules.readers.row_log import RowLog
from mulcot.models import Lora, load_model, load_processor
from mulcot.rows import RowEncoder, TextRow
from mulcot.types import DEFAULT_LABELS, Task

T = 2.0
HARD, SOFT = 0.7, 0.3
LEARNING_RATE = 3e-4
IGNORED = -100


@dataclass(frozen=True)
class Rows:
    """The rows of a micro-batch in one task."""

    inputs: dict[str, Tensor]
    """What both models take, `[B, longest of the data set]` and pictures."""
    labels: Tensor
    """`[B, L]`: the response tokens, `IGNORED` elsewhere."""


MicroBatch = dict[Task, Rows]


def load_pair(preset: Preset, workload: Workload, *, vision_lora: bool) -> tuple[nn.Module, nn.Module]:
    """Student and assistant, each with its adapter, in training mode.

    Args:
        preset: the models.
        workload: where they lie.
        vision_lora: whether the student's adapter is on the tower's MLPs, too, as published.
    """
    lora = Lora(r=preset.lora, alpha=2 * preset.lora, dropout=0.05, vision=vision_lora)
    rows = preset.assistant.vocab
    student = load_model(workload.models["student"], dtype=preset.dtype, lora=lora, rows=rows)
    assistant = load_model(workload.models["assistant"], dtype=preset.dtype).requires_grad_(False).train()
    device = "cuda" if preset.accelerator == "gpu" else "cpu"
    return student.to(device), assistant.to(device)


def micro_batches(preset: Preset, workload: Workload) -> list[MicroBatch]:
    """All posts of the workload in random order, encoded and padded."""
    encoder = RowEncoder(load_processor(workload.models["student"]), DEFAULT_LABELS, IMAGE_SIZE)
    reader = Table(files={"train": Path(workload.files["train"])}, image_root=Path(workload.image_root))
    posts = {post.id: post for _, post in reader.entries("train", RowLog())}
    records = read_rationales([Path(workload.files["rationales"])], posts, DEFAULT_LABELS)
    order = sorted(posts)
    random.Random(0).shuffle(order)
    device = "cuda" if preset.accelerator == "gpu" else "cpu"
    batches = []
    for start in range(0, len(order), preset.micro_batch):
        rows = [rows_of(encoder, posts[name], records[name][0]) for name in order[start : start + preset.micro_batch]]
        batches.append(
            {
                task: padded_rows(encoder, [row[task] for row in rows], width, device)
                for task, width in workload.widths.items()
            }
        )
    return batches


def padded_rows(encoder: RowEncoder, rows: Sequence[TextRow], width: int, device: str) -> Rows:
    """Rows of one task, filled up on the left; each picture is opened for each of its rows.

    Args:
        encoder: makes the tokens of pictures.
        rows: a micro-batch's.
        width: tokens of the longest row of the data set.
        device: where they go.
    """
    heads = [encoder.head(row) for row in rows]
    fill = dict.fromkeys(heads[0].per_token, 0) | {"input_ids": encoder.pad_id, "attention_mask": 0}
    inputs = {name: torch.full((len(rows), width), value) for name, value in fill.items()}
    labels = torch.full((len(rows), width), IGNORED)
    for index, (row, head) in enumerate(zip(rows, heads, strict=True)):
        picture = len(head.per_token["input_ids"])
        start = width - picture - row.length
        for name, values in head.per_token.items():
            inputs[name][index, start : start + picture] = values
        inputs["input_ids"][index, start + picture :] = torch.tensor(row.tail_ids + row.response_ids)
        inputs["attention_mask"][index, start:] = 1
        labels[index, width - len(row.response_ids) :] = torch.tensor(row.response_ids)
    inputs |= {name: torch.cat([head.vision[name] for head in heads]) for name in heads[0].vision}
    return Rows({name: value.to(device) for name, value in inputs.items()}, labels.to(device))


class PublishedStep:
    """Trains the student.

    Args:
        student: trained.
        assistant: its teacher, which keeps its dropout.
        accumulate: micro-batches of a step.
        watch: notes what runs.
    """

    def __init__(self, student: nn.Module, assistant: nn.Module, accumulate: int, watch: Watch) -> None:
        self.student = student
        self.assistant = assistant
        self.accumulate = accumulate
        self.watch = watch
        trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)
        self.forwards: dict[str, list[float]] = {}

    def micro_batch(self, batch: MicroBatch) -> None:
        """Forward of both models and backward, task by task."""
        for task, rows in batch.items():
            with torch.no_grad():
                theirs = self._forward("assistant", self.assistant, task, rows)
            mine = self._forward("student", self.student, task, rows)
            with self.watch.part("head and losses"):
                loss = task_loss(mine, theirs, rows.labels)
            del mine, theirs
            with self.watch.part("backward"):
                loss.backward()

    def epoch(self, batches: Sequence[MicroBatch]) -> Iterator[float]:
        """Trains on micro-batches; gives the seconds of each step."""
        wait()
        started = time.perf_counter()
        for number, batch in enumerate(batches, start=1):
            self.micro_batch(batch)
            if number % self.accumulate and number < len(batches):
                continue
            with self.watch.part("optimizer"):
                self.optimizer.step()
                self.optimizer.zero_grad()
            wait()
            ended = time.perf_counter()
            yield ended - started
            started = ended

    def _forward(self, role: str, model: nn.Module, task: Task, rows: Rows) -> Tensor:
        started = self.watch.now()
        logits: Tensor = model(**rows.inputs, use_cache=False).logits
        self.forwards.setdefault(f"{role}, {task}", []).append(self.watch.now() - started)
        self.watch.head(role, rows.labels.numel())
        return logits


def task_loss(student: Tensor, assistant: Tensor, labels: Tensor) -> Tensor:
    """0.7 · CE + 0.3 · KL of all positions.

    Args:
        student: logits `[B, L, V]`.
        assistant: likewise.
        labels: see `Rows`.
    """
    shifted = functional.pad(labels, (0, 1), value=IGNORED)[:, 1:].flatten()
    hard = functional.cross_entropy(student.flatten(0, 1).float(), shifted, ignore_index=IGNORED)
    log_q = (student / T).log_softmax(dim=-1)
    p = (assistant / T).softmax(dim=-1)
    per_position = functional.kl_div(log_q, p, reduction="none").sum(dim=-1).flatten()
    counted = labels.flatten() != 0
    return HARD * hard + SOFT * per_position[counted].mean()


def child() -> None:
    """In a process of its own: a step to warm up, then one epoch, measured from step to step."""
    given = json.loads(sys.argv[1])
    preset, workload = preset_of(given), Workload(**given["workload"])
    student, assistant = load_pair(preset, workload, vision_lora=given["vision_lora"])
    batches = micro_batches(preset, workload)
    watch = Watch(given["exact"])
    watch.model("student", student)
    watch.model("assistant", assistant)
    accumulate = preset.posts_per_step // preset.micro_batch
    recipe = PublishedStep(student, assistant, accumulate, watch)
    memory = Memory()
    list(recipe.epoch(batches[: given["warm_up"]]))
    watch.forget()
    recipe.forwards.clear()
    cpu = time.process_time()
    steps = list(recipe.epoch(batches))
    found: dict[str, Any] = {"posts": workload.posts, "steps": steps, "cpu": time.process_time() - cpu}
    found |= {"memory": memory.found(), "forwards": recipe.forwards}
    tensors = [value for batch in batches for rows in batch.values() for value in rows.inputs.values()]
    found["rows_bytes"] = sum(value.nbytes for value in tensors)
    Path(given["path"]).write_text(json.dumps(found | watch.found()))


def bare() -> None:
    """In a process of its own: every forward of the recipe in turns with one of transformers alone, on the same rows.

    The latter is the same model from `from_pretrained`, with its adapter by peft and without it.
    """
    given = json.loads(sys.argv[1])
    preset, workload = preset_of(given), Workload(**given["workload"])
    student, assistant = load_pair(preset, workload, vision_lora=False)
    batch = micro_batches(preset, workload)[0]
    recipe = PublishedStep(student, assistant, 1, Watch(exact=True))
    others = {role: bare_model(role, preset, workload, student.device) for role in ("student", "assistant")}
    seconds: dict[str, dict[str, list[float]]] = {}
    for _ in range(given["times"] + 1):  # the first warms up
        recipe.micro_batch(batch)
        recipe.optimizer.zero_grad()
        for role, model in others.items():
            for task, rows in batch.items():
                told = seconds.setdefault(f"{role}, {task}", {"adapter": [], "plain": []})
                with torch.set_grad_enabled(role == "student"):
                    told["adapter"].append(timed(model, rows))
                    with model.disable_adapter():
                        told["plain"].append(timed(model, rows))
    shapes = {task: list(rows.labels.shape) for task, rows in batch.items()}
    found = {name: told | {"recipe": recipe.forwards[name]} for name, told in seconds.items()}
    found = {name: {kind: values[1:] for kind, values in told.items()} for name, told in found.items()}
    Path(given["path"]).write_text(json.dumps({"shapes": shapes, "seconds": found}))


def bare_model(role: str, preset: Preset, workload: Workload, device: torch.device) -> Any:
    """A model by transformers and peft alone.

    Args:
        role: `student` or `assistant`.
        preset: the models.
        workload: where they lie.
        device: where it goes.
    """
    folder = workload.models["student" if role == "student" else "assistant_base"]
    options = {"dtype": getattr(torch, preset.dtype), "attn_implementation": "sdpa"}
    model = AutoModelForImageTextToText.from_pretrained(folder, **options).to(device)
    if role == "assistant":
        return PeftModel.from_pretrained(model, workload.models["assistant"]).train()
    names = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
    config = LoraConfig(r=preset.lora, lora_alpha=2 * preset.lora, lora_dropout=0.05, target_modules=names)
    return get_peft_model(model, config).train()


def timed(model: Any, rows: Rows) -> float:
    """Seconds of a forward pass, see `clock`."""
    wait()
    started = clock()
    model(**rows.inputs, use_cache=False)
    wait()
    return clock() - started


def preset_of(given: dict[str, Any]) -> Preset:
    """The preset that a process was told of."""
    preset = PRESETS[given["preset"]]
    preset = preset.shrunk(given["layers"]) if given["layers"] else preset
    return replace(preset, accelerator=given["accelerator"], posts_per_step=given["posts_per_step"])
