"""Memory that ran out: how it is told from other errors, and what may be lowered."""

from __future__ import annotations

from typing import Final

import torch

_ALLOCATORS: Final = (
    "DefaultCPUAllocator",
    "can't allocate memory",
    "out of memory",
    "failed to allocate memory",
    "Cannot allocate memory",
)
"""How torch's allocators of host memory, and libraries below it, say that there is none left."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch has a class for it on a GPU, and words of its allocators on a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(_said(error))


def memory_advice(error: BaseException) -> str:
    """What to lower in a stage that `is_out_of_memory`, in one line.

    Args:
        error: what ended the stage.
    """
    said = _said(error)
    return (
        f"out of memory{f' ({said[:200]})' if said else ''}. In training deal a step into more micro-batches "
        "(trainer.accumulate_grad_batches; data.init_args.max_tokens says which micro-batch is too large), set "
        "model.init_args.activation_checkpointing=true, train an adapter (model.init_args.lora) on quantised weights "
        "(model.init_args.quantise=4bit), or take smaller pictures (model.init_args.image_size); in evaluation lower "
        "data.init_args.eval_max_tokens or eval_batch_size. A fit goes on from its last checkpoint"
    )


def _said(error: BaseException) -> str:
    """The allocator's own line; empty where no allocator is heard."""
    return next((line.strip() for line in str(error).splitlines() if any(text in line for text in _ALLOCATORS)), "")
