"""Losses as pure functions: logits and what they are held against in, one loss per token out.

Nothing here reduces over tokens, masks or scales by T²: the caller does, who knows the optimizer step and the term's
weight. Every function computes in fp32 at least, whatever the dtype of the logits, and its gradient flows to the
student's logits alone. p is the assistant's distribution at T, q the student's.

A divergence is a formula on pairs of log-probabilities; what view they come from is not its concern. On `Dense` the
pairs are all ids that both heads have (or the view's `rows`); on `TopK` they are the assistant's k ids and one bucket
for all others, which gives the dense value when k covers the vocabulary and a lower bound of it otherwise. Adding one
takes a function and a line in `DIVERGENCES`; the tests hold every entry to the same laws.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from mulcot.losses.log_probs import by_block, log_probs_and_tail, log_probs_at, scaled_log_softmax
from mulcot.losses.views import Dense, Sampled, TopK, ViewKind, accumulable, check_temperature
from mulcot.types import InputError

Divergence = Callable[[Tensor, Any, float], Tensor]
"""From student logits `[tokens, vocab]`, a view of the assistant and a temperature to a loss per token `[tokens]`."""

_Pairs = Callable[[Tensor, Tensor], Tensor]
"""From log p and log q, both finite and `[tokens, n]`, to a loss per token."""


@dataclass(frozen=True)
class DivergenceSpec:
    """A divergence and what it can be evaluated on."""

    function: Divergence
    """With every parameter at its default."""
    views: frozenset[ViewKind]
    """The views of the assistant that it takes; `Projected` counts as the `dense` that its slices are."""


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of hard labels at T=1: -log softmax(logits)[target].

    Args:
        logits: `[tokens, vocab]`, of any floating dtype.
        targets: `[tokens]` int64, the right id of each; there is no ignore index, masked tokens are not passed.

    Returns:
        `[tokens]`, fp32 at least.
    """
    return -log_probs_at(logits, targets.unsqueeze(-1), 1.0).squeeze(-1)


def forward_kl(logits: Tensor, view: TopK | Dense | Sampled, temperature: float) -> Tensor:
    """KL(p ‖ q) = Σ p (log p - log q).

    Hinton et al., "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531), section 2.

    Args:
        logits: the student's, `[tokens, vocab]`, finite, of any floating dtype; those beyond the view's rows, which
            stand for no token, are left out.
        view: the assistant at the same tokens. On `Sampled` this is `sampled_kl`.
        temperature: T, one that the view serves.

    Returns:
        `[tokens]`, fp32 at least.

    Raises:
        InputError: the view does not serve the temperature, is over more ids than the student has, or is none of these.
    """
    if isinstance(view, Sampled):
        return sampled_kl(logits, view, temperature)
    return _on_pairs(_kl, logits, view, temperature)


def reverse_kl(logits: Tensor, view: TopK | Dense, temperature: float) -> Tensor:
    """KL(q ‖ p) = Σ q (log q - log p): what the student says must be likely for the assistant.

    Gu et al., "MiniLLM" (arXiv 2306.08543), section 2.1. An id that the assistant rules out (log p = -∞) counts as the
    smallest normal number, so that the loss stays finite. Arguments, result and errors as of `forward_kl`.
    """
    return _on_pairs(_reverse_kl, logits, view, temperature)


def jsd(logits: Tensor, view: TopK | Dense, temperature: float, *, beta: float = 0.5) -> Tensor:
    """Generalised Jensen-Shannon divergence β KL(p ‖ m) + (1 - β) KL(q ‖ m), with m = β p + (1 - β) q.

    Agarwal et al., "On-Policy Distillation of Language Models" (GKD, arXiv 2306.13649), section 2, equation 1. It is
    bounded by the entropy of (β, 1 - β); divided by β it tends to forward KL as β → 0, divided by 1 - β to reverse KL
    as β → 1. Arguments, result and errors as of `forward_kl`, and an InputError for a β (`beta`) that is not between 0
    and 1: at these ends the loss is 0 whatever the student says.
    """
    if not 0 < beta < 1:
        raise InputError(f"beta: {beta} is not between 0 and 1; the limits there are forward_kl (0) and reverse_kl (1)")
    return _on_pairs(partial(_jsd, beta=beta), logits, view, temperature)


