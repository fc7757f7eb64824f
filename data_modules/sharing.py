"""How many posts each split of a data set gets, and how many groups of each size make them up."""

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from mulcot.types import SPLITS, InputError, Split

Shares = dict[int, tuple[int, int]]
"""Groups for the first and for the second split, by their size in posts."""
# Groups of every size that are taken back from both splits, to be searched with those of the rest.
_MARGINS = (0, 1, 4, 16)
# Cells of the largest search, which takes seconds: two splits of 4,000 posts.
_MOST_CELLS = 2**24


def split_sizes(posts: int, train: int | float, val: int | float, test: int | float | None = None) -> dict[Split, int]:
    """The posts of each split, from counts or from shares.

    Shares become counts by the largest remainder; where remainders are equal, the earlier split gets the post.

    Args:
        posts: All posts.
        train: A count, or a share as a float from 0 to 1.
        val: Likewise; all are of one kind, but 0 is of either.
        test: Likewise; None for what the other two leave.

    Raises:
        InputError: They do not use up the posts, or the training split would get none.
    """
    given: dict[Split, int | float | None] = {"train": train, "val": val, "test": test}
    sizes: dict[Split, int] | None
    if are_shares(train, val, test):
        sizes, whole = _from_shares(posts, given), "1 as shares, or give whole numbers"
    else:
        rest = posts - train - val if test is None else test
        sizes, whole = {"train": int(train), "val": int(val), "test": int(rest)}, str(posts)
    if sizes is None or sizes["train"] < 1 or min(sizes.values()) < 0 or sum(sizes.values()) != posts:
        written = ", ".join(f"{split}: {'null' if size is None else size}" for split, size in given.items())
        raise InputError(
            f"{written} do not divide the {posts} posts; let them add up to {whole}, with at least 1 post in train "
            "(test: null takes what is left)"
        )
    return sizes


def check_sizes(train: int | float, val: int | float, test: int | float | None) -> None:
    """Refuses sizes that divide no data set, before it is read.

    Raises:
        InputError: One is below 0, the training split gets none, or shares add up to more than 1.
    """
    given = {"train": train, "val": val} | ({} if test is None else {"test": test})
    for name, size in given.items():
        if not 0 <= size < math.inf or (name == "train" and size == 0):
            wanted = "a count or a share above 0" if name == "train" else "a count or a share, 0 or more"
            raise InputError(f"{name} of GroupedSplit is {size}; it must be {wanted}")
    if are_shares(train, val, test) and max(given.values()) <= 1 and sum(given.values()) > 1 + 1e-9:
        written = " + ".join(str(size) for size in given.values())
        raise InputError(f"train of GroupedSplit is {train}, and {written} is more than 1: shares add up to 1")


def are_shares(*sizes: int | float | None) -> bool:
    """Whether the sizes of splits are shares of all posts, of which one is a float at least, and not counts."""
    return any(isinstance(size, float) for size in sizes)


def as_counts(
    train: int | float, val: int | float, test: int | float | None
) -> tuple[int | float, int | float, int | float | None]:
    """The sizes of splits, with counts that came as floats as the whole numbers that they are.

    A parser of `int | float` may give 111.0 for 111: `typing` keeps one of `Union[int, float]` and `Union[float, int]`
    for both, whichever was spelt first anywhere in the process.
    """
    counted = max(train, val, test or 0) > 1
    return _whole(train, counted), _whole(val, counted), None if test is None else _whole(test, counted)


def _whole(size: int | float, counted: bool) -> int | float:
    return int(size) if counted and isinstance(size, float) and size.is_integer() else size


def _from_shares(posts: int, given: Mapping[Split, int | float | None]) -> dict[Split, int] | None:
    """See `split_sizes`; None when these are no shares of one whole."""
    known = {split: size for split, size in given.items() if size is not None}
    if not all(0 <= size <= 1 and (isinstance(size, float) or size == 0) for size in known.values()):
        return None
    # As written in decimals: 0.7, 0.2 and 0.1 add up to 1.
    shares = {split: Fraction(str(size)) for split, size in known.items()}
    if given["test"] is None:
        shares["test"] = 1 - shares["train"] - shares["val"]
    whole = shares["train"] + shares["val"] + shares["test"]
    if shares["test"] < 0 or abs(whole - 1) > 1e-6:
        return None
    parts = {split: posts * share / whole for split, share in shares.items()}
    sizes = {split: int(part) for split, part in parts.items()}
    by_remainder = sorted(SPLITS, key=lambda split: parts[split] - sizes[split], reverse=True)
    for split in by_remainder[: posts - sum(sizes.values())]:
        sizes[split] += 1
    return sizes


