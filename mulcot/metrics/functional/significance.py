"""How far classification scores could be off by the choice of posts: bootstrap intervals, and tests of two systems.

A missing prediction is None; it counts as wrong. Resampling posts with replacement draws how often each pair of gold
and predicted label occurs from a multinomial distribution, so that whole confusion matrices are drawn instead of posts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

SCORES: Final = ("accuracy", "weighted_f1", "macro_f1")
_ROWS: Final = 256
"""Resamples that are scored at a time, so that memory does not grow with their number."""


class Difference(NamedTuple):
    """The second system's score minus the first's, and its interval."""

    difference: float
    low: float
    high: float


class McNemar(NamedTuple):
    """McNemar's exact test of two systems on the same posts."""

    only_first_right: int
    only_second_right: int
    p_value: float
    """How probable as many or more posts for one of the two would be, were both equally good; in [0, 1]."""


def bootstrap_intervals(
    predictions: Sequence[int | None],
    targets: Sequence[int],
    num_labels: int,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals of accuracy, weighted F1 and macro F1 over posts.

    Args:
        predictions: the index of the predicted label, one a post; None where there is none, which is wrong.
        targets: the index of the gold label, in the same order.
        num_labels: how many labels there are.
        level: the share of resamples inside an interval.
        resamples: how many samples of as many posts are drawn, with replacement.
        seed: of the drawing.

    Returns:
        Score → (low, high).

    Raises:
        ValueError: there are no posts, not as many predictions as targets, or an index is no label's.

    Source:
        Efron and Tibshirani 1993, chapter 13.
    """
    drawn = _resampled([predictions], targets, num_labels, resamples, seed)[0]
    return {name: _interval(values, level) for name, values in drawn.items()}


def paired_differences(
    first: Sequence[int | None],
    second: Sequence[int | None],
    targets: Sequence[int],
    num_labels: int,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Difference]:
    """How much better the second system is than the first on the same posts, with percentile bootstrap intervals.

    Every resample holds the same posts for both systems, so that what is hard for both does not widen the interval.

    Args:
        first: the first system's predictions, as in `bootstrap_intervals`.
        second: the second system's, for the same posts.
        targets: see `bootstrap_intervals`.
        num_labels: see `bootstrap_intervals`.
        level: see `bootstrap_intervals`.
        resamples: see `bootstrap_intervals`.
        seed: see `bootstrap_intervals`.

    Returns:
        Score → second minus first; an interval without 0 speaks for a difference.

    Raises:
        ValueError: see `bootstrap_intervals`.
    """
    return mean_differences([first], [second], targets, num_labels, level=level, resamples=resamples, seed=seed)


def mean_differences(
    firsts: Sequence[Sequence[int | None]],
    seconds: Sequence[Sequence[int | None]],
    targets: Sequence[int],
    num_labels: int,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Difference]:
    """As `paired_differences`, of two systems that were trained several times: the mean over the pairs.

    Every resample holds the same posts for all models. The interval says how far the mean could be off by the choice of
    posts; how far it could be off by the choice of seeds, their standard deviation says.

    Args:
        firsts: the first system's predictions, once for every seed.
        seconds: the second system's, for the same seeds.
        targets: see `bootstrap_intervals`.
        num_labels: see `bootstrap_intervals`.
        level: see `bootstrap_intervals`.
        resamples: see `bootstrap_intervals`.
        seed: see `bootstrap_intervals`.

    Returns:
        Score → mean of second minus first.

    Raises:
        ValueError: see `bootstrap_intervals`; or there is no pair, or not as many of one as of the other.
    """
    if not firsts or len(firsts) != len(seconds):
        raise ValueError(f"{len(firsts)} first systems for {len(seconds)} second ones; one for each of at least one")
    drawn = _resampled([*firsts, *seconds], targets, num_labels, resamples, seed)
    points = [_point_scores(said, targets, num_labels) for said in (*firsts, *seconds)]
    pairs = len(firsts)
    found = {}
    for name in SCORES:
        point = sum(points[pairs + at][name] - points[at][name] for at in range(pairs)) / pairs
        changes = np.mean([drawn[pairs + at][name] - drawn[at][name] for at in range(pairs)], axis=0)
        found[name] = Difference(point, *_interval(changes, level))
    return found


def mcnemar(first: Sequence[int | None], second: Sequence[int | None], targets: Sequence[int]) -> McNemar:
    """McNemar's exact test: whether two systems are right about equally many posts.

    Of the n posts that one system alone is right about, each would be either's with probability 1/2. The p-value is
    two-sided: twice the binomial probability of as few or fewer for the one that has fewer, 1 at most.

    Args:
        first: the first system's predictions; None is wrong.
        second: the second system's, for the same posts.
        targets: the gold labels, in the same order.

    Raises:
        ValueError: there are no posts, or the three differ in length.

    Source:
        McNemar 1947.
    """
    _check(first, targets)
    _check(second, targets)
    pairs = [(one == gold, two == gold) for one, two, gold in zip(first, second, targets, strict=True)]
    only_first, only_second = pairs.count((True, False)), pairs.count((False, True))
    n, fewer = only_first + only_second, min(only_first, only_second)
    ways = total = 1
    for k in range(1, fewer + 1):
        ways = ways * (n - k + 1) // k
        total += ways
    # Whole numbers throughout: 2**n is past the largest float from 1,024 posts on.
    return McNemar(only_first, only_second, min(1.0, 2 * total / 2**n) if n else 1.0)


def _resampled(
    systems: Sequence[Sequence[int | None]], targets: Sequence[int], num_labels: int, resamples: int, seed: int
) -> list[dict[str, NDArray[np.float64]]]:
    """The scores of every system in every resample; all systems have the same posts in it."""
    columns = [_codes(said, targets, num_labels) for said in systems]
    # Only combinations that occur can be drawn: there are never more of them than posts.
    cells, counts = np.unique(np.stack([np.asarray(targets, dtype=np.int64), *columns]), axis=1, return_counts=True)
    shares = counts / len(targets)
    generator = np.random.default_rng(seed)
    parts: list[list[dict[str, NDArray[np.float64]]]] = [[] for _ in systems]
    for start in range(0, resamples, _ROWS):
        drawn = generator.multinomial(len(targets), shares, size=min(_ROWS, resamples - start))
        for system, part in enumerate(parts):
            part.append(_scores(drawn, cells[0], cells[1 + system], num_labels))
    return [{name: np.concatenate([scores[name] for scores in part]) for name in SCORES} for part in parts]


def _point_scores(predictions: Sequence[int | None], targets: Sequence[int], num_labels: int) -> dict[str, float]:
    codes = _codes(predictions, targets, num_labels)
    each = np.ones((1, len(targets)), dtype=np.int64)
    return {name: float(values[0]) for name, values in _scores(each, np.asarray(targets), codes, num_labels).items()}


def _scores(
    counts: NDArray[np.int64], gold: NDArray[np.int64], said: NDArray[np.int64], num_labels: int
) -> dict[str, NDArray[np.float64]]:
    """Accuracy and F1 of many samples.

    Args:
        counts: how often each cell was drawn, [samples, cells].
        gold: the gold label of each cell, [cells].
        said: its predicted label, [cells]; `num_labels` stands for none.
        num_labels: how many labels there are.
    """
    labels = np.arange(num_labels)
    is_gold = (gold[:, None] == labels).astype(np.float64)
    is_said = (said[:, None] == labels).astype(np.float64)
    posts, predicted, right = counts @ is_gold, counts @ is_said, counts @ (is_gold * is_said)
    occurring = posts + predicted  # F1 = 2 tp / (posts + predicted)
    f1 = np.divide(2 * right, occurring, out=np.zeros_like(right), where=occurring > 0)
    total = posts.sum(axis=1)
    return {
        "accuracy": right.sum(axis=1) / total,
        "weighted_f1": (f1 * posts).sum(axis=1) / total,
        "macro_f1": f1.sum(axis=1) / (occurring > 0).sum(axis=1),
    }


def _codes(predictions: Sequence[int | None], targets: Sequence[int], num_labels: int) -> NDArray[np.int64]:
    """Predictions as numbers, `num_labels` for none."""
    _check(predictions, targets)
    if any(not 0 <= index < num_labels for index in (*targets, *(said for said in predictions if said is not None))):
        raise ValueError(f"labels are numbered from 0 to {num_labels - 1}")
    return np.array([num_labels if said is None else said for said in predictions], dtype=np.int64)


def _check(predictions: Sequence[int | None], targets: Sequence[int]) -> None:
    if len(targets) == 0 or len(predictions) != len(targets):
        raise ValueError(
            f"{len(predictions)} predictions for {len(targets)} targets; one for each of at least one post"
        )


def _interval(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
