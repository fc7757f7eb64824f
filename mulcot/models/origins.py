"""What a stage's checkpoint says of its model, and whether its weights fit another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from mulcot.models.sources import Lora, find_model
from mulcot.types import InputError


def check_fits(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> None:
    """Refuses a checkpoint's trained weights that are not those of this model.

    Args:
        old: the checkpoint's.
        new: this model's.

    Raises:
        InputError: a weight is missing, or has another shape.
    """
    if told := misfit(old, new):
        raise InputError(
            f"the checkpoint's weights do not fit this model, against which no --allow_changed helps: {told}; take its "
            "model and adapter, or give --fresh"
        )


def misfit(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> str:
    """The first of a checkpoint's weights that is not that of a model, with both shapes; empty where all fit.

    Args:
        old: the checkpoint's.
        new: the model's.
    """
    # Two shapes say more than one weight that is not there, as in a model that is wider and has more layers.
    for name in (*(name for name in new if name in old), *new, *old):
        shapes = [str(list(each[name].shape)) if name in each else "not there" for each in (old, new)]
        if shapes[0] != shapes[1]:
            return f"{name} was {shapes[0]}, is {shapes[1]}"
    return ""


def model_origin(name: str, lora: Lora | None, freeze_vision: bool) -> dict[str, Any]:
    """What a checkpoint says of the model that it was trained from; see `find_model`.

    Args:
        name: of the model, as it was given.
        lora: the adapter that is trained on it.
        freeze_vision: whether the vision tower is not.
    """
    source = find_model(name)
    return {
        "pretrained": source.name if source.checkpoint is None else str(source.checkpoint),  # from any folder
        "lora": asdict(lora) if lora else None,
        "freeze_vision": freeze_vision,
    }