def share_out(counts: Mapping[int, int], first: int, second: int) -> Shares:
    """How many groups of each size go to two splits so that these get `first` and `second` posts.

    Groups are dealt in proportion, and a combination that fits is searched among those that are left; when they hold
    none, more and more are taken back, and at last everything is searched. So sizes are missed only when no choice of
    whole groups meets them, and then by as little as possible, summed over the two splits and the rest. That last
    search is left out where both splits are larger than some 4,000 posts; with even a few small groups it is not
    reached.

    Args:
        counts: The number of groups of each size in posts.
        first: Posts wanted in the first split.
        second: Posts wanted in the second.
    """
    wanted = np.array((first, second))
    best = widest = _in_proportion(counts, first, second)
    for dealt in _dealings(best):
        found = _completed(counts, dealt, wanted, 0)
        if found is not None:
            best, widest = found, dealt
        if _miss(best, wanted) == 0:
            return best
    # Nearer ones may go beyond a wanted size: by half of what is missed now at most, for in a split that is further
    # off the other two miss as much again; and by less than one group, for taking it back leads nearer.
    room = min(max(counts), _miss(best, wanted) // 2)
    beyond = _completed(counts, widest, wanted, room)
    return best if beyond is None else beyond


def posts_of(shares: Shares) -> NDArray[np.int64]:
    """The posts of the first and of the second split."""
    return np.array([sum(size * pair[at] for size, pair in shares.items()) for at in range(2)], dtype=np.int64)


def _miss(shares: Shares, wanted: NDArray[np.int64]) -> int:
    """By how many posts the two splits and the rest miss their sizes, summed."""
    gaps = posts_of(shares) - wanted
    return int(np.abs(gaps).sum() + abs(gaps.sum()))


def _in_proportion(counts: Mapping[int, int], first: int, second: int) -> Shares:
    """From the largest groups on, as many as the share of the posts so far allows; smaller ones make up the rest."""
    total = max(1, sum(size * count for size, count in counts.items()))
    owed = [0, 0]
    dealt: Shares = {}
    for size, count in sorted(counts.items(), reverse=True):
        # In units of 1/total post: whole numbers stay exact.
        owed = [owed[0] + size * count * first, owed[1] + size * count * second]
        one = min(count, owed[0] // (size * total))
        two = min(count - one, owed[1] // (size * total))
        owed = [owed[0] - one * size * total, owed[1] - two * size * total]
        dealt[size] = (one, two)
    return dealt


def _dealings(dealt: Shares) -> Iterator[Shares]:
    """The dealing with more and more groups taken back, at last with none dealt."""
    for margin in _MARGINS:
        yield {size: (max(0, one - margin), max(0, two - margin)) for size, (one, two) in dealt.items()}
    yield dict.fromkeys(dealt, (0, 0))


def _completed(counts: Mapping[int, int], dealt: Shares, wanted: NDArray[np.int64], room: int) -> Shares | None:
    """The dealing with the best choice of the groups that it leaves; None when the search would be too large."""
    missing = wanted - posts_of(dealt)
    if np.prod(missing + room + 1) > _MOST_CELLS:
        return None
    added = _search({size: count - sum(dealt[size]) for size, count in counts.items()}, missing, room)
    return {size: (one + added[size][0], two + added[size][1]) for size, (one, two) in dealt.items()}


def _search(counts: Mapping[int, int], missing: NDArray[np.int64], room: int) -> Shares:
    """The choice that comes nearest, by dynamic programming over pairs of split sizes, one layer a size of group."""
    grid = np.zeros((int(missing[0]) + room + 1, int(missing[1]) + room + 1), dtype=np.bool_)
    grid[0, 0] = True
    layers: list[tuple[int, NDArray[np.uint8]]] = []
    for size, count in sorted(counts.items()):
        layers.append((size, np.packbits(grid, axis=1)))
        grid = _reach(grid, size, count)
    reached = np.argwhere(grid)
    gaps = reached - missing
    at = reached[(np.abs(gaps).sum(axis=1) + np.abs(gaps.sum(axis=1))).argmin()]
    share = missing / max(1, sum(size * count for size, count in counts.items()))
    chosen: Shares = {}
    for size, packed in reversed(layers):
        before = np.unpackbits(packed, axis=1, count=grid.shape[1])
        # [x, y]: whether x groups of this size in the first split and y in the second can make the last step.
        most = counts[size] + 1
        possible = np.argwhere(before[at[0] :: -size, at[1] :: -size][:most, :most])
        possible = possible[possible.sum(axis=1) <= counts[size]]
        step = possible[np.abs(possible - share * counts[size]).sum(axis=1).argmin()]
        chosen[size] = (int(step[0]), int(step[1]))
        at = at - size * step
    return chosen


def _reach(grid: NDArray[np.bool_], size: int, count: int) -> NDArray[np.bool_]:
    """The pairs of split sizes that `count` more groups of `size` posts make possible."""
    for many in _bundles(min(count, sum(grid.shape) // size)):
        step = size * many
        wider = grid.copy()
        wider[step:] |= grid[:-step]
        wider[:, step:] |= grid[:, :-step]
        grid = wider
    return grid


def _bundles(count: int) -> list[int]:
    """Few numbers that add up to `count` and of which some make any x and others any y, where x + y <= count.

    These are two each of 1, 2, 4, ... and the halves of what is left. Of x, y and the rest, the largest takes all that
    the others leave; each of these has a set of its own, which makes every number up to half of the count.
    """
    bundles: list[int] = []
    left, power = count, 1
    while left >= 2 * power:
        bundles += [power, power]
        left -= 2 * power
        power *= 2
    return [*bundles, *(half for half in (left // 2, left - left // 2) if half)]
