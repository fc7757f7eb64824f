"""What a loss term sees of the assistant: its distribution over the next token, whole, cut to k ids, or sampled.

Every view covers the same tokens in the same order as the student's response tokens, can be sliced along them, and is
without a graph. A cache holds `TopK` or `Sampled`; an assistant that runs beside the student gives `Dense`, which
`Projected` makes chunk by chunk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Final, Literal, Protocol, Self, cast

import torch
from torch import Tensor

from mulcot.types import InputError

_TEMPERATURE_TOLERANCE: Final = 1e-6
_DRAWN_AT_ONCE: Final = 2**22
"""Probabilities in fp64 that `Sampled.from_logits` holds at once."""

ViewKind = Literal["top_k", "dense", "sampled", "aligned", "hidden"]
"""The forms that a term may ask for."""


class _PerToken:
    """What views whose tensors all run along tokens have in common."""

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, each running along tokens."""
        values = {field.name: getattr(self, field.name) for field in fields(cast(Any, self))}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def __len__(self) -> int:
        """How many tokens there are."""
        return len(next(iter(self.tensors().values())))

    def __getitem__(self, tokens: slice | Tensor) -> Self:
        """The view of some of the tokens: a slice, or an index or boolean mask `[tokens]`."""
        parts = {name: value[tokens] for name, value in self.tensors().items()}
        return cast(Self, replace(cast(Any, self), **parts))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The view on another device."""
        parts = {name: value.to(device, non_blocking=non_blocking) for name, value in self.tensors().items()}
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
        logits = accumulable(self.logits[:, : self.rows].detach())
        return ((logits - logits.amax(dim=-1, keepdim=True)) / temperature).log_softmax(dim=-1)


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
        _check_alike(views)
        return cls(
            torch.cat([view.ids for view in views]),
            torch.cat([view.log_probs for view in views]),
            torch.cat([view.log_tail for view in views]),
            torch.cat([view.log_z for view in views]),
            views[0].temperature,
            views[0].rows,
        )

    @property
    def k(self) -> int:
        """How many ids a token has."""
        return self.ids.shape[-1]

    def at(self, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probabilities `[tokens, k]` and log of the tail's mass `[tokens]` at a temperature; they sum to 1.

        The tail at T≠1 is 1 - Σ of the others, exact to about 1e-7 (fp32), and no less than what its mass at T=1 leaves
        possible: a divergence that takes its logarithm must not see a tail of 0 where there is one.

        Raises:
            InputError: the temperature is neither 1 nor the one that the view was made for.
        """
        check_temperature(temperature)
        if same_temperature(temperature, 1.0):
            total = torch.logaddexp(self.log_probs.logsumexp(dim=-1), self.log_tail)
            return self.log_probs - total.unsqueeze(-1), self.log_tail - total
        if not same_temperature(temperature, self.temperature):
            raise _another_temperature(self.temperature, temperature)
        scaled = self.log_probs / temperature
        # This difference is exactly 0 where the tail is negligible; summing after subtracting log Z would not give 0.
        log_tail = log1mexp(scaled.logsumexp(dim=-1) - self.log_z)
        log_tail = torch.maximum(log_tail, self._least_log_tail(temperature))
        log_tail = log_tail.masked_fill(self.log_tail == -math.inf, -math.inf)
        return scaled - self.log_z.unsqueeze(-1), log_tail

    def _least_log_tail(self, temperature: float) -> Tensor:
        """A lower bound of the tail's log-mass at T: Σ x^s ≥ (Σ x)^s for s = 1/T ≤ 1, and n^(1-s) times that beyond."""
        bound = self.log_tail / temperature - self.log_z
        if temperature >= 1:
            return bound
        if self.rows is None:
            return torch.full_like(bound, -math.inf)
        return bound - (1 / temperature - 1) * math.log(max(1, self.rows - self.k))


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

    @classmethod
    @torch.no_grad()
    def from_logits(
        cls,
        logits: Tensor,
        draws: int,
        temperature: float,
        generator: torch.Generator | None = None,
        *,
        proposal_temperature: float = 1.0,
        self_normalised: bool = False,
    ) -> Sampled:
        """Ids drawn with replacement from the assistant's distribution p^T, or from a flatter one.

        Draws of one id are merged: its weight is (times drawn / draws) · p(id) / π(id), with π ∝ p^(1 / proposal
        temperature) what was drawn from. The fp64 sums matter: in fp32 all ids below 3e-8 together would be lost.

        Args:
            logits: the assistant's, `[tokens, vocab]`, of any floating dtype.
            draws: how many a token; the view is as wide.
            temperature: T.
            generator: the source of randomness, on any device.
            proposal_temperature: 1 draws from p^T itself; above 1 the unlikely ids come more often and count less.
            self_normalised: makes the weights of a token sum to 1, which trades the unbiasedness for less variance;
                of no consequence when p^T itself is drawn from.

        Raises:
            InputError: no draw was asked for, or a temperature is not a positive number.
        """
        if draws < 1:
            raise InputError(f"draws: {draws} samples a token were asked for; it must be 1 or more")
        check_temperature(temperature)
        check_temperature(proposal_temperature)
        tokens, vocab = logits.shape
        step = max(1, _DRAWN_AT_ONCE // vocab)
        parts = [
            _draw(logits[start : start + step], draws, temperature, proposal_temperature, generator)
            for start in range(0, max(1, tokens), step)
        ]
        ids, weights, log_probs = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        if self_normalised:
            weights /= weights.sum(dim=-1, keepdim=True)
        return cls(ids, weights, log_probs, float(temperature), vocab)

    def at(self, temperature: float) -> Tensor:
        """Log-probabilities `[tokens, m]` of the drawn ids at the view's own temperature.

        Raises:
            InputError: the temperature is another one.
        """
        check_temperature(temperature)
        if not same_temperature(temperature, self.temperature):
            raise _another_temperature(self.temperature, temperature)
        return self.log_probs

    @classmethod
    def cat(cls, views: Sequence[Sampled]) -> Sampled:
        """Several views, at least one, as one, as wide as the widest of them; see `TopK.cat`.

        Raises:
            InputError: the views are of different temperatures, or of vocabularies of different sizes.
        """
        _check_alike(views)
        width = max(view.ids.shape[-1] for view in views)

        def joined(name: str) -> Tensor:
            parts = [getattr(view, name) for view in views]
            return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[-1])) for part in parts])

        return cls(joined("ids"), joined("weights"), joined("log_probs"), views[0].temperature, views[0].rows)


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


