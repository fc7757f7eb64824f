"""Tensors of which every process has a part (DTensor): whole ones of them, and parts of whole ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole_on_first(tensor: Tensor) -> Tensor:
    """A tensor with all its content, to be saved; one that is spread is gathered, which all processes do together.

    Args:
        tensor: spread over processes or not.

    Returns:
        Without a graph; of one that is spread on the CPU of the first process, and an empty one on the others.
    """
    if isinstance(tensor, DTensor):
        gathered = whole(tensor.detach())
        return gathered.cpu() if torch.distributed.get_rank() == 0 else gathered.new_empty(0)
    found = tensor.detach()
    # A weight that is whole for a while may be a part of the buffer that it was gathered in, which a file would hold.
    return found.clone() if found.untyped_storage().nbytes() > found.nbytes else found


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its content on every process; of one that is spread, all of them have to ask at once.

    Args:
        tensor: spread over processes or not.
    """
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_like(other: Any, tensor: Tensor) -> Tensor:
    """This process's part of a whole tensor, as the other one is spread; the tensor itself where that is whole.

    Args:
        other: a tensor of the same shape.
        tensor: the same on every process.
    """
    if not isinstance(other, DTensor):
        return tensor
    given = tensor.to(other.device)
    return distribute_tensor(given, other.device_mesh, other.placements, src_data_rank=None)
