"""One side of `benchmarks.peers`, in a process of its own: trains on the prepared posts and writes what that took."""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning import Callback
from torch import Tensor, nn

from benchmarks.peers_posts import PeerRow, peer_rows, table
from mulcot.cli import main as mulcot
from mulcot.models import Lora, base_model, load_model, load_processor

LEARNING_RATE = 3e-4
CLIP = 1.0
MIB = 2**20


@dataclass(frozen=True)
class Job:
    """What a side is to do."""

    folder: str
    """What `benchmarks.peers_posts.prepare` wrote."""
    out: str
    """Where the numbers go, as JSON."""
    side: str
    """A key of `SIDES`."""
    micro_posts: int
    """Posts of a micro-batch; a trainer of rows gets twice as many rows."""
    accumulate: int
    """Micro-batches of an optimizer step."""
    threads: int
    """Threads of torch."""
    attention: str = "sdpa"
    """transformers' attention implementation."""
    overrides: list[str] = field(default_factory=list)
    """Further flags of `mulcot fit`."""
    profile: bool = False
    """Whether to profile instead of timing."""


class Meter:
    """Notes time, tokens and memory of a fit."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.micro_batches = self.positions = self.real = self.responses = 0
        self.counted: dict[str, Tensor] | None = None

    def start(self) -> None:
        """The fit begins: what follows is timed, reading and tokenising included."""
        self.resident = _resident()
        self.began = time.perf_counter(), time.process_time()

    def count(self, inputs: dict[str, Tensor], responses: int) -> None:
        """Notes the tokens of a batch of rows that go through the model together."""
        self.responses += responses
        if inputs is self.counted:  # by the task before, in the shared layout
            return
        self.counted = inputs
        self.positions += inputs["input_ids"].numel()
        self.real += int((inputs["trees"] >= 0).sum() if "trees" in inputs else inputs["attention_mask"].sum())

    def stop(self) -> None:
        """An optimizer step is done; the last one ends the fit."""
        self.ended = time.perf_counter(), time.process_time()
        self.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def found(self) -> dict[str, Any]:
        """The numbers."""
        wall, processor = (end - start for start, end in zip(self.began, self.ended, strict=True))
        return {
            "seconds": wall, "processor_seconds": processor, "peak_mib": self.peak, "before_mib": self.resident,
            "micro_batches": self.micro_batches, "positions": self.positions, "real_tokens": self.real,
            "response_tokens": self.responses, "losses": self.losses,
        }  # fmt: skip


def _resident() -> float:
    """This process's memory in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MIB