class View(Protocol):
    """Anything that a term may be given: it covers tokens, and gives the same of some of them."""

    kind: ClassVar[ViewKind]

    def __len__(self) -> int:
        """How many tokens there are."""
        ...

    def __getitem__(self, tokens: slice | Tensor) -> View:
        """The view of some of the tokens; of a `Projected` that is a `Dense`."""
        ...


def _check_alike(views: Sequence[TopK] | Sequence[Sampled]) -> None:
    """Refuse to join views that cannot be one."""
    temperatures = sorted({view.temperature for view in views})
    if len(temperatures) > 1:
        raise InputError(f"temperature: soft labels of {temperatures} cannot be mixed; make them all with one")
    if len({view.rows for view in views}) > 1:
        raise InputError("soft labels over vocabularies of different sizes cannot be mixed; make them all with one")


def accumulable(logits: Tensor) -> Tensor:
    """The logits in fp32, or in fp64 when they are so already."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _draw(
    logits: Tensor, draws: int, temperature: float, proposal_temperature: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct ids, their weights and their log-probabilities, each `[tokens, draws]` with zeros behind the last."""
    log_p = Dense(logits).at(temperature)
    log_proposal = Dense(log_p).at(proposal_temperature)
    below = log_proposal.double().exp().cumsum(dim=-1)
    # Row by row from a generator on any device: however a response is cut into calls, it draws the same.
    device = below.device if generator is None else generator.device
    points = torch.rand((len(logits), draws), generator=generator, device=device, dtype=torch.float64)
    drawn = torch.searchsorted(below, points.to(below.device) * below[:, -1:], right=True)
    drawn = drawn.clamp_(max=logits.shape[-1] - 1).sort(dim=-1).values
    is_new = torch.ones_like(drawn)
    is_new[:, 1:] = drawn.diff(dim=-1) != 0
    place = is_new.cumsum(dim=-1) - 1
    ids = torch.zeros_like(drawn).scatter_(-1, place, drawn)
    times = log_p.new_zeros(drawn.shape).scatter_add_(-1, place, log_p.new_ones(drawn.shape))
    log_probs = log_p.gather(-1, ids)
    weights = times / draws * (log_probs - log_proposal.gather(-1, ids)).exp()
    behind = times == 0
    return ids, weights.masked_fill(behind, 0.0), log_probs.masked_fill(behind, 0.0)


def _another_temperature(made_for: float, asked: float) -> InputError:
    return InputError(
        f"temperature: these soft labels were made for T={made_for:g} and cannot serve T={asked:g}; "
        f"set T={made_for:g} or make the cache anew"
    )


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
