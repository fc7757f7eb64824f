"""The checkpoint of the best epoch."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any, Final

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from mulcot.checkpoints import read_checkpoint
from mulcot.types import InputError

_LOG: Final = logging.getLogger(__name__)
_REMEDY: Final = "validate earlier (trainer.val_check_interval, trainer.check_val_every_n_epoch)"


class BestEpoch(ModelCheckpoint):
    """Keeps the best epoch; of epochs that are equally good the latest, which has learnt the most.

    On a hard data set a model says the majority class for some epochs while its rationales get better: accuracy and F1
    do not move, and the first of these epochs would be taken. A fit without a validation has no best epoch and is
    refused.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuses a fit that is known to end without a validation, before its first step."""
        super().on_train_start(trainer, pl_module)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if not trainer.enable_validation:
            raise InputError(
                f"trainer.limit_val_batches={trainer.limit_val_batches:g} leaves the fit without a validation, by "
                "which the best epoch is chosen: set it to 1 or more batches, or leave it out"
            )
        if trainer.global_step == 0:  # where a fit goes on, its epochs may have had other lengths
            _check_length(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuses a fit whose end could not be known: a callback stopped it, or a checkpoint left nothing to train."""
        if not self.best_model_path and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise InputError(
                f"the fit ended at step {trainer.global_step} without a validation, by which the best epoch is chosen: "
                f"train longer (trainer.max_steps, trainer.max_epochs, trainer.max_time) or {_REMEDY}. Every "
                "checkpoint is kept, and with --allow_changed schedule the fit goes on from the last one"
            )

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """Whether this epoch is to be kept: it is better than the best so far, or as good."""
        best = self.best_k_models.get(self.kth_best_model_path)
        is_equal = current is not None and best is not None and bool(torch.eq(current, best))
        return super().check_monitor_top_k(trainer, current) or is_equal

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in the base class, for a run that was moved, too; a best epoch that cannot be read is no best epoch."""
        folder = Path(str(self.dirpath))
        best = {str(folder / Path(path).name): score for path, score in state_dict["best_k_models"].items()}
        try:
            for path in best:
                read_checkpoint(path, mmap=True)
        except InputError as error:
            _LOG.warning("%s. The best of the epochs to come takes its place", error)
            return
        moved = {
            name: str(folder / Path(state_dict[name]).name) if state_dict[name] else ""
            for name in ("best_model_path", "kth_best_model_path", "last_model_path")
        }
        super().load_state_dict({**state_dict, **moved, "best_k_models": best, "dirpath": self.dirpath})
        self.current_score = state_dict["current_score"]


def _check_length(trainer: pl.Trainer) -> None:
    """Refuses a number of steps or epochs within which there is no validation.

    Raises:
        InputError: names the setting, and the step after which the first validation is due.
    """
    batches, interval, every = trainer.num_training_batches, trainer.val_check_batch, trainer.check_val_every_n_epoch
    if interval is None or math.isinf(interval) or math.isinf(batches):  # by the clock, or epochs of unknown length
        return
    first = int(interval) if every is None else (every - 1) * int(batches) + int(interval)
    steps = math.ceil(batches / trainer.accumulate_grad_batches)  # of an epoch; the last one may have fewer batches
    limits = {}
    if trainer.max_steps > 0:
        epochs, step = divmod(trainer.max_steps - 1, steps)
        within = min((step + 1) * trainer.accumulate_grad_batches, int(batches))
        limits[f"trainer.max_steps={trainer.max_steps}"] = epochs * int(batches) + within
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        limits[f"trainer.max_epochs={trainer.max_epochs}"] = trainer.max_epochs * int(batches)
    for setting, last in limits.items():
        if last < first:
            epochs, batch = divmod(first, int(batches))
            due = epochs * steps + math.ceil(batch / trainer.accumulate_grad_batches)
            raise InputError(
                f"{setting} ends the fit before its first validation, which is due after step {due} and chooses the "
                f"best epoch: raise it, or {_REMEDY}"
            )
