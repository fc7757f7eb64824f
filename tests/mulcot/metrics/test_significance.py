"""Intervals against resampling written out with scikit-learn and against the normal approximation; McNemar by hand."""

import math
import random
import time

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, f1_score

from mulcot.metrics.functional import (
    bootstrap_intervals,
    classification_scores,
    mcnemar,
    mean_differences,
    paired_differences,
)

NAMES = ("accuracy", "weighted_f1", "macro_f1")


def drawn(seed: int, posts: int, right: float, missing: float = 0.0) -> tuple[list[int | None], list[int]]:
    rng = random.Random(seed)
    gold = rng.choices(range(3), (5, 3, 2), k=posts)
    said = [g if rng.random() < right else rng.randrange(3) for g in gold]
    return [None if rng.random() < missing else label for label in said], gold


def by_scikit_learn(said: np.ndarray, gold: np.ndarray) -> dict[str, float]:
    occurring = sorted({*said.tolist(), *gold.tolist()} - {3})
    scores = {"labels": occurring, "zero_division": 0.0}
    return {
        "accuracy": accuracy_score(gold, said),
        "weighted_f1": f1_score(gold, said, average="weighted", **scores),
        "macro_f1": f1_score(gold, said, average="macro", **scores),
    }


def resampled_post_by_post(systems: list[list], gold: list[int], resamples: int) -> list[list[dict[str, float]]]:
    """Each resample by drawing posts, scored by scikit-learn; a missing prediction is a fourth label."""
    rng = np.random.default_rng(5)
    columns = [np.array([3 if label is None else label for label in said]) for said in systems]
    targets, tables = np.array(gold), [[] for _ in systems]
    for _ in range(resamples):
        posts = rng.integers(0, len(gold), len(gold))
        for table, column in zip(tables, columns, strict=True):
            table.append(by_scikit_learn(column[posts], targets[posts]))
    return tables


def test_intervals_are_those_of_resampling_post_by_post():
    said, gold = drawn(1, 120, 0.7, missing=0.1)
    found = bootstrap_intervals(said, gold, 3, resamples=20_000)
    [table] = resampled_post_by_post([said], gold, 500)
    for name in NAMES:
        expected = np.quantile([row[name] for row in table], [0.025, 0.975])
        assert found[name] == pytest.approx(expected, abs=0.025), name


def test_the_interval_of_the_accuracy_is_near_the_binomials():
    said, gold = drawn(2, 2000, 0.7)
    share = sum(s == g for s, g in zip(said, gold, strict=True)) / 2000
    half = 1.959964 * math.sqrt(share * (1 - share) / 2000)
    low, high = bootstrap_intervals(said, gold, 3, resamples=10_000)["accuracy"]
    assert (low, high) == pytest.approx((share - half, share + half), abs=0.0015)
    narrow = bootstrap_intervals(said, gold, 3, level=0.5, resamples=10_000)["accuracy"]
    assert narrow[1] - narrow[0] == pytest.approx(2 * half * 0.67449 / 1.959964, abs=0.001)


def test_a_seed_gives_the_same_interval_and_another_seed_another():
    said, gold = drawn(3, 100, 0.6)
    assert bootstrap_intervals(said, gold, 3, seed=4) == bootstrap_intervals(said, gold, 3, seed=4)
    assert bootstrap_intervals(said, gold, 3, seed=4) != bootstrap_intervals(said, gold, 3, seed=5)


def test_all_right_and_all_wrong_leave_nothing_open():
    gold = [0, 1, 2, 1]
    assert set(bootstrap_intervals(gold, gold, 3).values()) == {(1.0, 1.0)}
    assert set(bootstrap_intervals([None] * 4, gold, 3).values()) == {(0.0, 0.0)}


