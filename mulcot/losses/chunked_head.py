"""All loss terms of a task from one projection of its response tokens, in chunks, without keeping their logits.

Logits `[tokens, vocab]` are the largest tensor of a training step, and autograd keeps several of them for a loss. Here
a chunk of tokens is projected into a buffer, the terms and their gradients with respect to the logits are computed at
once, the gradient takes the logits' place in the buffer and is projected back; then the buffer serves the next chunk.
What the backward pass needs, the gradient of `hidden` and of a head that is trained, is ready before it starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from mulcot.losses.views import View, accumulable
from mulcot.types import InputError

TokenLoss = Callable[[Tensor, Tensor, View | None], Tensor]
"""From logits `[tokens, vocab]`, targets `[tokens]` and a view of the same tokens to a loss per token `[tokens]`.

Gradients flow to the logits alone. They are in fp32 at least, are lent for the call, and must not be changed in place.
"""

_CHUNK_BYTES: Final = 300 * 2**20
"""Logits that are projected at once, elsewhere than on a CPU: 512 tokens of 151,936 ids in fp32."""
_CHUNK_ON_CPU: Final = (256, 28 * 2**20)
"""On a CPU so many tokens, below which matrix products get slower, or as many as have logits of so many bytes."""
_SLICE_BYTES: Final = {"cpu": 8 * 2**20}
"""Of these, fp32 logits that the terms see at once. glibc takes blocks up to 32 MiB from memory that it has, and larger
ones from the kernel, page by page: on the CPU small slices halve the time of everything but the projection."""
_SLICE_BYTES_ELSEWHERE: Final = 128 * 2**20
_ROWS_AT_ONCE: Final = 8192
"""Rows of the head whose gradient is summed at once when it is summed in a wider type than it is computed in."""


@dataclass(frozen=True, eq=False)
class Head:
    """The output projection: logits = softcap · tanh((hidden · weightᵀ + bias) / softcap)."""

    weight: Tensor
    """`[vocab, hidden]`; it is trained if it requires a gradient, and may be the embedding too."""
    bias: Tensor | None = None
    """`[vocab]`."""
    softcap: float | None = None
    """The model's final logit soft-cap; None for none."""


@dataclass(frozen=True)
class Term:
    """One term of the objective of a task."""

    name: str
    """Its name, which no other term of the task has."""
    loss: TokenLoss
    """The pure function."""
    coefficient: float
    """What its loss is multiplied by; a term of coefficient 0 is evaluated and takes no part in the total."""
    is_soft: bool
    """Whether it learns from the assistant; only inspection tells the two kinds apart."""


@dataclass(frozen=True, eq=False)
class HeadLoss:
    """What the terms of a task come to."""

    total: Tensor
    """Σ_terms coefficient · Σ_tokens loss: a scalar, fp32 at least, that can be back-propagated once."""
    per_token: dict[str, Tensor]
    """`[tokens]` for each term: its loss without the coefficient, fp32 at least, without a graph."""
    predicted: Tensor | None
    """`[tokens]` int64, the student's likeliest id; None unless inspected."""
    gradient_norms: dict[str, Tensor] | None
    """For "hard" and "soft" the norm, over all tokens, of the gradient of these terms' part of the total with respect
    to `hidden`; None unless inspected, and where no gradient is computed."""


