"""Whether probabilities mean what they say: the expected calibration error and its bins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class CalibrationBin(NamedTuple):
    """The posts whose confidence lies in one stretch of [0, 1]."""

    lower: float
    """Where the bin begins; confidences are above it, in the first bin also 0."""
    upper: float
    """Where it ends; it belongs to the bin."""
    confidence: float
    """Mean confidence of its posts."""
    accuracy: float
    """Share of its posts whose label is right."""
    posts: int


class Calibration(NamedTuple):
    """How far confidence and accuracy are apart."""

    ece: float
    """The expected calibration error, in [0, 1]."""
    bins: list[CalibrationBin]
    """The bins that hold posts, from low to high."""


def calibration(confidences: Sequence[float], right: Sequence[bool], bins: int = 15) -> Calibration:
    """The top-label expected calibration error over bins of equal width.

    `ECE = Σ_b n_b / n · |accuracy_b - confidence_b|`, where bin b holds the posts whose confidence lies in
    `((b - 1) / bins, b / bins]`.

    Args:
        confidences: the probability of the label that was given, one a post, in [0, 1].
        right: whether it is the gold label, in the same order.
        bins: how many bins there are.

    Raises:
        ValueError: there are no posts, not as many of one as of the other, or a confidence is no probability.

    Source:
        Guo et al. 2017, equation 3; Naeini et al. 2015.
    """
    if not confidences or len(confidences) != len(right):
        raise ValueError(f"{len(confidences)} confidences for {len(right)} posts; one for each of at least one post")
    sure, correct = np.asarray(confidences, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if not bool(((sure >= 0) & (sure <= 1)).all()):
        raise ValueError("a confidence is not between 0 and 1")
    edges = np.arange(bins + 1) / bins
    place = np.clip(np.searchsorted(edges, sure, side="left") - 1, 0, bins - 1)
    posts = np.bincount(place, minlength=bins)
    mean_sure, mean_right = (
        np.bincount(place, weights=values, minlength=bins) / np.maximum(posts, 1) for values in (sure, correct)
    )
    found = [
        CalibrationBin(b / bins, (b + 1) / bins, float(mean_sure[b]), float(mean_right[b]), int(posts[b]))
        for b in np.flatnonzero(posts).tolist()
    ]
    gaps = [bin_.posts * abs(bin_.accuracy - bin_.confidence) for bin_ in found]
    return Calibration(sum(gaps) / len(confidences), found)
