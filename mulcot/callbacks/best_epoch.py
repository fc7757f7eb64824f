"""The checkpoint of the best epoch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from mulcot.checkpoints import read_checkpoint
from mulcot.types import InputError

_LOG: Final = logging.getLogger(__name__)


class BestEpoch(ModelCheckpoint):
    """Keeps the best epoch; of epochs that are equally good the latest, which has learnt the most.

    On a hard data set a model says the majority class for some epochs while its rationales get better: accuracy and F1
    do not move, and the first of these epochs would be taken.
    """

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
