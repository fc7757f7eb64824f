"""AdamW of a stage: its settings, its groups of weights, its learning rate over time, and the clipping before it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from transformers import get_cosine_schedule_with_warmup

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
    fused = getattr(precision, "scaler", None) is None
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


def clips_itself(precision: Precision) -> bool:
    """Whether gradients are as they are (bf16 has no loss scale) although Lightning's plugin refuses to clip them.

    Lightning 2.6.6 refuses every fused optimizer under autocast, on account of fp16.

    Args:
        precision: Lightning's plugin.
    """
    return isinstance(precision, MixedPrecision) and precision.scaler is None


def clip(precision: Precision, optimizer: torch.optim.Optimizer, limit: float, algorithm: str | None) -> None:
    """Clips the gradients of an optimizer's weights, as the plugin itself does without autocast.

    Args:
        precision: Lightning's plugin.
        optimizer: whose weights.
        limit: the largest norm of all gradients together, or the largest value.
        algorithm: `value`, else the norm.
    """
    if algorithm == "value":
        precision.clip_grad_by_value(optimizer, limit)
    else:
        precision.clip_grad_by_norm(optimizer, limit)
