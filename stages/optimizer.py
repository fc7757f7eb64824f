"""AdamW of a stage: its settings, its groups of weights, its learning rate over time, and the gradients before it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from mulcot.models import not_finite, whole
from mulcot.ranges import Natural, NonNegative, Positive, Share, ShareBelowOne


@dataclass
class Optimizer:
    """AdamW and its learning rate over time."""

    learning_rate: Positive = 3e-4
    """The peak; the published code uses 3e-4."""
    weight_decay: NonNegative = 0.01
    """Decoupled decay of matrices; vectors (norms, biases) are not decayed."""
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.999)
    """Decay rates of the two moments."""
    schedule: Literal["constant", "cosine", "plateau"] = "constant"
    """`cosine` falls to 0 at the last step, `plateau` reduces when validation stops improving."""
    warmup: Share = 0.0
    """Share of all optimizer steps in which a cosine schedule rises to the peak."""
    plateau_factor: ShareBelowOne = 0.5
    """What `plateau` multiplies the learning rate by."""
    plateau_patience: Natural = 2
    """Epochs without improvement that `plateau` waits."""


def adamw(settings: Optimizer, parameters: Iterable[nn.Parameter], precision: Precision) -> torch.optim.AdamW:
    """AdamW over what is trained, all of it in one kernel where that can be.

    Args:
        settings: of the optimizer.
        parameters: all of a stage.
        precision: Lightning's plugin.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # A fused step takes the loss scale of fp16 out of the gradients by itself: clipping before it would clip wrongly.
    fused = not has_loss_scale(precision)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=fused)


def with_schedule(settings: Optimizer, optimizer: torch.optim.Optimizer, steps: float) -> OptimizerLRScheduler:
    """The optimizer with its learning rate over time, as Lightning takes them.

    Args:
        settings: of the optimizer.
        optimizer: made of them.
        steps: all optimizer steps of the fit; infinite where the fit has no end, which a cosine needs.
    """
    if settings.schedule == "cosine":
        scheduler = get_cosine_schedule_with_warmup(optimizer, int(settings.warmup * steps), int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
    if settings.schedule == "plateau":
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", factor=settings.plateau_factor, patience=settings.plateau_patience
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val/accuracy"}}
    return optimizer


class OtherRates(Callback):
    """Has a resumed fit take the optimizer's settings as they are now; its moments stay as they were saved.

    Lightning restores the learning rate and the decay with the moments. A plateau is waited for anew.

    Args:
        settings: of the optimizer.
    """

    def __init__(self, settings: Optimizer) -> None:
        self.settings = settings

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Leaves out the state of a schedule that may be of another kind."""
        checkpoint["lr_schedulers"] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replaces what was restored."""
        rate, groups = self.settings.learning_rate, trainer.optimizers[0].param_groups
        for group, decay in zip(groups, (self.settings.weight_decay, 0.0), strict=True):
            group |= {"lr": rate, "initial_lr": rate, "betas": self.settings.betas, "weight_decay": decay}
        for scheduler in (each.scheduler for each in trainer.lr_scheduler_configs):
            if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
                scheduler.base_lrs = [rate] * len(groups)
                scheduler.last_epoch = trainer.global_step
                for group, share in zip(groups, scheduler.lr_lambdas, strict=True):
                    group["lr"] = rate * share(trainer.global_step)


class Gradients:
    """The gradients of one optimizer step; their norm is taken once, for the check and for the clipping.

    Args:
        optimizer: whose weights'.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        self._norm = torch.nn.utils.get_total_norm(gradients)  # each process knows its part, where weights are spread
        self.norm = whole(self._norm)
        """Of all of them together, a scalar; NaN or infinite where one of them is."""

    def clip(self, limit: float, algorithm: str | None) -> None:
        """Clips them; Lightning 2.6.6 refuses that for a fused optimizer under autocast, on account of fp16.

        Args:
            limit: the largest norm of all of them together, or the largest value.
            algorithm: `value`, else the norm.
        """
        if algorithm == "value":
            torch.nn.utils.clip_grad_value_(self._weights, limit)
        else:
            torch.nn.utils.clip_grads_with_norm_(self._weights, limit, self._norm)

    def wrong(self, names: Iterable[tuple[str, nn.Parameter]]) -> list[str]:
        """The weights whose gradients are not all finite numbers.

        Args:
            names: the weights by name.
        """
        return not_finite((name, weight.grad) for name, weight in names if weight.grad is not None)


def has_loss_scale(precision: Precision) -> bool:
    """Whether gradients are scaled (fp16): infinite ones are then a matter of the scaler, which leaves the step out.

    Args:
        precision: Lightning's plugin.
    """
    return getattr(precision, "scaler", None) is not None
