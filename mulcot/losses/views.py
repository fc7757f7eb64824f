"""What a loss term sees of the assistant: its distribution over the next token, whole, cut to k ids, or sampled.

Every view covers the same tokens in the same order as the student's response tokens, can be sliced along them, and is
without a graph. A cache holds `TopK` or `Sampled`; an assistant that runs beside the student gives `Dense`, which
`Projected` makes chunk by chunk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Final, Literal, Self, cast

import torch
from torch import Tensor

from mulcot.types import InputError

_TEMPERATURE_TOLERANCE: Final = 1e-6

ViewKind = Literal["top_k", "dense", "sampled", "aligned", "hidden"]
"""The forms that a term may ask for."""


class _PerToken:
    """What views whose tensors all run along tokens have in common."""

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(cast(Any, self))}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def __len__(self) -> int:
        """How many tokens there are."""
        return len(next(iter(self._tensors().values())))

    def __getitem__(self, tokens: slice | Tensor) -> Self:
        """The view of some of the tokens: a slice, or an index or boolean mask `[tokens]`."""
        parts = {name: value[tokens] for name, value in self._tensors().items()}
        return cast(Self, replace(cast(Any, self), **parts))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The view on another device."""
        parts = {name: value.to(device, non_blocking=non_blocking) for name, value in self._tensors().items()}
        return cast(Self, replace(cast(Any, self), **parts))


@dataclass(frozen=True, eq=False)
class Dense(_PerToken):
    """The assistant's logits over the whole vocabulary; they serve every temperature."""

    kind: ClassVar[ViewKind] = "dense"

    logits: Tensor
    """`[tokens, vocab]`, of any floating dtype."""
    rows: int | None = None
    """The ids that count, 0 to `rows` - 1; None for as many as both heads have."""

    def at(self, temperature: float) -> Tensor:
        """Log-probabilities `[tokens, vocab]` at a temperature, in fp32 at least.

        Raises:
            InputError: the temperature is not a positive number.
        """
        check_temperature(temperature)
        return (accumulable(self.logits[:, : self.rows]) / temperature).log_softmax(dim=-1)