def test_differences_are_second_minus_first_and_paired():
    first, gold = drawn(6, 150, 0.5)
    second, _ = drawn(6, 150, 0.5)
    second = [g if n % 5 == 0 else s for n, (s, g) in enumerate(zip(second, gold, strict=True))]
    second[7] = None
    found = paired_differences(first, second, gold, 3, resamples=20_000)
    before, after = (classification_scores(said, gold, 3) for said in (first, second))
    for name in NAMES:
        assert found[name].difference == pytest.approx(getattr(after, name) - getattr(before, name), abs=1e-6)
    tables = resampled_post_by_post([first, second], gold, 500)
    for name in NAMES:
        expected = np.quantile([b[name] - a[name] for a, b in zip(*tables, strict=True)], [0.025, 0.975])
        assert found[name][1:] == pytest.approx(expected, abs=0.025), name
    # The systems agree on most posts: taken for independent samples they would seem to differ by much more.
    alone = [bootstrap_intervals(said, gold, 3)["accuracy"] for said in (first, second)]
    paired = found["accuracy"].high - found["accuracy"].low
    assert paired < 0.6 * math.sqrt(sum((high - low) ** 2 for low, high in alone))


def test_a_system_against_itself_differs_by_nothing():
    said, gold = drawn(7, 50, 0.6, missing=0.2)
    assert {tuple(found) for found in paired_differences(said, said, gold, 3).values()} == {(0.0, 0.0, 0.0)}
    assert mcnemar(said, said, gold) == (0, 0, 1.0)


def test_mcnemar_by_hand():
    gold = [0] * 10
    # Post 0 is the first's alone, posts 1 to 6 the second's: 2 * (C(7, 0) + C(7, 1)) / 2**7.
    first, second = [0, 1, 1, 1, None, 1, 1, 0, 1, None], [1, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    assert mcnemar(first, second, gold) == (1, 6, 2 * (1 + 7) / 2**7)
    assert mcnemar(second, first, gold) == (6, 1, 2 * (1 + 7) / 2**7)
    assert mcnemar([0, 1], [1, 0], [0, 0]).p_value == 1.0


@pytest.mark.parametrize(("first", "second"), [(3, 9), (40, 61), (0, 12), (700, 820), (2400, 2500)])
def test_mcnemar_is_the_binomial_test_of_scipy(first, second):
    gold = [0] * (first + second + 5)
    one, two = [0] * first + [1] * (second + 5), [1] * first + [0] * second + [1] * 5
    assert mcnemar(one, two, gold) == (first, second, pytest.approx(binomtest(first, first + second).pvalue, rel=1e-9))


def test_ten_thousand_posts_take_a_moment():
    said, gold = drawn(8, 10_000, 0.7)
    began = time.process_time()
    bootstrap_intervals(said, gold, 3)
    paired_differences(said, gold, gold, 3)
    mcnemar(said, gold, gold)
    assert time.process_time() - began < 8  # one post after the other it takes minutes


def test_what_cannot_be_scored_is_refused():
    for call in (bootstrap_intervals, lambda said, gold, n: paired_differences(said, said, gold, n)):
        with pytest.raises(ValueError, match="0 predictions for 0 targets"):
            call([], [], 3)
        with pytest.raises(ValueError, match="1 predictions for 2 targets"):
            call([0], [0, 1], 3)
        with pytest.raises(ValueError, match="numbered from 0 to 2"):
            call([0, 3], [0, 1], 3)
        with pytest.raises(ValueError, match="numbered from 0 to 2"):
            call([0, None], [0, -1], 3)
    with pytest.raises(ValueError, match="0 predictions for 0 targets"):
        mcnemar([], [], [])
    with pytest.raises(ValueError, match="1 predictions for 2 targets"):
        mcnemar([0, 1], [0], [0, 1])


def test_the_mean_over_seeds_is_over_the_same_posts():
    first, gold = drawn(9, 120, 0.5)
    seconds = [[g if n % step == 0 else s for n, (s, g) in enumerate(zip(first, gold, strict=True))] for step in (4, 7)]
    found = mean_differences([first, first], seconds, gold, 3, resamples=20_000)
    tables = resampled_post_by_post([first, *seconds], gold, 500)
    for name in NAMES:
        singles = [paired_differences(first, second, gold, 3)[name].difference for second in seconds]
        assert found[name].difference == pytest.approx(sum(singles) / 2)
        changes = [(one[name] + two[name]) / 2 - base[name] for base, one, two in zip(*tables, strict=True)]
        assert found[name][1:] == pytest.approx(np.quantile(changes, [0.025, 0.975]), abs=0.025), name
    one = mean_differences([first], [seconds[0]], gold, 3)
    assert one == paired_differences(first, seconds[0], gold, 3)
    with pytest.raises(ValueError, match="2 first systems for 1 second ones"):
        mean_differences([first, first], [seconds[0]], gold, 3)
