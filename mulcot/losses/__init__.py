"""The losses, as pure functions."""

from mulcot.losses.divergences import DIVERGENCES, Divergence, cross_entropy, forward_kl
from mulcot.losses.views import Dense, Projected, Sampled, TopK, View, ViewKind

__all__ = [
    "DIVERGENCES",
    "Dense",
    "Divergence",
    "Projected",
    "Sampled",
    "TopK",
    "View",
    "ViewKind",
    "cross_entropy",
    "forward_kl",
]
