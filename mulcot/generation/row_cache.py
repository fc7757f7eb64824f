"""Keys and values of rows that grow by a token at a time, come when there is room and leave when they are finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

BLOCK: Final = 64
"""Tokens for which room is made at once: everything is copied once in so many tokens instead of at each of them."""


@dataclass
class _Window:
    """The part of every layer's buffers that is in use."""

    rows: int
    """Rows from the first one on."""
    width: int
    """Tokens of the longest of them."""
    end: int
    """Where the tokens of all rows end."""


class _Layer(DynamicLayer):
    """Keys and values of one layer, `[rows, heads, tokens, D]`, in buffers with room; attention is given views."""

    def __init__(self, window: _Window, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self._window = window
        self.keys, self.values = _none_of(keys), _none_of(values)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Adds one token's states to every row."""
        rows, end = self._window.rows, self._window.end
        keys, values = cast(Tensor, self.keys), cast(Tensor, self.values)
        keys[:rows, :, end : end + 1] = key_states
        values[:rows, :, end : end + 1] = value_states
        seen = slice(end - self._window.width, end + 1)
        return keys[:rows, :, seen], values[:rows, :, seen]

    def get_seq_length(self) -> int:
        """Tokens that attention sees before the one that is added."""
        return self._window.width


States = list[tuple[Tensor, Tensor]]
"""Keys and values of every layer, `[lines, heads, tokens, D]`."""


class RowCache:
    """A cache for transformers' models whose rows all end at the same column and begin where they may.

    A token is written in place. Columns before the longest row are left out of what attention is given, and a row that
    leaves is replaced by the last one, so that nothing else is moved.
    """

    def __init__(self) -> None:
        self._window = _Window(0, 0, 0)
        self.layers: list[_Layer] = []
        self.lengths: list[int] = []
        """Tokens of every row."""
        self.cache = Cache(layers=self.layers)  # type: ignore[arg-type]
        """For the model: it takes one token of every row, after `make_room`."""

    def admit(self, states: States, lines: Tensor, columns: Tensor, lengths: Sequence[int], room: int) -> None:
        """Adds rows behind the others.

        Args:
            states: what was read.
            lines: `[rows]`: the line on which each row was read.
            columns: `[rows, n]`: where its tokens are on the line; of a shorter row only the last ones count.
            lengths: of each row.
            room: how many rows there may come to be.
        """
        if not self.layers:
            self.layers += [_Layer(self._window, *layer) for layer in states]
        window, count = self._window, len(lengths)
        self._fit(max(room, window.rows + count), columns.shape[1])
        rows, seen = slice(window.rows, window.rows + count), slice(window.end - columns.shape[1], window.end)
        for number, layer in enumerate(self.layers):
            for kept, read in zip((layer.keys, layer.values), states[number], strict=True):
                cast(Tensor, kept)[rows, :, seen] = _gathered(read, lines, columns)
        self.lengths += lengths
        self._measure()

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Drops all other rows.

        Args:
            rows: ascending.

        Returns:
            The rows that are kept in the order in which they now stand.
        """
        count, kept = len(rows), set(rows)
        order = list(range(count))
        holes = [row for row in range(count) if row not in kept]
        moved = [row for row in rows if row >= count]
        for hole, row in zip(holes, moved, strict=True):
            order[hole] = row
        seen = slice(self._window.end - self._window.width, self._window.end)
        for layer in self.layers if holes else ():
            for states in (cast(Tensor, layer.keys), cast(Tensor, layer.values)):
                states[holes, :, seen] = states[moved, :, seen]
        self.lengths = [self.lengths[row] for row in order]
        self._measure()
        return order

    def make_room(self, room: int) -> None:
        """Sees to it that every row can get one token more.

        Args:
            room: how many rows there may come to be; buffers that are made anew are made for so many.
        """
        self._fit(max(room, self._window.rows), self._window.width)

    def _fit(self, rows: int, longest: int) -> None:
        """Makes buffers anew where they do not hold so many rows, or tokens up to so long ones and one more."""
        window = self._window
        have = cast(Tensor, self.layers[0].keys).shape
        if rows <= have[0] and longest <= window.end < have[2]:
            return
        width, end = window.width, max(window.width, longest)
        for layer in self.layers:
            for name in ("keys", "values"):
                old: Tensor = getattr(layer, name)
                # Zeros: what a row does not see has no weight, and no weight times NaN would still be NaN.
                new = old.new_zeros(rows, old.shape[1], end + BLOCK, old.shape[3])
                new[: window.rows, :, end - width : end] = old[: window.rows, :, window.end - width : window.end]
                setattr(layer, name, new)
        window.end = end

    def seen(self, device: torch.device) -> Tensor | None:
        """What every row sees once a token is added, `[rows, tokens]`; None where all rows see everything."""
        width = self._window.width
        if min(self.lengths) == width:
            return None
        first = torch.tensor([width - length for length in self.lengths], device=device)
        return torch.arange(width + 1, device=device) >= first[:, None]

    def advance(self) -> None:
        """Counts the token that the model added to every row."""
        self._window.end += 1
        self.lengths = [length + 1 for length in self.lengths]
        self._measure()

    def _measure(self) -> None:
        self._window.rows, self._window.width = len(self.lengths), max(self.lengths, default=0)


def _none_of(states: Tensor) -> Tensor:
    """A buffer without rows, of the type that attention takes: under autocast it would round at every token."""
    kind = states.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
    return states.new_zeros((0, states.shape[1], 0, states.shape[3]), dtype=dtype)


def _gathered(states: Tensor, lines: Tensor, columns: Tensor) -> Tensor:
    """The states `[B, heads, L, D]` of some columns, `[rows, heads, columns, D]`."""
    heads = torch.arange(states.shape[1], device=states.device)
    return states[lines[:, None, None], heads[None, :, None], columns[:, None, :]]
