"""Swaps: nobody gets what is equal to his own, everything is given once, and only what must be is left out."""

import random
from collections import Counter

import pytest

from mulcot.metrics.swaps import derangement


@pytest.mark.parametrize("seed", range(200))
def test_the_laws_of_a_derangement(seed: int) -> None:
    draw = random.Random(seed)
    kinds = [draw.choice("aabcdefgh"[: draw.randint(1, 9)]) for _ in range(draw.randint(0, 25))]
    given = derangement(kinds, random.Random(seed))
    assert sorted(given) == sorted(given.values()), "each is given exactly once"
    assert all(kinds[one] != kinds[other] for one, other in given.items())
    most = max(Counter(kinds).values(), default=0)
    assert len(kinds) - len(given) == max(0, 2 * most - len(kinds)), "more can never take part"
    assert derangement(kinds, random.Random(seed)) == given


def test_no_other_item_is_preferred() -> None:
    """Of four different items each gets each other one a third of the time."""
    rng = random.Random(0)
    counts = Counter(pair for _ in range(3000) for pair in derangement("abcd", rng).items())
    assert len(counts) == 12
    assert all(abs(count - 1000) < 5 * (3000 * 2 / 9) ** 0.5 for count in counts.values())
