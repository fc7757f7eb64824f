"""From rows to tensors: as sequences of their own, or with what the rows of a post have in common once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from mulcot.losses import Sampled, TopK, join_pairs, pair_responses
from mulcot.rows.batch import AssistantRows, Inputs, Layout, RowBatch
from mulcot.rows.encoder import EncodedHead, RowEncoder, TextRow, vocabulary_digest
from mulcot.rows.pictures import PictureCache, PlaceOf
from mulcot.rows.tree import TokenTree, merge
from mulcot.types import InputError, Task


@dataclass(frozen=True, slots=True)
class RowForm:
    """In which form a model takes rows."""

    layout: Layout = "paired"
    """See `Layout`."""
    row_tokens: int | None = None
    """The shared layout puts several posts in one sequence as long as it has so many tokens at most; None puts each in
    one of its own."""
    pictures_once: bool = False
    """Whether vision tensors hold every distinct picture once."""


class RowCollator:
    """Makes batches of rows.

    Args:
        encoder: encodes pictures.
        view: gives the assistant's view of a row's response tokens; None trains on hard labels alone.
        picture_cache_mb: see `PictureCache`.
        place_of: see `PictureCache`.
        assistant: encodes the same rows for an assistant beside the student; None where it takes the student's own.
        form: how the model takes rows.
        assistant_form: how the assistant does.
    """

    def __init__(
        self,
        encoder: RowEncoder,
        view: Callable[[TextRow], TopK | Sampled] | None = None,
        picture_cache_mb: int = 0,
        place_of: PlaceOf | None = None,
        assistant: RowEncoder | None = None,
        form: RowForm | None = None,
        assistant_form: RowForm | None = None,
    ) -> None:
        self.encoder = encoder
        self.view = view
        self.form = form or RowForm()
        self.pictures = PictureCache(encoder, picture_cache_mb, place_of)
        # Pictures are kept once for each of the two.
        self.assistant = (
            None if assistant is None else RowCollator(assistant, None, picture_cache_mb, place_of, form=assistant_form)
        )
        self._same_tokens = assistant is not None and (
            vocabulary_digest(encoder.tokenizer) == vocabulary_digest(assistant.tokenizer)
        )

    def trim_pictures(self) -> None:
        """See `PictureCache`."""
        self.pictures.trim()
        if self.assistant is not None:
            self.assistant.trim_pictures()

    def tasks(self, rows: Mapping[Task, Sequence[TextRow]]) -> dict[Task, RowBatch]:
        """A batch for each task; in the shared layout they are in the same tensors."""
        if self.form.layout == "paired" or not rows:
            return {task: self.batch(given, _side(given)) for task, given in rows.items()}
        together = self.batch([row for given in rows.values() for row in given])
        return dict(zip(rows, together.parts([len(given) for given in rows.values()]), strict=True))

    def batch(self, rows: Sequence[TextRow], side: Literal["left", "right"] = "right") -> RowBatch:
        """One batch of rows.

        Args:
            rows: at least one row.
            side: where padding goes in the paired layout: `right` for training and scoring, `left` for generation.
        """
        heads = [self.pictures.head(row) for row in rows]
        placed = (
            _sequences(rows, heads, side)
            if self.form.layout == "paired"
            else _trees(rows, heads, self.form.row_tokens or 0)
        )
        inputs = self._inputs(placed, once=self.form.pictures_once and side == "right")
        width = inputs["input_ids"].shape[1]
        positions: list[int] = []
        targets: list[int] = []
        ends: list[int] = []
        for row, (line, places) in zip(rows, placed.places, strict=True):
            places = [line * width + place for place in places]
            ends.append(places[-1])
            positions.extend(places[len(places) - len(row.response_ids) - 1 : len(places) - 1])
            targets.extend(row.response_ids)
        view = None
        if self.view is not None:
            views: list[Any] = [self.view(row) for row in rows]  # of one cache, so of one type
            view = type(views[0]).cat(views)
        theirs = None if self.assistant is None else self._for_assistant(self.assistant, rows)
        # A question has no response, and an empty list is no int64 by itself.
        integers = partial(torch.tensor, dtype=torch.int64)
        return RowBatch(tuple(rows), inputs, integers(positions), integers(targets), integers(ends), view, theirs)

    def _inputs(self, placed: _Placed, *, once: bool) -> Inputs:
        """The tensors of heads and texts that have their places."""
        heads = [head for _, _, head in placed.heads]
        distinct = list({id(head): head for head in heads}.values()) if once else heads
        inputs = {key: torch.cat([head.vision[key] for head in distinct]) for key in heads[0].vision}
        if once:
            numbers = {id(head): number for number, head in enumerate(distinct)}
            inputs["pictures"] = torch.tensor([numbers[id(head)] for head in heads])
        shape = (placed.lines, placed.width)
        padded = {key: torch.zeros(shape, dtype=value.dtype) for key, value in heads[0].per_token.items()}
        padded["input_ids"].fill_(self.encoder.pad_id)
        for line, start, head in placed.heads:
            for key, values in head.per_token.items():
                padded[key][line, start : start + len(values)] = values
        for line, start, ids in placed.texts:
            padded["input_ids"][line, start : start + len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return inputs | padded | placed.extra

    def _for_assistant(self, assistant: RowCollator, rows: Sequence[TextRow]) -> AssistantRows:
        """The rows as the assistant reads them, and which of its tokens go with which of the student's."""
        mine, theirs = self.encoder, assistant.encoder
        own: list[TextRow] = []
        pairs: list[Tensor] = []
        for row in rows:
            text = mine.decode(row.response_ids)
            own.append(theirs.row(row.post, row.task, text))
            if not self._same_tokens:
                if mine.response_ids(text) != row.response_ids:
                    raise InputError(
                        f"post {row.post.id!r}, task {row.task}: the student's tokenizer does not give back the tokens "
                        "of its own text, so they cannot be aligned with the assistant's"
                    )
                ends = (mine.end_of_turn, theirs.end_of_turn)
                pairs.append(pair_responses(mine.tokenizer, theirs.tokenizer, text, *ends))
        batch = assistant.batch(own)
        lengths = tuple(len(row.response_ids) for row in own)
        partner = None if self._same_tokens else join_pairs(pairs, list(lengths))
        return AssistantRows(batch.inputs, batch.positions, partner, lengths)


