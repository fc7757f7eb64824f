"""Whether a rationale speaks of its own picture: it fits that one better than those of other posts."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mulcot.metrics.probe_files import Agreement
from mulcot.metrics.swaps import derangement

RESAMPLES: Final = 2000
"""Of the bootstrap."""
LEVEL: Final = 0.95
"""Of its interval."""


def agreement(texts: Tensor, pictures: Tensor, kinds: Sequence[Hashable], shuffles: int, seed: int) -> Agreement:
    """How much better texts fit their own pictures than those of other posts.

    Every shuffle gives each text another post's picture, never one that is equal to its own (see `derangement`). The
    interval is that of the percentile bootstrap over posts, each with all its shuffles.

    Args:
        texts: `[posts, dimensions]`, of length 1.
        pictures: likewise, each post's own.
        kinds: equal for posts of equal pictures.
        shuffles: how many other pictures each text is compared with at most.
        seed: decides which.
    """
    rng = random.Random(f"grounding {seed}")
    cosines = (texts @ pictures.T).double().clamp(-1, 1)
    others: dict[int, list[int]] = {}
    for _ in range(shuffles):
        for number, other in derangement(kinds, rng).items():
            others.setdefault(number, []).append(other)
    compared = sorted(others)
    if not compared:
        return Agreement(posts=0, own=None, shuffled=None, wins=None, interval=None)
    own = cosines.diagonal()[compared]
    shuffled = torch.stack([cosines[number, others[number]].mean() for number in compared])
    wins = np.array([_wins(cosines[number], number, others[number]) for number in compared])
    return Agreement(
        posts=len(compared),
        own=float(own.mean()),
        shuffled=float(shuffled.mean()),
        wins=float(wins.mean()),
        interval=bootstrap_interval(wins, seed),
    )


def bootstrap_interval(values: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """The percentile bootstrap's interval of the mean of values `[posts]`."""
    drawn = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _wins(cosines: Tensor, own: int, others: Sequence[int]) -> float:
    """How often the own picture fits better, a tie as half."""
    differences = cosines[own] - cosines[list(others)]
    return float(((differences > 0).double() + 0.5 * (differences == 0).double()).mean())
