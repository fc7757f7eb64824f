"""Losses as pure functions: logits and what they are held against in, one loss per token out.

Nothing here reduces over tokens, masks or scales by T²: the caller does, who knows the optimizer step and the term's
weight. Every function computes in fp32 at least, whatever the dtype of the logits. Adding a divergence from the
assistant takes one function and one line in `DIVERGENCES`; the tests hold every entry to the same laws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from mulcot.types import InputError

_TEMPERATURE_TOLERANCE: Final = 1e-6


@dataclass(frozen=True, eq=False)
class TopK:
    """What the assistant thinks of each response token: its k likeliest next tokens and the mass of all others.

    The view serves two temperatures: 1, and the `temperature` whose log-sum-exp it carries.
    """

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
        _check_positive(temperature)
        log_p = _accumulable(logits).log_softmax(dim=-1)
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

    def __len__(self) -> int:
        """How many tokens there are."""
        return self.ids.shape[0]

    def __getitem__(self, tokens: slice | Tensor) -> TopK:
        """The view of some of the tokens: a slice, or an index or boolean mask `[tokens]`."""
        parts = (self.ids[tokens], self.log_probs[tokens], self.log_tail[tokens], self.log_z[tokens])
        return TopK(*parts, self.temperature, self.rows)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TopK:
        """The view on another device."""
        ids, log_probs, log_tail, log_z = (
            part.to(device, non_blocking=non_blocking) for part in (self.ids, self.log_probs, self.log_tail, self.log_z)
        )
        return TopK(ids, log_probs, log_tail, log_z, self.temperature, self.rows)

    def at(self, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probabilities `[tokens, k]` and log of the tail's mass `[tokens]` at a temperature; they sum to 1.

        The tail at T≠1 is 1 - Σ of the others, exact to about 1e-7 (fp32); where that is 0 or less it is -inf.

        Raises:
            InputError: the temperature is neither 1 nor the one that the view was made for.
        """
        _check_positive(temperature)
        if _same(temperature, 1.0):
            total = torch.logaddexp(self.log_probs.logsumexp(dim=-1), self.log_tail)
            return self.log_probs - total.unsqueeze(-1), self.log_tail - total
        if not _same(temperature, self.temperature):
            raise InputError(
                f"temperature: these soft labels were made for T={self.temperature:g} and cannot serve "
                f"T={temperature:g}; set T={self.temperature:g} or make the cache anew"
            )
        scaled = self.log_probs / temperature
        # This difference is exactly 0 where the tail is negligible; summing after subtracting log Z would not give 0.
        log_tail = _log1mexp(scaled.logsumexp(dim=-1) - self.log_z)
        log_tail = log_tail.masked_fill(self.log_tail == -math.inf, -math.inf)
        return scaled - self.log_z.unsqueeze(-1), log_tail


Divergence = Callable[[Tensor, TopK, float], Tensor]
"""From student logits `[tokens, vocab]`, the assistant's view and a temperature to a loss per token `[tokens]`."""


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of hard labels at T=1: -log softmax(logits)[target].

    Args:
        logits: `[tokens, vocab]`, of any floating dtype.
        targets: `[tokens]` int64, the right id of each; there is no ignore index, masked tokens are not passed.

    Returns:
        `[tokens]`, fp32 at least.
    """
    log_q = _accumulable(logits).log_softmax(dim=-1)
    return -log_q.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def forward_kl(logits: Tensor, view: TopK, temperature: float) -> Tensor:
    """KL(p_assistant^T ‖ p_student^T) over the assistant's k ids and one bucket for all others, without a factor T².

    It is the dense KL when k covers the vocabulary and a lower bound of it otherwise (Hinton et al.,
    arXiv 1503.02531, section 2, for the temperature).

    Args:
        logits: the student's, `[tokens, vocab]`, finite, of any floating dtype; those beyond the view's rows, which
            stand for no token, are left out.
        view: the assistant's k likeliest ids of the same tokens.
        temperature: T, one that the view serves.

    Returns:
        `[tokens]`, fp32 at least; the gradient flows to `logits` alone.

    Raises:
        InputError: the view does not serve the temperature.
    """
    log_p, log_p_tail = view.at(temperature)
    logits = _accumulable(logits[:, : view.rows])
    # Taking the maximum off first keeps the digits that an offset of 1e4 would cost; as a constant it has no gradient.
    scores = (logits - logits.detach().amax(dim=-1, keepdim=True)) / temperature
    kept = scores.gather(-1, view.ids)
    if view.k == logits.shape[-1]:
        # No id is left for a tail, and the gradient of a log of nothing would be NaN.
        return _kl_terms(log_p, kept.log_softmax(dim=-1)).sum(dim=-1)
    # The tail is summed from its own ids: 1 - Σ of the kept ones has no correct digit when a token is nearly certain.
    log_kept = kept.logsumexp(dim=-1)
    log_others = scores.scatter(-1, view.ids, -math.inf).logsumexp(dim=-1)
    log_all = torch.logaddexp(log_kept, log_others)
    head = _kl_terms(log_p, kept - log_all.unsqueeze(-1)).sum(dim=-1)
    return head + _kl_terms(log_p_tail, log_others - log_all)


DIVERGENCES: Final[dict[str, Divergence]] = {"forward_kl": forward_kl}
"""Every divergence from the assistant's top-k view, by name; each is 0 for equal distributions and never negative."""


def _kl_terms(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The terms p · (log p - log q) of each entry, 0 where p is 0."""
    log_p = log_p.detach().to(log_q.dtype)
    p = log_p.exp()
    # log p is replaced before the product: -inf there would make 0 · inf, NaN in the value and in the gradient.
    return torch.where(p > 0, p * (log_p.masked_fill(p == 0, 0.0) - log_q), 0.0)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x ≤ 0 without cancellation; rounding may lift x a little over 0, which counts as 0.

    See Mächler, "Accurately computing log(1 - exp(-|a|))", 2012.
    """
    x = x.clamp(max=0.0)
    return torch.where(x > -math.log(2), (-x.expm1()).log(), (-x.exp()).log1p())


def _accumulable(logits: Tensor) -> Tensor:
    """The logits in fp32, or in fp64 when they are so already."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _same(a: float, b: float) -> bool:
    """Whether two temperatures are the same but for the rounding of a file."""
    return math.isclose(a, b, rel_tol=_TEMPERATURE_TOLERANCE)


def _check_positive(temperature: float) -> None:
    """Refuse a temperature that is no positive number."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise InputError(f"temperature: {temperature} is not possible; it must be a number above 0")
