"""Token sequences with their common beginnings once: a tree, laid out as one sequence.

A node is a token, its path is what a row's model would have read before it. The nodes stand depth first, so that those
that may see a node, its descendants, follow it without a gap: one number a node, where they end, says all about who
sees whom. A node at `i` may see the one at `j` exactly if `j <= i < until[j]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Ids = Sequence[int]


@dataclass(frozen=True, slots=True)
class TokenTree:
    """Sequences that were merged."""

    ids: tuple[int, ...]
    """The token of every node."""
    depths: tuple[int, ...]
    """How many tokens come before it on its path."""
    until: tuple[int, ...]
    """The first node behind it that may not see it."""
    paths: tuple[tuple[int, ...], ...]
    """For every sequence the node of each of its tokens."""


def merge(sequences: Sequence[Ids]) -> TokenTree:
    """Merges sequences: what several of them begin with is there once, whatever it means to each.

    Args:
        sequences: in any order; equal ones share all nodes.
    """
    ids: list[int] = []
    depths: list[int] = []
    until: list[int] = []
    paths: list[tuple[int, ...]] = [()] * len(sequences)
    path: tuple[int, ...] = ()
    previous: tuple[int, ...] = ()
    # In this order sequences with a common beginning are neighbours, which is what depth first means.
    for number, sequence in sorted(enumerate(map(tuple, sequences)), key=lambda item: item[1]):
        shared = common_length(previous, sequence)
        for node in path[shared:]:
            until[node] = len(ids)
        path = (*path[:shared], *range(len(ids), len(ids) + len(sequence) - shared))
        ids.extend(sequence[shared:])
        depths.extend(range(shared, len(sequence)))
        until.extend([-1] * (len(sequence) - shared))
        paths[number] = path
        previous = sequence
    for node in path:
        until[node] = len(ids)
    return TokenTree(tuple(ids), tuple(depths), tuple(until), tuple(paths))


def common_length(first: Ids, second: Ids) -> int:
    """How many tokens two sequences begin with in common."""
    for index, (mine, other) in enumerate(zip(first, second, strict=False)):
        if mine != other:
            return index
    return min(len(first), len(second))