def chunked_loss(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    view: View | None,
    terms: Sequence[Term],
    *,
    chunk_tokens: int | None = None,
    inspect: bool = False,
) -> HeadLoss:
    """Projects the hidden states of response tokens in chunks and evaluates all terms on each.

    Under autocast the projections run in its type; losses and sums over chunks are in fp32 whatever the type. Without
    grad mode values alone are computed.

    Args:
        hidden: `[tokens, hidden]`, the head's input at the positions that predict the targets; may have no token.
        head: the output projection. No gradient is computed for a part of it that does not require one.
        targets: `[tokens]` int64, the response tokens.
        view: what the assistant thinks of the same tokens; None when there is no assistant.
        terms: the terms; with none the total is 0.
        chunk_tokens: tokens that are projected at once; None for what suits the device, 300 MiB of logits at most.
        inspect: also finds the likeliest ids and the gradient norms, which takes one more projection of the gradient.

    Returns:
        The total, whose backward pass only multiplies gradients that are there, and the parts it is made of.

    Raises:
        InputError: tokens of hidden states, targets and view differ in number, two terms have one name, a term gives
            back anything but one loss per token, or `chunk_tokens` is below 1.
        RuntimeError: in the backward pass, when it is run twice or is itself to be differentiated.
    """
    _check(hidden, targets, view, terms, chunk_tokens)
    parts = (hidden, head.weight, head.bias)
    trained = [torch.is_grad_enabled() and part is not None and part.requires_grad for part in parts]
    sums = _Sums(hidden, head, terms, trained, inspect)
    with torch.no_grad():
        for tokens in _pieces(len(hidden), chunk_tokens or sums.chunk_tokens()) if terms or inspect else ():
            # A view that is projected here follows autocast, as the assistant's own head would.
            chunk_view = None if view is None else view[tokens]
            with torch.autocast(hidden.device.type, enabled=False):
                sums.add(tokens, targets[tokens], chunk_view)
            del chunk_view  # before the next one is projected
        total, norms = sums.total(), sums.norms()
    if any(trained):
        total = _ReadyGradients.apply(total, sums.gradients(), *parts)
    return HeadLoss(total, sums.per_token, sums.predicted, norms)


def _check(hidden: Tensor, targets: Tensor, view: View | None, terms: Sequence[Term], chunk_tokens: int | None) -> None:
    """Refuse what would be computed wrongly without a word."""
    counts = {"hidden states": len(hidden), "targets": len(targets)}
    if view is not None:
        counts["soft labels"] = len(view)
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise InputError(f"a task's response tokens must be the same everywhere; there are {told}")
    names = [term.name for term in terms]
    if len(set(names)) < len(names):
        raise InputError(f"each loss of a task needs a name of its own; these are {names}")
    if chunk_tokens is not None and chunk_tokens < 1:
        raise InputError(f"chunk_tokens: {chunk_tokens} is not possible; it must be 1 or more")


