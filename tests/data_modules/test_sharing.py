import itertools
import random
from collections import Counter

import pytest

from data_modules.sharing import posts_of, share_out, split_sizes
from mulcot.types import InputError


@pytest.mark.parametrize(
    ("posts", "given", "sizes"),
    [
        (10, (8, 1, 1), (8, 1, 1)),
        (10, (8, 1), (8, 1, 1)),
        (10, (8, 2, None), (8, 2, 0)),
        (10, (0.8, 0.1, 0.1), (8, 1, 1)),
        (10, (0.7, 0.2, 0.1), (7, 2, 1)),  # as floats these add up to 0.9999999999999999
        (10, (0.7, 0.2, None), (7, 2, 1)),
        (11, (0.8, 0.1, 0.1), (9, 1, 1)),  # 8.8, 1.1, 1.1
        (12, (0.8, 0.1, 0.1), (10, 1, 1)),  # 9.6, 1.2, 1.2
        (15, (0.8, 0.1, 0.1), (12, 2, 1)),  # 12, 1.5, 1.5: the earlier split gets it
        (100, (0.29, 0.29, None), (29, 29, 42)),  # 100 * 0.29 is 28.999999999999996
        (10, (0.9, 0.1, 0), (9, 1, 0)),
        (10, (0.9, 0, None), (9, 0, 1)),
        (3, (0.3333333, 0.3333333, 0.3333333), (1, 1, 1)),
        (1122, (0.8, 0.1, 0.1), (898, 112, 112)),  # 897.6, 112.2, 112.2
    ],
)
def test_sizes(posts: int, given: tuple, sizes: tuple[int, int, int]) -> None:
    assert split_sizes(posts, *given) == dict(zip(("train", "val", "test"), sizes, strict=True))


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        ((3, 1, 1), "4"),
        ((5, 1, None), "4"),
        ((0, 2, 2), "4"),
        ((5, -1, 0), "4"),
        ((0.8, 0.1, 0.2), "1 as shares"),
        ((0.8, 0.3, None), "1 as shares"),
        ((0.8, 1, None), "1 as shares"),
        ((1.2, -0.2, None), "1 as shares"),
        ((0.0, 0.5, 0.5), "1 as shares"),
        ((0.1, 0.9, None), "1 as shares"),  # no post for train
        ((float("nan"), 0.5, None), "1 as shares"),
        ((float("inf"), 0.5, None), "1 as shares"),
        ((2.0, 1.0, 1.0), "1 as shares"),
    ],
)
def test_sizes_must_use_up_the_posts(given: tuple, whole: str) -> None:
    with pytest.raises(InputError, match=rf"^train: .* do not divide the 4 posts; let them add up to {whole}"):
        split_sizes(4, *given)


def random_case(seed: int) -> tuple[list[int], int, int]:
    generator = random.Random(seed)
    groups = [generator.choice([1, 2, 3, 5, 6]) for _ in range(generator.randint(1, 7))]
    first = generator.randint(0, sum(groups))
    return groups, first, generator.randint(0, sum(groups) - first)


def miss(one: int, two: int, first: int, second: int) -> int:
    return abs(one - first) + abs(two - second) + abs(one + two - first - second)


@pytest.mark.parametrize(
    ("groups", "first", "second"),
    [
        *map(random_case, range(150)),
        # Found by search: the nearest sizes differ when the rest is not counted.
        ([5, 5, 3], 1, 4),
        ([3, 3, 2, 6, 6], 16, 4),
        # Found by search: more groups of a size would be taken than there are.
        ([2, 2, 1, 5, 3, 3], 6, 9),
        ([3, 6, 6, 6, 5, 5, 2], 8, 24),
    ],
)
def test_the_search_is_as_good_as_trying_everything(groups: list[int], first: int, second: int) -> None:
    best = min(
        miss(
            sum(size for size, side in zip(groups, sides, strict=True) if side == 0),
            sum(size for size, side in zip(groups, sides, strict=True) if side == 1),
            first,
            second,
        )
        for sides in itertools.product(range(3), repeat=len(groups))
    )
    chosen = share_out(Counter(groups), first, second)
    assert all(min(pair) >= 0 and sum(pair) <= Counter(groups)[size] for size, pair in chosen.items())
    assert miss(*posts_of(chosen).tolist(), first, second) == best


@pytest.mark.parametrize("seed", range(30))
def test_many_groups_of_few_sizes(seed: int) -> None:
    """Against every number of groups of two sizes, where taking a few back is not enough to find what fits."""
    generator = random.Random(seed)
    (one, two), counts = generator.sample(range(2, 30), 2), [generator.randint(1, 25) for _ in range(2)]
    total = one * counts[0] + two * counts[1]
    first = generator.randint(0, total // 3)
    second = generator.randint(0, first)
    pairs = [[(x, y) for x in range(count + 1) for y in range(count + 1 - x)] for count in counts]
    best = min(miss(one * x + two * u, one * y + two * v, first, second) for x, y in pairs[0] for u, v in pairs[1])
    chosen = share_out({one: counts[0], two: counts[1]}, first, second)
    assert all(min(pair) >= 0 for pair in chosen.values())
    assert sum(chosen[one]) <= counts[0]
    assert sum(chosen[two]) <= counts[1]
    assert miss(*posts_of(chosen).tolist(), first, second) == best


@pytest.mark.parametrize(
    "counts",
    [
        {1: 70_000, 2: 10_000, 5: 2_000},
        {size: 2_000_000 // size**3 + 1 for size in range(1, 200)},
        {1: 15_000, 5_000: 1, 80_000: 1},
        {3: 10_000, 7: 10_000},
    ],
)
def test_large_sources_are_met_exactly_without_searching_everything(counts: dict[int, int]) -> None:
    tenth = sum(size * count for size, count in counts.items()) // 10
    chosen = share_out(counts, tenth, tenth)
    assert posts_of(chosen).tolist() == [tenth, tenth]
    assert all(min(pair) >= 0 and sum(pair) <= counts[size] for size, pair in chosen.items())


def test_one_group_that_is_larger_than_its_split() -> None:
    counts = {1: 10_000, 90_000: 1}
    one, two = posts_of(share_out(counts, 10_000, 10_000)).tolist()
    # The 10,000 others are all that two splits can have.
    assert one + two == 10_000
