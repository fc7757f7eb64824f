"""From rows to padded tensors, and the batches that the data module hands to the stages."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mulcot.losses import Sampled, TopK, join_pairs, pair_responses
from mulcot.rows.encoder import EncodedHead, RowEncoder, TextRow, vocabulary_digest
from mulcot.types import InputError, Post, RationaleRecord, Task

PlaceOf = Callable[[Post], str | None]
"""Says where a post stands in its source (`FILE, line N`), None where that is not known. It may read the source again:
it is asked when something is wrong with a post, not before."""


@dataclass(frozen=True, slots=True)
class AssistantRows:
    """The same rows as the assistant reads them, where its processor makes other tokens than the student's."""

    inputs: dict[str, Tensor]
    """See `RowBatch`."""
    positions: Tensor
    """For every response token of the assistant's, see `RowBatch`."""
    partner: Tensor | None
    """`[tokens]`: for every response token of the student's the index of the one that the assistant predicts from the
    same text, -1 where there is none. None where both have the same response tokens."""

    def to(self, device: Any, **kwargs: Any) -> AssistantRows:
        """The same rows on another device."""
        inputs = {key: value.to(device, **kwargs) for key, value in self.inputs.items()}
        partner = None if self.partner is None else self.partner.to(device, **kwargs)
        return AssistantRows(inputs, self.positions.to(device, **kwargs), partner)


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows of one task, padded to the longest."""

    rows: tuple[TextRow, ...]
    """The rows, in order."""
    inputs: dict[str, Tensor]
    """What the model takes: `input_ids`, `attention_mask` `[B, L]`, further per-token tensors, and vision tensors."""
    positions: Tensor
    """`[tokens]`: for every response token the index into `B * L` of the position that predicts it, row by row."""
    targets: Tensor
    """`[tokens]`: the response tokens."""
    soft_labels: TopK | Sampled | None = None
    """The assistant's view of the response tokens, `[tokens, k]`, when a cache was given."""
    assistant: AssistantRows | None = None
    """The rows for an assistant beside the student; None where there is none, or it takes `inputs` as they are."""

    def to(self, device: Any, **kwargs: Any) -> RowBatch:
        """The same batch on another device."""
        return replace(
            self,
            inputs={key: value.to(device, **kwargs) for key, value in self.inputs.items()},
            positions=self.positions.to(device, **kwargs),
            targets=self.targets.to(device, **kwargs),
            soft_labels=None if self.soft_labels is None else self.soft_labels.to(device),
            assistant=None if self.assistant is None else self.assistant.to(device, **kwargs),
        )


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One rank's share of one accumulation step."""

    tasks: dict[Task, RowBatch]
    """The rows of each task that has any; empty on a rank without posts."""
    step_tokens: dict[Task, int]
    """Response tokens of the whole optimizer step by task: over all micro-batches and ranks."""
    post_ids: tuple[str, ...] = ()
    """The posts in it."""

    def to(self, device: Any, **kwargs: Any) -> MicroBatch:
        """The same batch on another device."""
        return replace(self, tasks={task: rows.to(device, **kwargs) for task, rows in self.tasks.items()})


@dataclass(frozen=True, slots=True)
class QuestionBatch:
    """Posts to be answered: their candidates for label scoring and, where wanted, their prompts for generation."""

    posts: tuple[Post, ...]
    """The posts, in order."""
    candidates: RowBatch | None
    """Every post with every label as classification answer, post by post, labels in the label set's order."""
    prompts: RowBatch | None
    """The reasoning prompts, padded on the left."""
    references: tuple[RationaleRecord | None, ...] = field(default=())
    """A teacher's rationale of each post where there is one."""
    numbers: tuple[int, ...] = field(default=())
    """Where each post stands in its split: batches are grouped by length, answers are kept in the split's order."""

    def to(self, device: Any, **kwargs: Any) -> QuestionBatch:
        """The same batch on another device."""
        return replace(
            self,
            candidates=None if self.candidates is None else self.candidates.to(device, **kwargs),
            prompts=None if self.prompts is None else self.prompts.to(device, **kwargs),
        )