def _pieces(count: int, size: int) -> Iterator[slice]:
    """0 to `count` in slices of at most `size`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


class _Sums:
    """What is summed over chunks, and the buffers that every chunk uses anew.

    Args:
        hidden: see `chunked_loss`.
        head: see `chunked_loss`.
        terms: see `chunked_loss`.
        trained: whether hidden, weight and bias are to get a gradient.
        inspect: see `chunked_loss`.
    """

    def __init__(
        self, hidden: Tensor, head: Head, terms: Sequence[Term], trained: Sequence[bool], inspect: bool
    ) -> None:
        device = hidden.device.type
        cast = torch.is_autocast_enabled(device) and hidden.dtype != torch.float64  # which autocast leaves alone, too
        self.dtype = torch.get_autocast_dtype(device) if cast else hidden.dtype
        self.sum_dtype = torch.promote_types(self.dtype, torch.float32)
        # Without autocast nothing is cast: types that differ are an error of the product, as in a linear layer.
        self.weight = head.weight.detach().to(self.dtype if cast else head.weight.dtype)
        self.bias = None if head.bias is None else head.bias.detach().to(self.dtype if cast else head.bias.dtype)
        self.softcap, self.hidden, self.terms = head.softcap, hidden.detach(), terms
        self.backward, self.trained = any(trained), trained
        self.per_token = {term.name: hidden.new_zeros(len(hidden), dtype=self.sum_dtype) for term in terms}
        self.predicted = hidden.new_zeros(len(hidden), dtype=torch.int64) if inspect else None
        # What is handed out is computed in the same way whether or not anyone looks, so that looking changes no bit of
        # a run. Only inspection parts gradients by kind, since each part has to be projected back.
        self.kinds = ("all", "hard") if inspect else ("all",)
        self.of_hidden: dict[str, Tensor] = {}
        if self.backward and (inspect or trained[0]):
            self.of_hidden = {kind: torch.zeros_like(self.hidden, dtype=self.sum_dtype) for kind in self.kinds}
        self.of_weight = torch.empty_like(self.weight, dtype=self.sum_dtype) if trained[1] else None
        self.of_bias = hidden.new_zeros(len(head.weight), dtype=self.sum_dtype) if trained[2] else None
        self.buffers: list[Tensor] = []

    def chunk_tokens(self) -> int:
        """How many tokens are projected at once."""
        most = self.fitting(_CHUNK_BYTES)
        if self.hidden.device.type != "cpu":
            return most
        enough, size = _CHUNK_ON_CPU
        return min(most, max(enough, self.fitting(size)))

    def fitting(self, size: int) -> int:
        """How many tokens have logits of so many bytes, at least one."""
        return max(1, size // (len(self.weight) * self.sum_dtype.itemsize))

    def add(self, tokens: slice, targets: Tensor, view: View | None) -> None:
        """Projects a chunk, evaluates the terms on it, and projects their gradients back."""
        hidden = self.hidden[tokens]
        logits, *others = self._buffers(len(hidden))
        if self.bias is None:
            torch.mm(hidden.to(self.dtype), self.weight.t(), out=logits)
        else:
            torch.addmm(self.bias, hidden.to(self.dtype), self.weight.t(), out=logits)
        per_slice = self.fitting(_SLICE_BYTES.get(hidden.device.type, _SLICE_BYTES_ELSEWHERE))
        for part in _pieces(len(hidden), per_slice):
            place = slice(tokens.start + part.start, tokens.start + part.stop)
            gradients = self._terms(place, logits[part], targets[part], None if view is None else view[part])
            # The gradient of all takes the place of the logits, which no one needs any more.
            for buffer, of_terms in zip((logits, *others), gradients, strict=False):
                _write_sum(buffer[part], of_terms)
        if self.backward:
            self._project_back(tokens, dict(zip(self.kinds, (logits, *others), strict=True)))

    def _buffers(self, count: int) -> list[Tensor]:
        """Room for a chunk's logits and, when gradients are parted by kind, for the second kind."""
        if not self.buffers:
            shape, number = (count, len(self.weight)), len(self.kinds) if self.backward else 1
            self.buffers = [self.hidden.new_empty(shape, dtype=self.dtype) for _ in range(number)]
        return [buffer[:count] for buffer in self.buffers]

    def _terms(self, place: slice, logits: Tensor, targets: Tensor, view: View | None) -> list[list[Tensor]]:
        """Evaluates the terms on a slice of a chunk; gives back the gradients of all and, if inspected, of the hard."""
        seen = accumulable(logits)
        if self.softcap is not None:
            seen = self.softcap * (seen / self.softcap).tanh()
        if self.predicted is not None:
            self.predicted[place] = seen.argmax(dim=-1)
        seen = seen.detach().requires_grad_(self.backward)
        found: dict[str, list[Tensor]] = {kind: [] for kind in self.kinds}
        for term in self.terms:
            with torch.set_grad_enabled(self.backward and term.coefficient != 0):
                loss = term.loss(seen, targets, view)
            if loss.shape != targets.shape:
                raise InputError(
                    f"the loss {term.name} gave back {list(loss.shape)} for {len(targets)} tokens; it must give one "
                    f"number a token, [{len(targets)}]"
                )
            self.per_token[term.name][place] = loss.detach()
            if loss.requires_grad:
                scale = torch.full_like(loss, term.coefficient)
                (gradient,) = torch.autograd.grad(loss, seen, scale, allow_unused=True)
                if gradient is not None:
                    if self.softcap is not None:  # the derivative of c · tanh(x / c) is 1 - tanh²
                        gradient = gradient * (1 - (seen.detach() / self.softcap).square())
                    for kind in self.kinds[:1] if term.is_soft else self.kinds:
                        found[kind].append(gradient)
        return list(found.values()) if self.backward else []

    def _project_back(self, tokens: slice, of_logits: dict[str, Tensor]) -> None:
        """Adds a chunk's gradient of its logits to those of hidden, weight and bias."""
        for kind, total in self.of_hidden.items():
            total[tokens] = of_logits[kind] @ self.weight
        every = of_logits["all"]
        if self.of_weight is not None:
            _add_product(self.of_weight, every, self.hidden[tokens].to(self.dtype), anew=tokens.start == 0)
        if self.of_bias is not None:
            self.of_bias += every.sum(dim=0, dtype=self.sum_dtype)

    def total(self) -> Tensor:
        """The objective, without a graph."""
        parts = [term.coefficient * self.per_token[term.name].sum() for term in self.terms if term.coefficient != 0]
        return torch.stack(parts).sum() if parts else self.hidden.new_zeros((), dtype=self.sum_dtype)

    def norms(self) -> dict[str, Tensor] | None:
        """The norm of the gradient of `hidden` by kind, when inspected."""
        if self.predicted is None or not self.backward:
            return None
        every, hard = self.of_hidden["all"], self.of_hidden["hard"]
        return {"hard": hard.norm(), "soft": (every - hard).norm()}

    def gradients(self) -> list[Tensor | None]:
        """The gradients of hidden, weight and bias, None where none is wanted; they are given away."""
        of_weight = self.of_weight
        if of_weight is not None and not (self.terms and len(self.hidden)):
            of_weight.zero_()  # no chunk has written into it
        of_hidden = self.of_hidden["all"] if self.trained[0] else None
        self.of_weight = None
        return [of_hidden, of_weight, self.of_bias]


