"""What a training process looks at in itself: how long steps take, in which part, on what shapes, in what memory."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

import stages.objective
from mulcot.losses import Projected
from mulcot.models import base_model

PARTS: Final = (
    "data",
    "assistant: vision tower",
    "assistant: language model",
    "student: vision tower",
    "student: language model",
    "head and losses",
    "backward",
    "optimizer",
)
"""The parts of a step whose time is told; what is left of the step is `rest`."""


class Watch:
    """Counts what runs, and the seconds of each part.

    A GPU is waited for at the edges of a part only where `exact` says so: it costs time.

    Args:
        exact: whether seconds of parts are wanted, beside those of whole steps.
    """

    def __init__(self, exact: bool) -> None:
        self.exact = exact
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.rows: list[dict[str, Any]] = []
        self.pictures: list[dict[str, Any]] = []
        self.heads: list[dict[str, Any]] = []

    def forget(self) -> None:
        """Begins anew, after the warm-up."""
        self.seconds.clear()
        for counted in (self.rows, self.pictures, self.heads):
            counted.clear()

    def now(self) -> float:
        """See `clock`; on a GPU it is waited for where seconds of parts are wanted."""
        if self.exact:
            wait()
        return clock()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the seconds of a block to a part."""
        started = self.now()
        yield
        self.seconds[name] += self.now() - started

    def model(self, role: str, model: nn.Module) -> None:
        """Counts the rows and pictures of a model, and takes the seconds of tower and language model.

        Args:
            role: `student` or `assistant`.
            model: it.
        """
        body: Any = base_model(model)
        trained = any(parameter.requires_grad for parameter in body.model.visual.parameters())

        def of_text(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            rows, width = kwargs["inputs_embeds"].shape[:2]
            mask = kwargs.get("attention_mask")
            real: Any = [width] * rows
            if isinstance(mask, Tensor) and mask.ndim == 2:
                real = mask.sum(dim=1)
            elif isinstance(mask, Tensor):  # of the shared layout: padding sees itself alone, as does a first token
                real = 1 + (mask[:, 0].sum(dim=-1) > 1).sum(dim=1)
            self.rows.append({"role": role, "width": width, "real": real, "grad": torch.is_grad_enabled()})

        def of_pictures(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            grid = kwargs.get("grid_thw", args[1] if len(args) > 1 else None)
            self.pictures.append(
                {"role": role, "pictures": len(grid), "grad": trained and torch.is_grad_enabled()}  # type: ignore[arg-type]
            )

        self._time(body.get_decoder(), f"{role}: language model", of_text)
        self._time(body.get_output_embeddings(), "head and losses", lambda *_: None)  # where it is called as a module
        self._time(body.model.visual, f"{role}: vision tower", of_pictures)

    def _time(self, module: nn.Module, part: str, count: Callable[[nn.Module, Any, dict[str, Any]], None]) -> None:
        started: list[float] = []

        def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            count(module, args, kwargs)
            started.append(self.now())

        def after(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            self.seconds[part] += self.now() - started.pop()

        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after, with_kwargs=True)

    def head(self, role: str, tokens: int) -> None:
        """Counts hidden states that are projected to logits."""
        self.heads.append({"role": role, "tokens": tokens, "grad": role == "student"})

    def found(self) -> dict[str, Any]:
        """All of it, for JSON."""
        rows = [row | {"real": [int(length) for length in row["real"]]} for row in self.rows]
        return {"seconds": dict(self.seconds), "rows": rows, "pictures": self.pictures, "heads": self.heads}


def wait() -> None:
    """Waits for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def clock() -> float:
    """Seconds of the processor, which others on the same cores do not lengthen; where there is a GPU, of the clock."""
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def resident(field: str) -> int:
    """This process's resident memory now (VmRSS) or at its highest (VmHWM), in bytes."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field))


class Memory:
    """The highest memory since it was made, before any data: of the GPU where there is one, else resident."""

    def __init__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            self.before = resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # the highest resident memory is counted anew

    def found(self) -> dict[str, int]:
        """Bytes before data, and at the highest."""
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident("VmHWM")
        return {"before": self.before, "peak": peak}


class Probe(Callback):
    """Measures a fit of two epochs: the first is cut short and warms up, the second is measured from step to step.

    Every arm so trains on the same posts, whatever order its sampler gives them. A prediction is measured as a whole.

    Args:
        path: where the numbers go, as JSON.
        warm_up: micro-batches of the first epoch.
        exact: see `Watch`.
    """

    def __init__(self, path: str, warm_up: int, exact: bool = False) -> None:
        self.path = Path(path)
        self.warm_up = warm_up
        self.watch = Watch(exact)
        self.steps: list[float] = []
        self.posts = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Models are loaded and no batch is made yet."""
        stage: Any = pl_module
        self.watch.model("student", stage.model)
        if stage.objective.assistant is not None:
            self.watch.model("assistant", stage.objective.assistant.model)
        self._watch_head()
        # What Lightning documents for leaving out the rest of an epoch.
        stage.on_train_batch_start = lambda batch, number: (
            -1 if trainer.current_epoch == 0 and number >= self.warm_up else None
        )
        self.memory = Memory()
        self.edge = self.watch.now()

    def _watch_head(self) -> None:
        plain, watch = stages.objective.chunked_loss, self.watch

        def watched(hidden: Tensor, head: Any, targets: Tensor, view: Any, *args: Any, **kwargs: Any) -> Any:
            watch.head("student", len(hidden))
            if isinstance(view, Projected):
                watch.head("assistant", len(hidden))
            with watch.part("head and losses"):
                return plain(hidden, head, targets, view, *args, **kwargs)

        stages.objective.chunked_loss = watched

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The measured epoch begins with its first batch."""
        if trainer.current_epoch == 1:
            self.watch.forget()
            wait()
            self.began, self.cpu = time.perf_counter(), time.process_time()
            self.edge = self.watch.now()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A batch is there."""
        self.watch.seconds["data"] += self.watch.now() - self.edge
        self.posts += len(batch.post_ids) if trainer.current_epoch == 1 else 0

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """A backward pass begins."""
        self.edge = self.watch.now()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """It ends."""
        self.watch.seconds["backward"] += self.watch.now() - self.edge

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """The last micro-batch of a step is done; the stage still checks and logs its losses."""
        self.stepping = self.watch.now()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """A micro-batch, and with the last of them a step, is done."""
        self.edge = self.watch.now()
        if (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        wait()
        self.watch.seconds["optimizer"] += self.edge - self.stepping
        if trainer.current_epoch == 1:
            ended = time.perf_counter()
            self.steps.append(ended - self.began)
            self.began = ended
        if trainer.current_epoch == 1 and trainer.is_last_batch:  # before anything is validated
            found = {"posts": self.posts, "steps": self.steps, "cpu": time.process_time() - self.cpu}
            self.path.write_text(json.dumps(found | {"memory": self.memory.found()} | self.watch.found()))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A cache is built from here on."""
        self.memory = Memory()
        self.cpu = time.process_time()
        self.began = time.perf_counter()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """It is built."""
        wait()
        found = {"seconds": time.perf_counter() - self.began, "cpu": time.process_time() - self.cpu}
        self.path.write_text(json.dumps(found | {"memory": self.memory.found()}))
