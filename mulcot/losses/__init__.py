"""The losses, as pure functions."""

from mulcot.losses.divergences import DIVERGENCES, Divergence, cross_entropy, forward_kl
from mulcot.losses.features import hidden_cosine, hidden_mse, layer_map
from mulcot.losses.schedules import Schedule, check_range, is_constant, value_of
from mulcot.losses.views import Dense, Projected, Sampled, TopK, View, ViewKind

__all__ = [
    "DIVERGENCES",
    "Dense",
    "Divergence",
    "Projected",
    "Sampled",
    "Schedule",
    "TopK",
    "View",
    "ViewKind",
    "check_range",
    "cross_entropy",
    "forward_kl",
    "hidden_cosine",
    "hidden_mse",
    "is_constant",
    "layer_map",
    "value_of",
]
