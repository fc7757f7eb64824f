"""Losses as pure functions: logits and what they are held against in, one loss per token out.

Nothing here reduces over tokens, masks or scales by T²: the caller does, who knows the optimizer step and the term's
weight. Every function computes in fp32 at least, whatever the dtype of the logits. Adding a divergence from the
assistant takes one function and one line in `DIVERGENCES`; the tests hold every entry to the same laws.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from mulcot.losses.views import TopK, accumulable

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
    log_q = accumulable(logits).log_softmax(dim=-1)
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
    logits = accumulable(logits[:, : view.rows])
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