class StageMeter(Callback):
    """A `Meter` in a fit of mulcot.

    Args:
        path: Where the numbers go, as JSON.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.meter = Meter()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """The model is loaded; the data are not yet tokenised."""
        _name_vision_tower(pl_module.model)
        self.meter.start()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """A micro-batch comes."""
        self.meter.micro_batches += 1
        for rows in batch.tasks.values():
            self.meter.count(rows.inputs, len(rows.targets))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A micro-batch is done, with it the step when it was the step's last."""
        self.meter.stop()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Writes the numbers, before anything is validated."""
        self.path.write_text(json.dumps(self.meter.found()))


def stage_of_mulcot(job: Job, posts: int | None) -> dict[str, Any]:
    """The assistant's stage by the command that a user gives.

    Args:
        job: What to do.
        posts: Only the first so many posts; None for all.
    """
    with TemporaryDirectory() as folder:
        meter = {"class_path": "benchmarks.peers_arms.StageMeter", "init_args": {"path": f"{folder}/found.json"}}
        optimizer = {"learning_rate": LEARNING_RATE, "schedule": "constant"}
        flags = {
            "stage_dir": f"{folder}/stage", "test_after_fit": "false", "inspection.enabled": "false",
            "model.init_args.pretrained": f"{job.folder}/models/assistant_base",
            "model.init_args.lora": json.dumps({"r": 16, "alpha": 32, "dropout": 0.05}),
            "model.init_args.optimizer": json.dumps(optimizer), "model.init_args.attention": job.attention,
            "data.init_args.posts": json.dumps(table(Path(job.folder))),
            "data.init_args.rationales": json.dumps([f"{job.folder}/rationales.jsonl"]),
            "data.init_args.references": "null", "data.init_args.limit": posts or "null",
            "data.init_args.posts_per_step": job.micro_posts * job.accumulate, "data.init_args.length_pool": 16,
            "data.init_args.picture_cache_mb": 0,  # one epoch uses no picture twice
            "trainer.accumulate_grad_batches": job.accumulate, "trainer.max_epochs": 1, "trainer.accelerator": "cpu",
            "trainer.gradient_clip_val": CLIP, "trainer.callbacks": json.dumps([meter]), "trainer.logger": "false",
            "trainer.limit_val_batches": 1, "trainer.enable_progress_bar": "false",
        }  # fmt: skip
        given = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
        if mulcot(["fit", "--config", "assistant.yaml", *given, *job.overrides]):
            raise SystemExit("the fit failed")
        return json.loads(Path(folder, "found.json").read_text())


def stage_of_trl(job: Job, posts: int | None) -> dict[str, Any]:
    """The same by TRL's SFTTrainer, which takes every row of a post as a sample of its own.

    Args:
        job: See `stage_of_mulcot`.
        posts: Likewise.
    """
    from datasets import Dataset, Image, List
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    meter = Meter()

    class Hooks(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            meter.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.stop()

    given = peer_rows(Path(job.folder), "assistant_base")
    rows = [_sample(row) for row in (given if posts is None else given[: 2 * posts])]
    folder = f"{job.folder}/models/assistant_base"
    # mulcot's own loading puts the same adapter on the same layers.
    model = load_model(folder, attention=job.attention, lora=Lora(r=16, alpha=32, dropout=0.05))
    with TemporaryDirectory() as out:
        settings = SFTConfig(
            output_dir=out, num_train_epochs=1, per_device_train_batch_size=2 * job.micro_posts,
            gradient_accumulation_steps=job.accumulate, learning_rate=LEARNING_RATE, weight_decay=0.01,
            max_grad_norm=CLIP, lr_scheduler_type="constant", optim="adamw_torch_fused", bf16=False, use_cpu=True,
            gradient_checkpointing=False, max_length=None, train_sampling_strategy="group_by_length",
            remove_unused_columns=False,  # it would remove `length`, which the grouping goes by
            report_to="none", save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = SFTTrainer(
            model=model, args=settings, processing_class=load_processor(folder), callbacks=[Hooks()],
            train_dataset=Dataset.from_list(rows).cast_column("images", List(Image())),
        )  # fmt: skip
        collate = trainer.data_collator

        def counted(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
            batch = collate(examples)
            meter.micro_batches += 1
            meter.count(batch, int((batch["labels"][:, 1:] != -100).sum()))
            return batch

        trainer.data_collator = counted
        _name_vision_tower(model)
        trainer.train()
    return meter.found()


def stage_of_trl_compact(job: Job, posts: int | None) -> dict[str, Any]:
    """The same with TRL's head on response tokens alone, as it is on a GPU; elsewhere it takes every position.

    Args:
        job: See `stage_of_mulcot`.
        posts: Likewise.
    """
    from trl.trainer import utils

    assert callable(utils._use_triton)  # a later release may decide elsewhere
    utils._use_triton = lambda device: True  # asked there for nothing but this; the kernels ask for themselves
    return stage_of_trl(job, posts)


def _sample(row: PeerRow) -> dict[str, Any]:
    """A row as TRL takes it."""
    picture = str(row.post.image)
    return {"images": [picture], "prompt": row.prompt, "completion": row.completion, "length": row.tokens}


def _name_vision_tower(model: nn.Module) -> None:
    """Lets a profile tell what the vision tower takes."""
    tower = base_model(model).model.visual
    forward = tower.forward

    def named(*args: Any, **kwargs: Any) -> Any:
        with torch.profiler.record_function("vision tower"):
            return forward(*args, **kwargs)

    tower.forward = named


StepLoss = Callable[[dict[str, Tensor], int], Tensor]
"""From a padded batch and the response tokens of its optimizer step to a loss."""


def soft_step_of_mulcot(job: Job, posts: int | None) -> dict[str, Any]:
    """The student's soft-label step on text: the stage's objective with the assistant beside the student.

    Args:
        job: What to do.
        posts: Only the first so many posts; None for all.
    """
    from mulcot.callbacks import ForwardKL
    from mulcot.rows import RowBatch
    from stages.objective import Objective
    from stages.online_assistant import OnlineAssistant

    student = _student(job)
    term = ForwardKL(temperature=1.0)
    term.name = "kl"
    assistant = OnlineAssistant(f"{job.folder}/models/assistant_base", attention=job.attention)
    objective = Objective([term], lambda_soft=1.0, assistant=assistant)

    def loss(batch: dict[str, Tensor], step_tokens: int) -> Tensor:
        labels = batch["labels"].flatten()
        places = (labels != -100).nonzero().flatten()
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        rows = RowBatch((), inputs, places - 1, labels[places], ends=places[:0])
        return objective.task_loss(student, "reasoning", rows, step_tokens).total

    return _optimise(job, student, loss, posts)


def soft_step_of_trl(job: Job, posts: int | None) -> dict[str, Any]:
    """The same by TRL's GKDTrainer: beta=0 is the forward KL; its loss knows no temperature but 1.

    Args:
        job: See `soft_step_of_mulcot`.
        posts: Likewise.
    """
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    student = _student(job)
    folder = f"{job.folder}/models/assistant_base"
    with TemporaryDirectory() as out:
        settings = GKDConfig(
            output_dir=out, lmbda=0.0, beta=0.0, bf16=False, use_cpu=True, gradient_checkpointing=False,
            max_length=None, report_to="none",
        )  # fmt: skip
        trainer = GKDTrainer(
            model=student, teacher_model=load_model(folder, attention=job.attention).requires_grad_(False),
            args=settings, processing_class=load_processor(folder).tokenizer,
            train_dataset=Dataset.from_list([{"prompt": "", "completion": ""}]),  # batches are handed over below
        )  # fmt: skip
    return _optimise(
        job, student, lambda batch, tokens: trainer.compute_loss(student, batch, num_items_in_batch=tokens), posts
    )


def _student(job: Job) -> nn.Module:
    """The student under an adapter without dropout, so that both sides compute the same losses."""
    torch.manual_seed(0)
    return load_model(f"{job.folder}/models/student", attention=job.attention, lora=Lora(r=16, alpha=32, dropout=0.0))


def _text_batches(job: Job, posts: int | None) -> list[dict[str, Tensor]]:
    """The posts' rows without pictures, in batches of about equal length, padded on the right."""
    tokenizer = load_processor(f"{job.folder}/models/student").tokenizer
    given = peer_rows(Path(job.folder), "student", pictures=False)
    encoded = []
    for row in given if posts is None else given[: 2 * posts]:
        prompt, answer = (
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in (row.prompt, row.completion)
        )
        encoded.append((prompt + answer, [-100] * len(prompt) + answer))
    encoded.sort(key=lambda pair: len(pair[0]))
    size = 2 * job.micro_posts
    return [_padded(encoded[at : at + size], tokenizer.pad_token_id) for at in range(0, len(encoded), size)]


