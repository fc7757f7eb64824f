"""What the processes of a run tell each other."""

from __future__ import annotations

from typing import TypeVar

import torch
from lightning.pytorch import Trainer

T = TypeVar("T")


def of_all_ranks(trainer: Trainer, mine: T) -> list[T]:
    """What every rank gave, by rank; each of them has to call it.

    Args:
        trainer: of the run.
        mine: what this rank gives; it must be possible to pickle it.
    """
    if trainer.world_size == 1:
        return [mine]
    given: list[T] = [mine] * trainer.world_size
    torch.distributed.all_gather_object(given, mine)
    return given
