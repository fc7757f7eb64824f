import random
from collections import Counter
from collections.abc import Sequence

import pytest

from data_modules.dealing import deal
from mulcot.types import SPLITS, Split


def eighty(posts: int) -> dict[Split, int]:
    tenth = posts // 10
    return {"train": posts - 2 * tenth, "val": tenth, "test": tenth}


def counts(groups: Sequence[Sequence[str]], sides: Sequence[Split]) -> dict[Split, Counter[str]]:
    return {
        split: Counter(label for labels, side in zip(groups, sides, strict=True) if side == split for label in labels)
        for split in SPLITS
    }


def most_off(groups: Sequence[Sequence[str]], sides: Sequence[Split]) -> float:
    """By how many posts a label of a split misses its share at most."""
    found = counts(groups, sides)
    whole = sum(found.values(), Counter())
    return max(
        abs(some[label] - number * some.total() / whole.total())
        for some in found.values()
        for label, number in whole.items()
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_rare_label_gets_its_share_everywhere(seed: int) -> None:
    groups = [["rare"]] * 30 + [["often"]] * 600 + [["other"]] * 370
    random.Random(seed).shuffle(groups)
    found = counts(groups, deal(groups, eighty(1000), seed))
    assert found["train"] == {"rare": 24, "often": 480, "other": 296}
    assert found["val"] == found["test"] == {"rare": 3, "often": 60, "other": 37}


@pytest.mark.parametrize("seed", range(5))
def test_shares_stay_where_groups_have_several_posts_and_labels(seed: int) -> None:
    generator = random.Random(seed)
    sizes = [generator.choice([1, 1, 1, 2, 2, 3, 4, 5, 8]) for _ in range(400)]
    groups = [generator.choices(["a", "b", "rare"], [30, 60, 3], k=size) for size in sizes]
    sides = deal(groups, eighty(sum(sizes)), seed)
    assert {split: some.total() for split, some in counts(groups, sides).items()} == eighty(sum(sizes))
    assert most_off(groups, sides) <= 1


def test_hundreds_of_labels() -> None:
    generator = random.Random(0)
    labels = [f"label {number}" for number in range(200)]
    groups = [generator.choices(labels, k=generator.choice([1, 1, 1, 2, 3])) for _ in range(2000)]
    sides = deal(groups, eighty(sum(map(len, groups))), 0)
    assert most_off(groups, sides) <= 1.5


def test_one_label_or_one_split() -> None:
    assert deal([["a"]] * 3, {"train": 3, "val": 0, "test": 0}, 0) == ["train"] * 3
    assert sorted(deal([["a"], ["b"], ["a", "b"]], {"train": 2, "val": 1, "test": 1}, 0)) == ["test", "train", "val"]


def test_the_seed_decides() -> None:
    groups = [["a"], ["b"], ["a", "b"]] * 20
    sizes = eighty(80)
    first = deal(groups, sizes, 1)
    assert deal(groups, sizes, 1) == first
    assert len({tuple(deal(groups, sizes, seed)) for seed in range(10)}) == 10
