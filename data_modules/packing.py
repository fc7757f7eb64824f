"""Batches on their way out of a worker process, with all their tensors in one block of shared memory.

A DataLoader opens a shared file and a socket for every tensor, which cost more than everything else that the training
process does for a batch of the embedded student (3.4 ms of 3.7 for seven tensors; `python -m benchmarks.data` shows
what is left).
"""

from __future__ import annotations

import ctypes
import io
import os
import pickle
import signal
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

_ALIGNMENT: Final = 64
_END_WITH_PARENT: Final = 1
"""PR_SET_PDEATHSIG of linux/prctl.h."""


class PackedBatches(Dataset[Any]):
    """A data set of batches that come out of worker processes packed.

    Args:
        batches: the data set.
    """

    def __init__(self, batches: Dataset[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __getitem__(self, index: Any) -> Any:
        batch = self.batches[index]
        return batch if get_worker_info() is None else pack(batch)


class BatchLoader(DataLoader[Any]):
    """A DataLoader over `PackedBatches` that unpacks what its workers send.

    Args:
        batches: the data set.
        options: further arguments of the DataLoader.
    """

    def __init__(self, batches: PackedBatches, **options: Any) -> None:
        super().__init__(batches, batch_size=None, collate_fn=_as_it_is, **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            yield unpack(*batch) if self.num_workers else batch


def stand_alone(worker: int) -> None:
    """Has a worker process end with the process that it works for, and not by the signals that stop that one.

    A signal to a process group, such as Ctrl-C or SLURM's, would end the workers before the fit has saved its step.

    Args:
        worker: its number.
    """
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL)


def _as_it_is(batch: Any) -> Any:
    """The batch: what makes it leaves nothing to convert, and looking for tensors in every post takes long."""
    return batch


def pack(batch: Any) -> tuple[bytes, list[tuple[int, int]], Tensor]:
    """A batch as its structure, the place of every tensor's content, and one tensor with all contents, `[bytes]`."""
    buffers: list[pickle.PickleBuffer] = []
    written = io.BytesIO()
    _Pickler(written, protocol=5, buffer_callback=buffers.append).dump(batch)
    places = []
    end = 0
    for buffer in buffers:
        start = -(-end // _ALIGNMENT) * _ALIGNMENT
        end = start + buffer.raw().nbytes
        places.append((start, end))
    block = torch.empty(end, dtype=torch.uint8)
    view = block.numpy().data
    for buffer, (start, stop) in zip(buffers, places, strict=True):
        view[start:stop] = buffer.raw()
    return written.getvalue(), places, block


def unpack(structure: bytes, places: list[tuple[int, int]], block: Tensor) -> Any:
    """What `pack` was given; its tensors lie in `block`."""
    view = block.numpy().data
    return pickle.loads(structure, buffers=[view[start:end] for start, end in places])


class _Pickler(pickle.Pickler):
    """Writes a CPU tensor as a NumPy array, whose content goes out of band."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.dtype != torch.bfloat16:
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented
