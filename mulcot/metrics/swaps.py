"""Which post gets whose part, when parts of posts change places."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Hashable, Sequence


def derangement(kinds: Sequence[Hashable], rng: random.Random) -> dict[int, int]:
    """Gives every item another one of another kind, drawn by `rng`, so that each is given exactly once.

    The items of a kind are put side by side, kinds and their items in random order, and everything moves on around the
    circle by the size of the largest kind. That is a derangement as long as no kind has more than half of all items;
    where one has, as many of it are left out as are too many.

    Args:
        kinds: What each item is; equal kinds are never given to each other.
        rng: Decides.

    Returns:
        The number of the item that each one gets, by its own number; items that are left out are missing.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for number, kind in enumerate(kinds):
        members[kind].append(number)
    groups = list(members.values())
    for group in groups:
        rng.shuffle(group)
    rng.shuffle(groups)
    largest = max(groups, key=len, default=[])
    others = len(kinds) - len(largest)
    del largest[others:]
    circle = [number for group in groups for number in group]
    return {number: circle[(at + len(largest)) % len(circle)] for at, number in enumerate(circle)}