@dataclass(frozen=True, eq=False)
class TopK(_PerToken):
    """What the assistant thinks of each response token: its k likeliest next tokens and the mass of all others.

    The view serves two temperatures: 1, and the `temperature` whose log-sum-exp it carries.
    """

    kind: ClassVar[ViewKind] = "top_k"

    ids: Tensor
    """`[tokens, k]` int64: vocabulary ids, distinct within a token."""
    log_probs: Tensor
    """`[tokens, k]`: their log-probabilities at T=1, normalised over the whole vocabulary."""
    log_tail: Tensor
    """`[tokens]`: log of the probability at T=1 of all other ids; -inf when k covers the vocabulary."""
    log_z: Tensor
    """`[tokens]`: log Σ_v p_v^(1/T) over the whole vocabulary, at the `temperature` of the view."""
    temperature: float
    """The T of `log_z`."""
    rows: int | None = None
    """The ids that there were to choose from, 0 to `rows` - 1; None for as many as the student has. Heads of one family
    are padded to different lengths behind the same vocabulary."""

    @classmethod
    @torch.no_grad()
    def from_logits(cls, logits: Tensor, k: int, temperature: float) -> TopK:
        """The view of the assistant's logits `[tokens, vocab]`, in fp32 at least and without a graph.

        Raises:
            InputError: k is not between 1 and the size of the vocabulary, or the temperature is not a positive number.
        """
        vocab = logits.shape[-1]
        if not 1 <= k <= vocab:
            raise InputError(f"k: {k} soft labels a token were asked for; it must be between 1 and the {vocab} ids")
        check_temperature(temperature)
        log_p = accumulable(logits).log_softmax(dim=-1)
        log_probs, ids = log_p.topk(k, dim=-1)
        others = log_p.scatter_(-1, ids, -math.inf)
        log_tail = others.logsumexp(dim=-1)
        # The two parts are added the way `forward_kl` takes them apart, so that a negligible tail cancels to exactly 0.
        tail_at_t = others.div_(temperature).logsumexp(dim=-1)
        log_z = torch.logaddexp((log_probs / temperature).logsumexp(dim=-1), tail_at_t)
        return cls(ids, log_probs, log_tail, log_z, float(temperature), vocab)

    @classmethod
    def cat(cls, views: Sequence[TopK]) -> TopK:
        """Several views, at least one, as one: the tokens of the first, then those of the second, and so on.

        Raises:
            InputError: the views are of different temperatures, or of vocabularies of different sizes.
        """
        temperatures = sorted({view.temperature for view in views})
        if len(temperatures) > 1:
            raise InputError(f"temperature: soft labels of {temperatures} cannot be mixed; make them all with one")
        if len({view.rows for view in views}) > 1:
            raise InputError("soft labels over vocabularies of different sizes cannot be mixed; make them all with one")
        return cls(
            torch.cat([view.ids for view in views]),
            torch.cat([view.log_probs for view in views]),
            torch.cat([view.log_tail for view in views]),
            torch.cat([view.log_z for view in views]),
            temperatures[0],
            views[0].rows,
        )

    @property
    def k(self) -> int:
        """How many ids a token has."""
        return self.ids.shape[-1]

    def at(self, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probabilities `[tokens, k]` and log of the tail's mass `[tokens]` at a temperature; they sum to 1.

        The tail at T≠1 is 1 - Σ of the others, exact to about 1e-7 (fp32); where that is 0 or less it is -inf.

        Raises:
            InputError: the temperature is neither 1 nor the one that the view was made for.
        """
        check_temperature(temperature)
        if same_temperature(temperature, 1.0):
            total = torch.logaddexp(self.log_probs.logsumexp(dim=-1), self.log_tail)
            return self.log_probs - total.unsqueeze(-1), self.log_tail - total
        if not same_temperature(temperature, self.temperature):
            raise InputError(
                f"temperature: these soft labels were made for T={self.temperature:g} and cannot serve "
                f"T={temperature:g}; set T={self.temperature:g} or make the cache anew"
            )
        scaled = self.log_probs / temperature
        # This difference is exactly 0 where the tail is negligible; summing after subtracting log Z would not give 0.
        log_tail = log1mexp(scaled.logsumexp(dim=-1) - self.log_z)
        log_tail = log_tail.masked_fill(self.log_tail == -math.inf, -math.inf)
        return scaled - self.log_z.unsqueeze(-1), log_tail


@dataclass(frozen=True, eq=False)
class Sampled(_PerToken):
    """Ids drawn from the assistant's distribution at T, with importance weights: an unbiased picture of all of it.

    Anshumann et al., "Sparse Logit Sampling" (ACL 2025, arXiv 2503.16870), section 4: a mean over draws has the dense
    loss as its expectation, where a cut to the k likeliest ids has not.
    """

    kind: ClassVar[ViewKind] = "sampled"

    ids: Tensor
    """`[tokens, m]` int64: drawn ids, each at most once a token; behind the last one id 0 with weight 0."""
    weights: Tensor
    """`[tokens, m]`: how much each counts; unbiased for p^T, so that Σ weights · f(id) has the mean Σ p^T · f."""
    log_probs: Tensor
    """`[tokens, m]`: log p^T of each, normalised over the whole vocabulary; 0 where the weight is 0."""
    temperature: float
    """The T of `log_probs`, the only one that this view serves."""
    rows: int | None = None
    """See `TopK`."""


@dataclass(frozen=True, eq=False)
class Projected:
    """The assistant's last hidden states and its head: `Dense`, but made for the tokens that are asked for."""

    kind: ClassVar[ViewKind] = "dense"

    hidden: Tensor
    """`[tokens, hidden]`."""
    weight: Tensor
    """`[vocab, hidden]`, the head."""
    bias: Tensor | None = None
    """`[vocab]`."""
    softcap: float | None = None
    """The model's final logit soft-cap c: c · tanh(logits / c)."""
    rows: int | None = None
    """See `Dense`."""

    def __len__(self) -> int:
        """How many tokens there are."""
        return len(self.hidden)

    @torch.no_grad()
    def __getitem__(self, tokens: slice | Tensor) -> Dense:
        """The assistant's logits of some of the tokens."""
        bias = None if self.bias is None else self.bias[: self.rows]
        logits = torch.nn.functional.linear(self.hidden[tokens], self.weight[: self.rows], bias)
        return Dense(logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh(), self.rows)


View = TopK | Dense | Sampled | Projected
"""Anything that a term may be given; a chunk of a `Projected` is a `Dense`."""


def accumulable(logits: Tensor) -> Tensor:
    """The logits in fp32, or in fp64 when they are so already."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x ≤ 0 without cancellation; rounding may lift x a little over 0, which counts as 0.

    See Mächler, "Accurately computing log(1 - exp(-|a|))", 2012.
    """
    x = x.clamp(max=0.0)
    return torch.where(x > -math.log(2), (-x.expm1()).log(), (-x.exp()).log1p())


def same_temperature(a: float, b: float) -> bool:
    """Whether two temperatures are the same but for the rounding of a file."""
    return math.isclose(a, b, rel_tol=_TEMPERATURE_TOLERANCE)


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is no positive number."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise InputError(f"temperature: {temperature} is not possible; it must be a number above 0")