def skewed_kl(logits: Tensor, view: TopK | Dense, temperature: float, *, alpha: float = 0.1) -> Tensor:
    """KL(p ‖ α p + (1 - α) q): forward KL whose gradient stays bounded where the student gives nearly nothing.

    Ko et al., "DistiLLM" (arXiv 2402.03898), section 3.1, with its α of 0.1. It is at most log(1/α) and equals forward
    KL at α = 0. Arguments, result and errors as of `forward_kl`, and an InputError for an α (`alpha`) that is negative,
    or 1 or more: there the loss is 0 whatever the student says.
    """
    _check_alpha(alpha)
    return _on_pairs(partial(_skewed_kl, alpha=alpha) if alpha else _kl, logits, view, temperature)


def skewed_reverse_kl(logits: Tensor, view: TopK | Dense, temperature: float, *, alpha: float = 0.1) -> Tensor:
    """KL(q ‖ (1 - α) p + α q): reverse KL that stays bounded where the assistant gives nearly nothing.

    Ko et al., "DistiLLM" (arXiv 2402.03898), section 3.1. It is at most log(1/α) and equals reverse KL at α = 0.
    Arguments, result and errors as of `skewed_kl`.
    """
    _check_alpha(alpha)
    return _on_pairs(partial(_skewed_reverse_kl, alpha=alpha) if alpha else _reverse_kl, logits, view, temperature)


def total_variation(logits: Tensor, view: TopK | Dense, temperature: float) -> Tensor:
    """½ Σ |p - q|, between 0 and 1.

    Wen et al., "f-Divergence Minimization for Sequence-Level Knowledge Distillation" (arXiv 2307.15190), section 2.2.
    It has a kink where p = q of an id: there its gradient is one of the subgradients. Arguments, result and errors as
    of `forward_kl`.
    """
    return _on_pairs(_total_variation, logits, view, temperature)


def logit_mse(logits: Tensor, view: TopK | Dense, temperature: float) -> Tensor:
    """Mean over the ids of ((z_q - mean z_q) / T - (z_p - mean z_p) / T)², logits z centred over these ids.

    Ba & Caruana, "Do Deep Nets Really Need to be Deep?" (arXiv 1312.6184), section 2.2, and Kim et al. (arXiv
    2105.08919), equation 3, who take the sum of squares. Centred, as no softmax sees a constant on the logits. It is
    what 2 · forward KL tends to as T grows (Hinton et al., section 2.1). On `TopK` the ids are the k kept ones and
    nothing is asked of the others. Arguments, result and errors as of `forward_kl`.
    """
    if isinstance(view, TopK):
        check_temperature(temperature)
        _rows(logits, view)
        kept = accumulable(logits.gather(-1, view.ids))
        return _centred_mse(kept / temperature, (view.log_probs.detach() / temperature).to(kept.dtype))
    return _on_pairs(_centred_mse, logits, view, temperature)


def sampled_kl(logits: Tensor, view: Sampled, temperature: float) -> Tensor:
    """Σ_i w_i (log p_i - log q_i) over ids drawn from the assistant: KL(p ‖ q) and its gradient, both in expectation.

    Anshumann et al., "Sparse Logit Sampling" (ACL 2025, arXiv 2503.16870), section 4. The value of one token may be
    negative, and the gradient at p = q is 0 in the mean alone. Arguments, result and errors as of `forward_kl`.
    """
    if not isinstance(view, Sampled):
        raise _unsuitable(view, "sampled")
    log_p, weights = view.at(temperature), view.weights.detach()
    log_q = log_probs_at(logits, view.ids, temperature, _rows(logits, view))
    return (weights.to(log_q.dtype) * (log_p.detach().to(log_q.dtype) - log_q)).sum(dim=-1)


_BOTH: Final[frozenset[ViewKind]] = frozenset({"dense", "top_k"})

DIVERGENCES: Final[dict[str, DivergenceSpec]] = {
    "forward_kl": DivergenceSpec(forward_kl, _BOTH | {"sampled"}),
    "reverse_kl": DivergenceSpec(reverse_kl, _BOTH),
    "jsd": DivergenceSpec(jsd, _BOTH),
    "skewed_kl": DivergenceSpec(skewed_kl, _BOTH),
    "skewed_reverse_kl": DivergenceSpec(skewed_reverse_kl, _BOTH),
    "total_variation": DivergenceSpec(total_variation, _BOTH),
    "logit_mse": DivergenceSpec(logit_mse, _BOTH),
    "sampled_kl": DivergenceSpec(sampled_kl, frozenset({"sampled"})),
}
"""Every divergence by name; each is 0 for equal distributions and never negative, those on samples in expectation."""