def _padded(rows: Iterable[tuple[list[int], list[int]]], pad: int) -> dict[str, Tensor]:
    ids, labels = (list(map(torch.tensor, column)) for column in zip(*rows, strict=True))
    join = torch.nn.utils.rnn.pad_sequence
    mask = join([torch.ones_like(row) for row in ids], batch_first=True)
    return {
        "input_ids": join(ids, batch_first=True, padding_value=pad),
        "attention_mask": mask,
        "labels": join(labels, batch_first=True, padding_value=-100),
    }


def _optimise(job: Job, student: nn.Module, loss_of: StepLoss, posts: int | None) -> dict[str, Any]:
    """Optimizer steps over all batches; both sides run in this loop."""
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)
    batches, meter = _text_batches(job, posts), Meter()
    student.train()
    meter.start()
    for at in range(0, len(batches), job.accumulate):
        step = batches[at : at + job.accumulate]
        counts = [int((batch["labels"] != -100).sum()) for batch in step]
        value = 0.0
        for batch, count in zip(step, counts, strict=True):
            meter.micro_batches += 1
            meter.count(batch, count)
            loss = loss_of(batch, sum(counts))
            loss.backward()
            value += loss.item()
            del loss
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        meter.losses.append(value)
        meter.stop()
    return meter.found()


SIDES: dict[str, Callable[[Job, int | None], dict[str, Any]]] = {
    "stage of mulcot": stage_of_mulcot,
    "stage of trl": stage_of_trl,
    "stage of trl, compact": stage_of_trl_compact,
    "step of mulcot": soft_step_of_mulcot,
    "step of trl": soft_step_of_trl,
}


def run(job: Job) -> dict[str, Any]:
    """Warms up on the posts of a micro-batch, then trains a new model: timed on all posts, or profiled on a step's."""
    torch.set_num_threads(job.threads)
    train = SIDES[job.side]
    train(job, job.micro_posts)
    gc.collect()
    if not job.profile:
        return train(job, None)
    from benchmarks.peers_profile import shares

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiler:
        found = train(job, job.micro_posts * job.accumulate)
    vocab = base_model(load_model(f"{job.folder}/models/assistant_base")).config.get_text_config().vocab_size
    return found | {"profile": shares(profiler, vocab)}


def main() -> None:
    """The process of one side; the job comes as JSON."""
    job = Job(**json.loads(sys.argv[1]))
    Path(job.out).write_text(json.dumps(run(job)))


if __name__ == "__main__":
    main()