class RowCollator:
    """Pads rows into batches; a picture that several rows of a batch use is opened once.

    Encoded pictures are kept up to a budget, the one used longest ago goes first: a small data set is then decoded
    once instead of once an epoch. Each worker process keeps its own.

    Args:
        encoder: encodes pictures.
        view: gives the assistant's view of a row's response tokens; None trains on hard labels alone.
        picture_cache_mb: the budget in MiB; 0 keeps the pictures of the current batch alone.
        place_of: where posts stand in their source, for the error about a picture that cannot be decoded.
        assistant: encodes the same rows for an assistant beside the student; None where it takes the student's own.
    """

    def __init__(
        self,
        encoder: RowEncoder,
        view: Callable[[TextRow], TopK | Sampled] | None = None,
        picture_cache_mb: int = 0,
        place_of: PlaceOf | None = None,
        assistant: RowEncoder | None = None,
    ) -> None:
        self.encoder = encoder
        self.view = view
        self.place_of = place_of
        # Pictures are kept once for each of the two.
        self.assistant = None if assistant is None else RowCollator(assistant, None, picture_cache_mb, place_of)
        self._same_tokens = assistant is not None and (
            vocabulary_digest(encoder.tokenizer) == vocabulary_digest(assistant.tokenizer)
        )
        self._budget = picture_cache_mb * 2**20
        self._heads: OrderedDict[tuple[str, str], EncodedHead] = OrderedDict()
        self._bytes = 0

    def trim_pictures(self) -> None:
        """Drops what is over the budget; the caller does so after each batch."""
        while self._heads and self._bytes > self._budget:
            _, head = self._heads.popitem(last=False)
            self._bytes -= head.nbytes
        if self.assistant is not None:
            self.assistant.trim_pictures()

    def batch(self, rows: Sequence[TextRow], side: Literal["left", "right"] = "right") -> RowBatch:
        """Pads `rows` to one batch.

        Args:
            rows: at least one row.
            side: where padding goes: `right` for training and scoring, `left` for generation.
        """
        heads = [self._head(row) for row in rows]
        lengths = [len(head.per_token["input_ids"]) + row.length for head, row in zip(heads, rows, strict=True)]
        width = max(lengths)
        inputs = self._per_token(rows, heads, width, side)
        for key in heads[0].vision:
            inputs[key] = torch.cat([head.vision[key] for head in heads])
        positions: list[int] = []
        targets: list[int] = []
        for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            start = index * width + (width if side == "left" else length) - len(row.response_ids)
            positions.extend(range(start - 1, start - 1 + len(row.response_ids)))
            targets.extend(row.response_ids)
        view = None
        if self.view is not None:
            views: list[Any] = [self.view(row) for row in rows]  # of one cache, so of one type
            view = type(views[0]).cat(views)
        theirs = None if self.assistant is None else self._for_assistant(self.assistant, rows)
        return RowBatch(tuple(rows), inputs, torch.tensor(positions), torch.tensor(targets), view, theirs)

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
        partner = None if self._same_tokens else join_pairs(pairs, [len(row.response_ids) for row in own])
        return AssistantRows(batch.inputs, batch.positions, partner)

    def _head(self, row: TextRow) -> EncodedHead:
        key = (row.post.id, row.head)
        if key not in self._heads:
            try:
                self._heads[key] = self.encoder.head(row)
            except InputError as error:
                raise load_error(row.post, error, self.place_of) from error
            self._bytes += self._heads[key].nbytes
        self._heads.move_to_end(key)
        return self._heads[key]

    def _per_token(
        self, rows: Sequence[TextRow], heads: Sequence[EncodedHead], width: int, side: str
    ) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` and the processor's further per-token tensors, `[B, width]`, padded."""
        fill = dict.fromkeys(heads[0].per_token, 0) | {"input_ids": self.encoder.pad_id, "attention_mask": 0}
        padded = {key: torch.full((len(rows), width), value) for key, value in fill.items()}
        for index, (row, head) in enumerate(zip(rows, heads, strict=True)):
            text = torch.tensor(row.tail_ids + row.response_ids)
            first = len(head.per_token["input_ids"])
            start = width - first - len(text) if side == "left" else 0
            end = start + first + len(text)
            for key, values in head.per_token.items():
                padded[key][index, start : start + first] = values
            padded["input_ids"][index, start + first : end] = text
            padded["attention_mask"][index, start:end] = 1
        return padded


def load_error(post: Post, error: InputError, place_of: PlaceOf | None) -> InputError:
    """The error about a post's picture, with the place where the post stands in its source."""
    place = place_of(post) if place_of else None
    return error if place is None else InputError(f"{place}, field 'image' (post {post.id!r}): {error}")
