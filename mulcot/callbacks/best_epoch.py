"""The checkpoint of the best epoch, and of the last one to resume from."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor


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
