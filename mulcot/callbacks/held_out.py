"""The loss terms on posts that are never trained on: whether what falls in training falls there too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from mulcot.callbacks.task_loss import TaskLoss
from mulcot.models import Passes, gathered
from mulcot.rows import MicroBatch, RowBatch
from mulcot.types import Task


class HeldOutObjective(Protocol):
    """What gives the terms their values on a batch of rows."""

    def names(self, task: Task) -> list[str]:
        """The terms of a task."""
        ...

    def task_loss(self, model: nn.Module, task: Task, rows: RowBatch, step_tokens: int, *, passes: Passes) -> TaskLoss:
        """The terms over the rows of one task."""
        ...


class HeldOutStage(Protocol):
    """What the callback asks of the stage that is trained."""

    model: nn.Module
    """The student."""
    tasks: Sequence[Task]
    """The tasks that it trains."""

    def held_out_objective(self) -> HeldOutObjective:
        """Its terms, with an assistant that sees posts for which nothing is cached."""
        ...


class HeldOutLosses(Callback):
    """Every loss term on the validation posts, before the first step and after every epoch.

    Logged as `val/loss/<task>/<name>`, a mean over response tokens: a reference rationale's for reasoning, the gold
    label's for classification. Soft terms compare with the assistant itself, which then runs beside the student on
    these posts also where training reads a cache. Nothing that is trained depends on it.

    Args:
        enabled: whether it looks at all; it costs a forward pass of student and assistant over the validation posts.
    """

    def __init__(self, enabled: bool = False) -> None:
        super().__init__()
        self.enabled = enabled
        self._objective: HeldOutObjective | None = None
        self._batches: Iterable[MicroBatch] = ()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the values of the model that training starts from, as step 0."""
        with isolate_rng():
            self._objective = cast(HeldOutStage, pl_module).held_out_objective()
        self._batches = trainer.datamodule.held_out_dataloader()  # type: ignore[attr-defined]
        if trainer.global_step == 0:
            values = self._values(trainer, pl_module)
            for logger in trainer.loggers:
                logger.log_metrics(values, step=0)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the values after an epoch."""
        if self._objective is not None and not trainer.sanity_checking:
            pl_module.log_dict(cast(dict[str, Any], self._values(trainer, pl_module)))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets the assistant go."""
        self._objective = None

    def _values(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Each term's mean over the response tokens of all ranks; a task without any has no value."""
        assert self._objective is not None
        stage = cast(HeldOutStage, pl_module)
        keys = [(task, name) for task in stage.tasks for name in (*self._objective.names(task), "")]
        sums = dict.fromkeys(keys, 0.0)
        training = [module for module in pl_module.modules() if module.training]
        pl_module.eval()
        # The loader draws a seed for its workers: that too must leave training as it would be without.
        with isolate_rng(), torch.no_grad(), trainer.precision_plugin.forward_context(), gathered(stage.model):
            for batch in self._batches:
                _add(sums, self._objective, stage.model, batch.to(pl_module.device))
        for module in training:
            module.training = True
        totals = trainer.strategy.reduce(torch.tensor(list(sums.values()), device=pl_module.device), reduce_op="sum")
        found = dict(zip(keys, cast(Tensor, totals).tolist(), strict=True))
        counted = [(task, name) for task, name in keys if name and found[task, ""]]
        return {f"val/loss/{task}/{name}": found[task, name] / found[task, ""] for task, name in counted}


def _add(sums: dict[tuple[Task, str], float], objective: HeldOutObjective, model: nn.Module, batch: MicroBatch) -> None:
    """Adds a batch's terms, summed over its response tokens, and under the empty name their number."""
    passes = Passes()
    for task, rows in batch.tasks.items():
        tokens = len(rows.targets)
        sums[task, ""] += tokens
        for name, value in objective.task_loss(model, task, rows, tokens, passes=passes).values.items():
            sums[task, name] += tokens * float(value)
