"""How far a stage is, in a small file that `mulcot run` reads for its display."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import RunningStage

from mulcot.files import write_atomic


class ProgressFile(Callback):
    """Writes `progress.json` (`phase`, `done`, `total`, `unit`) at most twice a second.

    Args:
        folder: the stage's directory.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = Path(folder) / "progress.json"
        self._last = 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Counts training batches over all epochs."""
        batches = int(trainer.num_training_batches)
        done = batches * trainer.current_epoch + trainer.fit_loop.batch_idx + 1
        self._write(trainer, "train", done, batches * (trainer.max_epochs or 1))

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Counts batches of a validation that stands alone; inside `fit` the training batches count."""
        if trainer.state.stage is RunningStage.VALIDATING:
            self._write(trainer, "validate", args[3] + 1, int(sum(trainer.num_val_batches)))

    def on_test_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Counts test batches."""
        self._write(trainer, "test", args[3] + 1, int(sum(trainer.num_test_batches)))

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Counts prediction batches over all data loaders, unless the stage tells of its progress itself."""
        if getattr(pl_module, "reports_progress", False):
            return
        before = sum(trainer.num_predict_batches[: args[3]]) if len(args) > 3 else 0
        self._write(trainer, "predict", int(before) + args[2] + 1, int(sum(trainer.num_predict_batches)))

    def _write(self, trainer: Trainer, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if not trainer.is_global_zero or (now - self._last < 0.5 and done != total):
            return
        self._last = now
        values = {"phase": phase, "done": done, "total": total, "unit": "batches"}
        write_atomic(self.path, json.dumps(values))
