"""Checkpoints to resume from: at boundaries of optimizer steps, within an epoch too, and before a signal ends the fit.

Lightning can go on from within an epoch when the state of its loops says that it is between two steps. When a callback
could save, the loops say that a batch, or a validation batch, has just begun. What they say is put right here. Nor
does Lightning keep the metrics that callbacks watch: at an epoch's end, after a validation's save, they look for them.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final, Literal

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from mulcot.interruptions import Interrupted, Interruptions
from mulcot.models import refuse_diverged
from mulcot.types import InputError

_LOOP: Final = "epoch_loop.batch_progress"
_METRICS: Final = "callback_metrics"
"""Where a checkpoint has them."""
_VAL_LOOP: Final = "epoch_loop.val_loop.batch_progress"
_FIRST_BEGUN: Final = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
"""Of an evaluation: Lightning takes it up again from its first batch."""


class StepCheckpoints(Checkpoint):
    """Saves the last optimizer step: every so many steps or minutes, after each validation, and when a signal arrives.

    What is logged up to a saved step is on disk before the checkpoint is. A resumed fit logs the steps after it again,
    with the same values: where a fit was killed, TensorBoard has them twice.

    Args:
        every_steps: optimizer steps between saves; null saves by time alone.
        every_minutes: minutes between saves; null saves by steps alone. With both, what comes first.
    """

    def __init__(self, every_steps: int | None = None, every_minutes: float | None = 10.0) -> None:
        super().__init__()
        for name, value in (("every_steps", every_steps), ("every_minutes", every_minutes)):
            if value is not None and not value > 0:
                raise InputError(f"checkpoints.{name} is {value}; it must be above 0, or null")
        self.every_steps = every_steps
        self.every_minutes = every_minutes
        self.path = Path("last.ckpt")
        """Where it saves; the command line sets it."""
        self.interruptions = Interruptions()
        """What tells of signals; the command line sets it."""
        self._saved_step = 0
        self._saved_at = 0.0
        self._within: Literal["epoch", "validation"] | None = None
        self._metrics: dict[str, torch.Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal waits for the end of the optimizer step; a resumed fit gets its metrics back."""
        metrics, self._metrics = self._metrics, {}
        trainer.callback_metrics.update({name: value.to(pl_module.device) for name, value in metrics.items()})
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        self.interruptions.held = True
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if data.begins_epoch_anew:
            _begin_epoch_anew(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Saves the optimizer step before, with all that was logged of it, when it is time."""
        if batch_idx % trainer.accumulate_grad_batches:
            return
        number, is_due = self._agreed(trainer)
        if (number or is_due) and batch_idx:
            self._save(trainer, "epoch")
        if number and (batch_idx or trainer.global_step == self._saved_step):  # else after the next step
            self._leave(trainer, number)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses weights that could not be saved after the validation, and would answer nothing in it."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            refuse_diverged(pl_module, trainer.global_step)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Saves the step before a validation that a signal ends; the resumed fit begins it anew."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if trainer.world_size > 1 and batch_idx:  # ranks may have different numbers of batches
            return
        number, _ = self._agreed(trainer)
        if number:
            self._save(trainer, "validation")
            self._leave(trainer, number)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves every validation's epoch, the best or not."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._save(trainer, None)
        number, _ = self._agreed(trainer)
        if number:
            self._leave(trainer, number)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves what no validation has seen; a signal now ends what comes at once."""
        if trainer.global_step > self._saved_step:
            self._save(trainer, None)
        self.interruptions.held = False
        if self.interruptions.received:
            self._leave(trainer, self.interruptions.received)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Nothing is saved any more."""
        self.interruptions.held = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Puts right where the loops are, and keeps the metrics that EarlyStopping and its like watch."""
        checkpoint[_METRICS] = {
            name: value.detach().to("cpu", copy=True) for name, value in trainer.callback_metrics.items()
        }
        progress = checkpoint["loops"]["fit_loop"]
        if self._within == "epoch":  # the next batch has begun
            for part in ("total", "current"):
                progress[_LOOP][part]["ready"] = progress[_LOOP][part]["completed"]
            progress[_LOOP]["is_last_batch"] = False
        elif self._within == "validation":
            for part in ("total", "current"):
                progress[_VAL_LOOP][part] = dict(_FIRST_BEGUN)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keeps the metrics until training starts: Lightning forgets them before that."""
        self._metrics = dict(checkpoint.get(_METRICS, {}))

    def _agreed(self, trainer: Trainer) -> tuple[int, bool]:
        """The signal that any rank got, and whether to save: ranks get signals, and look at clocks, at other times."""
        minutes = (time.monotonic() - self._saved_at) / 60
        is_late = self.every_minutes is not None and minutes >= self.every_minutes
        steps = trainer.global_step - self._saved_step
        is_due = is_late or (self.every_steps is not None and steps >= self.every_steps)
        number = self.interruptions.received
        if trainer.world_size > 1:
            mine = torch.tensor([number, int(is_due)], device=trainer.strategy.root_device)
            torch.distributed.all_reduce(mine, op=torch.distributed.ReduceOp.MAX)
            number, is_due = int(mine[0]), bool(mine[1])
            self.interruptions.are_agreed = number > 0
        return number, is_due

    def _save(self, trainer: Trainer, within: Literal["epoch", "validation"] | None) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if within is not None and trainer.global_step == self._saved_step:
            return
        for logger in trainer.loggers:
            logger.save()
        self._within = within
        try:
            trainer.save_checkpoint(self.path, weights_only=False)
        finally:
            self._within = None
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()

    def _leave(self, trainer: Trainer, number: int) -> None:
        step = trainer.global_step
        said = f"step {step} is saved in {self.path}, and {self.interruptions.again} goes on from there" if step else ""
        raise Interrupted(number, said or "nothing was trained yet")


def _begin_epoch_anew(trainer: Trainer) -> None:
    """Has a resumed fit take an epoch from its first batch, or be done with one that was over, whatever its length."""
    loop = trainer.fit_loop.epoch_loop
    if not loop.batch_progress.is_last_batch:
        loop.restarting = False
        return
    current: Any = loop.batch_progress.current
    current.ready = current.started = current.processed = current.completed = int(trainer.num_training_batches)