def _write_sum(out: Tensor, parts: Sequence[Tensor]) -> None:
    """Writes the sum of parts, which are never changed: they may belong to the terms; the last addition is the copy."""
    if len(parts) < 2:
        out.copy_(parts[0]) if parts else out.zero_()
        return
    first, *rest = parts
    for part in rest[:-1]:
        first = first + part
    torch.add(first, rest[-1], out=out)


def _add_product(total: Tensor, left: Tensor, right: Tensor, *, anew: bool) -> None:
    """Adds leftᵀ · right to a total that may be of a wider type; `anew` overwrites what is in it."""
    if total.dtype == left.dtype:
        total.addmm_(left.t(), right, beta=0 if anew else 1)
        return
    for rows in _pieces(len(total), _ROWS_AT_ONCE):
        product = left[:, rows].t() @ right
        if anew:
            total[rows] = product
        else:
            total[rows] += product


class _ReadyGradients(torch.autograd.Function):
    """A total whose gradients are known: backward multiplies them by what arrives and hands them out."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, gradients: list[Tensor | None], *parts: Tensor | None) -> Tensor:
        """Attaches the gradients of the parts to the total."""
        ctx.gradients = gradients
        ctx.dtypes = [None if part is None else part.dtype for part in parts]
        return total.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Gives the gradients away, scaled in place: there is one of each, and the head's is large."""
        if torch.is_grad_enabled():
            raise RuntimeError("the chunked head has no second derivative: call backward without create_graph")
        if ctx.gradients is None:
            raise RuntimeError("the chunked head can be back-propagated once: add up losses before backward")
        gradients, ctx.gradients = ctx.gradients, None
        return (None, None, *map(_scaled, gradients, [upstream] * len(gradients), ctx.dtypes))


def _scaled(gradient: Tensor | None, by: Tensor, dtype: torch.dtype) -> Tensor | None:
    return None if gradient is None else gradient.mul_(by).to(dtype)