def _side(rows: Sequence[TextRow]) -> Literal["left", "right"]:
    """What has no response yet is to be continued, and generation continues every row of a batch at its right end."""
    return "right" if any(row.response_ids for row in rows) else "left"


@dataclass(frozen=True, slots=True)
class _Placed:
    """Where everything of a batch goes, on so many lines of one width."""

    lines: int
    width: int
    heads: list[tuple[int, int, EncodedHead]]
    """Line, start and content of every picture with the text before it, in reading order."""
    texts: list[tuple[int, int, tuple[int, ...]]]
    """Line, start and token ids of what follows them."""
    places: list[tuple[int, Sequence[int]]]
    """For every row its line, and the place on it of each of its tokens from its head's last one on."""
    extra: dict[str, Tensor]
    """What the layout adds to the inputs."""


def _sequences(rows: Sequence[TextRow], heads: Sequence[EncodedHead], side: str) -> _Placed:
    """Each row on a line of its own."""
    firsts = [head.tokens for head in heads]
    lengths = [first + row.length for first, row in zip(firsts, rows, strict=True)]
    width = max(lengths)
    starts = [width - length if side == "left" else 0 for length in lengths]
    seen = torch.zeros((len(rows), width), dtype=torch.int64)
    for line, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        seen[line, start : start + length] = 1
    spans = list(zip(starts, firsts, lengths, strict=True))
    return _Placed(
        len(rows),
        width,
        [(line, start, head) for line, (start, head) in enumerate(zip(starts, heads, strict=True))],
        [
            (line, start + first, row.tail_ids + row.response_ids)
            for line, ((start, first, _), row) in enumerate(zip(spans, rows, strict=True))
        ],
        [(line, range(start + first - 1, start + length)) for line, (start, first, length) in enumerate(spans)],
        {"attention_mask": seen},
    )


def _trees(rows: Sequence[TextRow], heads: Sequence[EncodedHead], row_tokens: int) -> _Placed:
    """The rows of a post, and of posts that have picture and first words in common, merged to a tree."""
    members: dict[tuple[str, int], list[int]] = {}
    for number, (row, head) in enumerate(zip(rows, heads, strict=True)):
        members.setdefault((row.post.id, id(head)), []).append(number)
    groups = list(members.values())
    trees = [merge([rows[number].tail_ids + rows[number].response_ids for number in group]) for group in groups]
    firsts = [heads[group[0]].tokens for group in groups]
    sizes = [first + len(tree.ids) for first, tree in zip(firsts, trees, strict=True)]
    lines = _packed(sizes, row_tokens)
    width = max(sum(sizes[tree] for tree in line) for line in lines)
    shape = (len(lines), width)
    extra = {
        "depths": torch.zeros(shape, dtype=torch.int64),
        "until": torch.arange(1, width + 1).repeat(len(lines), 1),
        "trees": torch.full(shape, -1),
    }
    placed = _Placed(len(lines), width, [], [], [(0, ())] * len(rows), extra)
    spans: list[tuple[int, int, int]] = []
    for line, on_line in enumerate(lines):
        start = 0
        for tree in on_line:
            head, size = heads[groups[tree][0]], sizes[tree]
            placed.heads.append((line, start, head))
            placed.texts.append((line, start + firsts[tree], trees[tree].ids))
            _describe(extra, line, start, firsts[tree], trees[tree], len(spans))
            for number, path in zip(groups[tree], trees[tree].paths, strict=True):
                first = start + firsts[tree]
                placed.places[number] = line, [first - 1, *(first + node for node in path)]
            spans.append((line, start, firsts[tree]))
            start += size
    extra["heads"] = torch.tensor(spans)
    return placed


def _describe(extra: dict[str, Tensor], line: int, start: int, first: int, tree: TokenTree, number: int) -> None:
    """Writes what is to be known of a tree's tokens, the head's among them, at their places."""
    end = start + first + len(tree.ids)
    extra["trees"][line, start:end] = number
    extra["depths"][line, start : start + first] = torch.arange(first)
    extra["depths"][line, start + first : end] = torch.tensor(tree.depths, dtype=torch.int64) + first
    extra["until"][line, start : start + first] = end
    extra["until"][line, start + first : end] = torch.tensor(tree.until, dtype=torch.int64) + start + first


def _packed(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Puts items on lines of at most `limit` tokens, the largest first, each on the first line with room.

    Args:
        sizes: tokens of each item; one that is larger than the limit is alone.
        limit: below the second smallest item every item is alone.

    Returns:
        The numbers of the items of each line, ascending.
    """
    lines: list[list[int]] = []
    room: list[int] = []
    for number in sorted(range(len(sizes)), key=lambda number: (-sizes[number], number)):
        fits = next((line for line, left in enumerate(room) if left >= sizes[number]), None)
        if fits is None:
            lines.append([number])
            room.append(limit - sizes[number])
        else:
            lines[fits].append(number)
            room[fits] -= sizes[number]
    return sorted(sorted(line) for line in lines)