def _on_pairs(pairs: _Pairs, logits: Tensor, view: TopK | Dense, temperature: float) -> Tensor:
    """A formula evaluated on the pairs that the view gives."""
    rows = _rows(logits, view)
    if isinstance(view, TopK):
        log_p, log_p_tail = view.at(temperature)
        if view.k == rows:
            log_q = log_probs_at(logits, view.ids, temperature, rows)
        else:
            log_p = torch.cat([log_p, log_p_tail.unsqueeze(-1)], dim=-1)
            log_q = log_probs_and_tail(logits, view.ids, temperature, rows)
        return pairs(_finite(log_p.to(log_q.dtype)), log_q)
    if isinstance(view, Dense):
        dense = Dense(view.logits.detach(), rows)

        def loss(block: Tensor, tokens: slice) -> Tensor:
            log_p = dense[tokens].at(temperature)
            return pairs(_finite(log_p.to(block.dtype)), scaled_log_softmax(block, temperature))

        return by_block(loss, logits, rows)
    raise _unsuitable(view, "dense or top_k")


def _rows(logits: Tensor, view: TopK | Dense | Sampled) -> int:
    """How many ids count: as many as the view says, or as both have."""
    vocab = logits.shape[-1]
    if isinstance(view, Dense):
        return min(vocab, view.logits.shape[-1], vocab if view.rows is None else view.rows)
    if view.rows is not None and view.rows > vocab:
        raise InputError(
            f"soft labels over {view.rows} ids were given to a student with {vocab}; cut the assistant's head to the "
            "ids that both have before they are made"
        )
    return vocab if view.rows is None else view.rows


def _unsuitable(view: object, wanted: str) -> InputError:
    return InputError(f"this divergence takes a {wanted} view of the assistant, not {type(view).__name__}")


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha < 1:
        raise InputError(f"alpha: {alpha} is not possible; it must be 0 or more and below 1")


def _finite(log_p: Tensor) -> Tensor:
    """Log-probabilities without -∞, so that no formula meets 0 · ∞; the smallest normal number stands for 0."""
    log_p = log_p.detach()
    return log_p.nan_to_num(nan=math.nan, posinf=math.inf, neginf=math.log(torch.finfo(log_p.dtype).tiny))


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def _reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    # The ratio's own derivative adds q to every id, the gradient of Σ q = 1, which is 0; left out it costs no pass.
    return (log_q.exp() * (log_q.detach() - log_p)).sum(dim=-1)


def _jsd(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    # The mixture minimises the sum of the two terms, so that its own derivative is 0 and need not be taken.
    odds = log_q.detach() - log_p + math.log((1 - beta) / beta)
    common = (1 + (-odds.abs()).exp()).log()
    # log(p / m) and log(q / m) from what they have in common: their difference has digits where p and q are close.
    of_p = -common - odds.clamp(min=0.0) - math.log(beta)
    of_q = -common + odds.clamp(max=0.0) - math.log(1 - beta)
    return beta * (log_p.exp() * of_p).sum(dim=-1) + (1 - beta) * (log_q.exp() * of_q).sum(dim=-1)


def _skewed_kl(log_p: Tensor, log_q: Tensor, alpha: float) -> Tensor:
    return (log_p.exp() * _log_to_mixture(log_q - log_p, alpha)).sum(dim=-1)


def _skewed_reverse_kl(log_p: Tensor, log_q: Tensor, alpha: float) -> Tensor:
    return (log_q.exp() * _log_to_mixture(log_p - log_q, alpha)).sum(dim=-1)


def _total_variation(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() - log_q.exp()).abs().sum(dim=-1) / 2


def _centred_mse(a: Tensor, b: Tensor) -> Tensor:
    """Log-probabilities are logits but for a constant, which centring takes off."""
    difference = a - b
    # Not `var`: it takes several times as long, and warns where there are no tokens.
    return (difference - difference.mean(dim=-1, keepdim=True)).square().mean(dim=-1)


def _log_to_mixture(log_ratio: Tensor, share: float) -> Tensor:
    """The log of a / (share · a + (1 - share) · b)) from log(b / a), exact to rounding however far apart they are."""
    odds = log_ratio + math.log((1 - share) / share)
    # -log(1 + e^odds) with the larger of the two taken out; softplus and logaddexp take ten times as long on a CPU.
    larger = odds.detach().clamp(min=0.0)
    return -((odds - larger).exp() + (-larger).exp()).log() - larger - math.log(share)
