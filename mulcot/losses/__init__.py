"""The losses, as pure functions."""

from mulcot.losses.chunked_head import Head, HeadLoss, Term, TokenLoss, chunked_loss
from mulcot.losses.cross_tokenizer import Aligned, common_boundaries, join_pairs, pair_responses, uld
from mulcot.losses.divergences import (
    DIVERGENCES,
    Divergence,
    DivergenceSpec,
    cross_entropy,
    forward_kl,
    jsd,
    logit_mse,
    reverse_kl,
    sampled_kl,
    skewed_kl,
    skewed_reverse_kl,
    total_variation,
)
from mulcot.losses.features import hidden_cosine, hidden_mse, layer_map
from mulcot.losses.schedules import Schedule, check_range, is_constant, value_of
from mulcot.losses.views import Dense, Projected, Sampled, TopK, View, ViewKind

__all__ = [
    "DIVERGENCES",
    "Aligned",
    "Dense",
    "Divergence",
    "DivergenceSpec",
    "Head",
    "HeadLoss",
    "Projected",
    "Sampled",
    "Schedule",
    "Term",
    "TokenLoss",
    "TopK",
    "View",
    "ViewKind",
    "check_range",
    "chunked_loss",
    "common_boundaries",
    "cross_entropy",
    "forward_kl",
    "hidden_cosine",
    "hidden_mse",
    "is_constant",
    "join_pairs",
    "jsd",
    "layer_map",
    "logit_mse",
    "pair_responses",
    "reverse_kl",
    "sampled_kl",
    "skewed_kl",
    "skewed_reverse_kl",
    "total_variation",
    "uld",
    "value_of",
]
