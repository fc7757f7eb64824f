"""A student's log-probabilities with one `[tokens, vocab]` temporary, which the backward turns into the gradient.

Plain autograd makes four to eight such temporaries for one divergence, and at 151,936 ids moving them costs more time
than the arithmetic.

Each loss is one number per token, of that token's logits alone. So the derivative may be made in the forward, while the
exponentials are at hand, and only be scaled in the backward. The first backward takes the buffer over and writes into
it; a further one through the same graph (`retain_graph=True`) makes it anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mulcot.losses.views import accumulable

BlockLoss = Callable[[Tensor, slice], Tensor]
"""From the logits of some tokens `[block, rows]`, in fp32 at least, and which tokens these are to a loss per token."""

_BLOCK: Final = {"cpu": 2**20, "other": 2**24}
"""Logits in a block. On a CPU 4 MiB: several of them fit its last cache; more took more time, measured up to 16 MiB.
Elsewhere starting a kernel must cost little beside its work."""


def log_probs_at(logits: Tensor, ids: Tensor, temperature: float, rows: int | None = None) -> Tensor:
    """Log-softmax of logits / T at some ids, which may repeat.

    Args:
        logits: `[tokens, vocab]`, finite, of any floating dtype.
        ids: `[tokens, k]` int64, each below `rows`.
        temperature: T.
        rows: the ids that count, 0 to `rows` - 1; None for all.

    Returns:
        `[tokens, k]`, fp32 at least.
    """
    return _LogProbs.apply(logits, ids, temperature, rows, False, _differentiable(logits))


def log_probs_and_tail(logits: Tensor, ids: Tensor, temperature: float, rows: int | None = None) -> Tensor:
    """Log-softmax of logits / T at some distinct ids, and the log of the sum of all others' probabilities.

    The tail is summed from its own ids: 1 - Σ of the others has no correct digit when a token is nearly certain.

    Args:
        logits: `[tokens, vocab]`, finite, of any floating dtype.
        ids: `[tokens, k]` int64, distinct within a token and fewer than `rows`.
        temperature: T.
        rows: the ids that count, 0 to `rows` - 1; None for all.

    Returns:
        `[tokens, k + 1]`, fp32 at least, the tail last.
    """
    return _LogProbs.apply(logits, ids, temperature, rows, True, _differentiable(logits))


def scaled_log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """Log-softmax of logits / T over the last dimension, with autograd's own temporaries, in fp32 at least."""
    logits = accumulable(logits)
    # Taking the maximum off first keeps the digits that an offset of 1e4 would cost; as a constant it has no gradient.
    return ((logits - logits.detach().amax(dim=-1, keepdim=True)) / temperature).log_softmax(dim=-1)


def by_block(loss: BlockLoss, logits: Tensor, rows: int) -> Tensor:
    """Evaluate a loss of whole rows on a few tokens at a time, so that its temporaries stay in the processor's cache.

    Args:
        loss: written with plain differentiable operations; each token's value depends on its own logits alone.
        logits: `[tokens, vocab]`, of any floating dtype.
        rows: the ids that count, 0 to `rows` - 1; the loss sees no other.

    Returns:
        `[tokens]`, fp32 at least.
    """
    return _ByBlock.apply(logits, loss, rows, _differentiable(logits))


class _LogProbs(torch.autograd.Function):
    """Log-probabilities at ids, with or without a last bucket for all other ids."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, ids: Tensor, temperature: float, rows: int | None, tail: bool, keep: bool
    ) -> Tensor:
        exps, top, total = _exponentials(logits, ids if tail else None, temperature, rows)
        kept = accumulable(logits.gather(-1, ids))
        if tail:
            highest = torch.maximum(top, kept.amax(dim=-1, keepdim=True))
            log_others = (top - highest) / temperature + total.log()
            log_q = torch.cat([(kept - highest) / temperature, log_others], dim=-1).log_softmax(dim=-1)
        else:
            log_q = (kept - top) / temperature - total.log()
        if keep:
            ctx.save_for_backward(logits, ids, log_q, total)
            ctx.temperature, ctx.rows, ctx.tail, ctx.buffer = temperature, rows, tail, exps
        return log_q

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        logits, ids, log_q, total = ctx.saved_tensors
        exps, ctx.buffer = ctx.buffer, None
        if exps is None:
            exps, _, _ = _exponentials(logits, ids if ctx.tail else None, ctx.temperature, ctx.rows)
        all_buckets = upstream.sum(dim=-1, keepdim=True)
        if ctx.tail:
            parts = (upstream - log_q.exp() * all_buckets) / ctx.temperature
            at_ids, elsewhere = parts[:, :-1], parts[:, -1:]
        else:
            at_ids, elsewhere = upstream / ctx.temperature, -all_buckets / ctx.temperature
        gradient = exps.mul_(elsewhere / total).scatter_add_(-1, ids, at_ids)
        return gradient.to(logits.dtype), None, None, None, None, None


def _exponentials(
    logits: Tensor, without: Tensor | None, temperature: float, rows: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """exp((logits - top) / T) `[tokens, vocab]`, 0 at the ids left out; their maximum and sum `[tokens, 1]`."""
    work = accumulable(logits)
    if without is not None or rows not in (None, logits.shape[-1]):
        work = work.clone() if work is logits else work
        if rows is not None:
            work[:, rows:] = -math.inf
        if without is not None:
            work.scatter_(-1, without, -math.inf)
    top = work.amax(dim=-1, keepdim=True)
    work = work - top if work is logits else work.sub_(top)
    # exp takes thirty times as long where it underflows (MKL, below -87), exp2 does not.
    work.mul_(math.log2(math.e) / temperature).exp2_()
    return work, top, work.sum(dim=-1, keepdim=True)


class _ByBlock(torch.autograd.Function):
    """A loss of whole rows, its gradient made block by block in the forward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, loss: BlockLoss, rows: int, keep: bool) -> Tensor:
        values, gradient = _values_and_gradient(logits, loss, rows, keep)
        if keep:
            ctx.save_for_backward(logits)
            ctx.loss, ctx.rows, ctx.buffer = loss, rows, gradient
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (logits,) = ctx.saved_tensors
        gradient, ctx.buffer = ctx.buffer, None
        if gradient is None:
            _, gradient = _values_and_gradient(logits, ctx.loss, ctx.rows, True)
        return gradient.mul_(upstream.unsqueeze(-1)).to(logits.dtype), None, None, None


def _values_and_gradient(logits: Tensor, loss: BlockLoss, rows: int, keep: bool) -> tuple[Tensor, Tensor | None]:
    """The loss of every token `[tokens]` and, if it is to be kept, its derivative `[tokens, vocab]`, in fp32 at least.

    Under an outer `no_grad`, as an autograd function's forward is.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    values = torch.empty(len(logits), dtype=dtype, device=logits.device)
    gradient = torch.empty_like(logits, dtype=dtype) if keep else None
    if gradient is not None:
        gradient[:, rows:] = 0
    step = max(1, _BLOCK.get(logits.device.type, _BLOCK["other"]) // rows)
    for start in range(0, len(logits), step):
        tokens = slice(start, start + step)
        block = accumulable(logits[tokens, :rows]).detach().requires_grad_(keep)
        with torch.set_grad_enabled(keep):
            value = loss(block, tokens)
        values[tokens] = value.detach()
        if gradient is not None:
            (gradient[tokens, :rows],) = torch.autograd.grad(value, block, torch.ones_like(value))
    return values, gradient


def _differentiable(logits: Tensor) -> bool:
    return logits.requires_grad and torch.is_grad_enabled()
