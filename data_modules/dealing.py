"""Groups of posts dealt to the splits of a data set: whole ones, to exact sizes, with labels in proportion."""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from data_modules.sharing import share_out
from mulcot.types import SPLITS, Split

# So many kinds of groups on each side are compared for a swap, the most promising ones.
_MOST_KINDS = 64
# Differences below this are rounding; which of two equal swaps is made may not depend on the machine.
_DIGITS = 6


def deal(groups: Sequence[Sequence[str]], sizes: Mapping[Split, int], seed: int) -> list[Split]:
    """The split of every group, so that the splits have these sizes, or the nearest that whole groups allow.

    First it is settled how many groups of each size go where; these are dealt evenly over the labels; then groups of
    one size change places as long as that brings the labels of their splits nearer to those of the whole.

    Args:
        groups: The labels of each group's posts.
        sizes: Posts wanted in each split; they add up to all posts.
        seed: Decides which of like groups go where.
    """
    # The two smaller splits are filled; the largest takes what is left.
    second, first, rest = sorted(SPLITS, key=lambda split: sizes[split])
    by_size: dict[int, list[int]] = defaultdict(list)
    for number, labels in enumerate(groups):
        by_size[len(labels)].append(number)
    chosen = share_out({size: len(numbers) for size, numbers in by_size.items()}, sizes[first], sizes[second])
    generator = random.Random(seed)
    sides: list[Split] = [rest] * len(groups)
    for size, numbers in sorted(by_size.items()):
        names = _spread({first: chosen[size][0], second: chosen[size][1], rest: len(numbers) - sum(chosen[size])})
        for number, side in zip(_mixed(numbers, groups, generator), names, strict=True):
            sides[number] = side
    balance = _Balance(groups, sides)
    # One swap of each size and pair of splits in turn: what one changes, the next takes into account.
    while sum(balance.swap(*place) for place in balance.places):
        pass
    return sides


def _mixed(numbers: Sequence[int], groups: Sequence[Sequence[str]], generator: random.Random) -> list[int]:
    """Groups shuffled, then brought together by label, so that evenly spaced picks take every label in proportion."""
    mixed = list(numbers)
    generator.shuffle(mixed)
    mixed.sort(key=lambda number: sorted(groups[number]))
    start = generator.randrange(len(mixed))
    return mixed[start:] + mixed[:start]


def _spread(quotas: Mapping[Split, int]) -> list[Split]:
    """Each name as often as its quota says, spaced as evenly as can be: the name furthest behind comes next."""
    length = sum(quotas.values())
    given = dict.fromkeys(quotas, 0)
    order: list[Split] = []
    for position in range(1, length + 1):
        name = max(quotas, key=lambda name: position * quotas[name] - given[name] * length)
        given[name] += 1
        order.append(name)
    return order


class _Balance:
    """How far the labels of every split are off, and the groups that it could exchange.

    What a swap lowers is chi-square: the squared differences between a split's posts of a label and its share of
    them, over that share. So rare labels and small splits count as much as the others.

    Groups are of one kind when their posts have the same labels.
    """

    def __init__(self, groups: Sequence[Sequence[str]], sides: list[Split]) -> None:
        """Count; `sides` is changed by every swap."""
        self._sides = sides
        columns = {label: column for column, label in enumerate(sorted({label for one in groups for label in one}))}
        kinds: dict[int, dict[tuple[int, ...], int]] = defaultdict(dict)
        members: dict[tuple[int, Split], dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        counts = {side: np.zeros(len(columns)) for side in SPLITS if side in sides}
        for number, (group, side) in enumerate(zip(groups, sides, strict=True)):
            labels = tuple(sorted(columns[label] for label in group))
            kind = kinds[len(labels)].setdefault(labels, len(kinds[len(labels)]))
            members[len(labels), side][kind].append(number)
            for column in labels:
                counts[side][column] += 1
        self._kinds = {size: np.array(list(known)) for size, known in kinds.items()}
        self._members = members
        whole = np.sum(list(counts.values()), axis=0)
        shares = {side: whole * (some.sum() / whole.sum()) for side, some in counts.items()}
        self._excess = {side: some - shares[side] for side, some in counts.items()}
        self._weight = {side: 1 / some for side, some in shares.items()}
        self.places = [(size, *pair) for size in sorted(kinds) for pair in combinations(counts, 2)]
        """Sizes of groups and pairs of splits that can swap them."""

    def swap(self, size: int, one: Split, other: Split) -> bool:
        """Makes the best swap of two groups of a size between two splits, if one is for the better."""
        slope = 2 * (self._excess[one] * self._weight[one] - self._excess[other] * self._weight[other])
        given = self._promising(size, one, -slope)
        taken = self._promising(size, other, slope)
        if not (len(given) and len(taken)):
            return False
        out, back = (self._posts(size, kinds) for kinds in (given, taken))
        weight = self._weight[one] + self._weight[other]
        # The change of chi-square for a change d of the first split's posts: slope d + weight d^2, summed over labels.
        change = (
            (back @ slope + back**2 @ weight) + (out**2 @ weight - out @ slope)[:, None] - 2 * (out * weight) @ back.T
        )
        change = change.round(_DIGITS)
        row, column = np.unravel_index(change.argmin(), change.shape)
        if change[row, column] >= 0:
            return False
        self._exchange(size, (one, other), (int(given[row]), int(taken[column])))
        moved = back[column] - out[row]
        self._excess[one] += moved
        self._excess[other] -= moved
        return True

    def _promising(self, size: int, side: Split, slope: NDArray[np.float64]) -> NDArray[np.int64]:
        """The kinds of a split's groups for which the slope is lowest."""
        kinds = np.array([kind for kind, numbers in self._members[size, side].items() if numbers], dtype=np.int64)
        steepness = slope[self._kinds[size][kinds]].sum(axis=1).round(_DIGITS)
        return kinds[steepness.argsort(kind="stable")[:_MOST_KINDS]]

    def _posts(self, size: int, kinds: NDArray[np.int64]) -> NDArray[np.float64]:
        """The posts of each label in a group of each kind, `[kinds, labels]`."""
        labels = next(iter(self._excess.values())).size
        return np.stack([np.bincount(columns, minlength=labels) for columns in self._kinds[size][kinds]]).astype(float)

    def _exchange(self, size: int, pair: tuple[Split, Split], kinds: tuple[int, int]) -> None:
        """A group of the first kind leaves the first split, and one of the second kind the second."""
        numbers = [self._members[size, side][kind].pop() for side, kind in zip(pair, kinds, strict=True)]
        for number, kind, side in zip(numbers, kinds, reversed(pair), strict=True):
            self._members[size, side][kind].append(number)
            self._sides[number] = side
