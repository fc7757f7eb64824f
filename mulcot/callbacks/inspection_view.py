"""What can be told of the assistant from its view: how sure it is, how much the view holds, who agrees with it."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from mulcot.losses import Dense, Projected, Sampled, TopK, View

VIEW_STATISTICS: Final = ("entropy", "kept_mass", "kept_mass_at_T", "agreement", "assistant_right")
"""`entropy`: of the assistant at T=1, in nats; of a cut view a lower bound, the tail counted as one id; of a sampled
one at the view's T. `kept_mass`, `kept_mass_at_T`: the probability, at T=1 and at the view's T, of the ids that the
view holds. `agreement`: the share of tokens at which student and assistant have the same likeliest id;
`assistant_right`: at which the assistant's is the response's."""
_CHUNK: Final = 2**22
"""Logits of the assistant that are made at once."""


@torch.no_grad()
def view_statistics(view: View, predicted: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Statistics of every token, of those that the view can tell.

    Args:
        view: the assistant's.
        predicted: the student's likeliest ids, `[tokens]`.
        targets: the response's, `[tokens]`.

    Returns:
        Some of `VIEW_STATISTICS`, each `[tokens]`.
    """
    if isinstance(view, TopK):
        return _of_top_k(view, predicted, targets)
    if isinstance(view, Sampled):
        return _of_sample(view)
    if not isinstance(view, Dense | Projected) or not len(view):
        return {}
    vocab = len(view.weight) if isinstance(view, Projected) else view.logits.shape[-1]
    size = max(1, _CHUNK // vocab)
    chunks = [slice(start, start + size) for start in range(0, len(view), size)]
    parts = [_of_logits(view[chunk], predicted[chunk], targets[chunk]) for chunk in chunks]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _of_top_k(view: TopK, predicted: Tensor, targets: Tensor) -> dict[str, Tensor]:
    log_p, log_tail = view.at(1.0)
    kept, tail = log_p.exp(), log_tail.exp()
    top = view.ids.gather(-1, log_p.argmax(dim=-1, keepdim=True)).squeeze(-1)
    found = {
        "entropy": -(torch.xlogy(kept, kept).sum(dim=-1) + torch.xlogy(tail, tail)),
        "kept_mass": kept.sum(dim=-1),
        "agreement": (top == predicted).float(),
        "assistant_right": (top == targets).float(),
    }
    if not math.isclose(view.temperature, 1.0):
        found["kept_mass_at_T"] = view.at(view.temperature)[0].exp().sum(dim=-1)
    return found


def _of_sample(view: Sampled) -> dict[str, Tensor]:
    """From draws the likeliest id cannot be told for certain; the entropy is Σ weights · -log p without bias."""
    drawn = view.weights > 0
    return {
        "entropy": -(view.weights * view.log_probs).sum(dim=-1),
        "kept_mass_at_T": (view.log_probs.exp() * drawn).sum(dim=-1),
    }


def _of_logits(view: Dense, predicted: Tensor, targets: Tensor) -> dict[str, Tensor]:
    log_p = view.at(1.0)
    top = log_p.argmax(dim=-1)
    return {
        "entropy": -(log_p.exp() * log_p).sum(dim=-1),
        "agreement": (top == predicted).float(),
        "assistant_right": (top == targets).float(),
    }
