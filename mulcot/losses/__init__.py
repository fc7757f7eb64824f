"""The losses, as pure functions."""

from mulcot.losses.divergences import DIVERGENCES, Divergence, TopK, cross_entropy, forward_kl

__all__ = ["DIVERGENCES", "Divergence", "TopK", "cross_entropy", "forward_kl"]
