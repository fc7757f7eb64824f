"""Batches of rows as tensors, as the data module hands them to the stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import torch
from torch import Tensor

from mulcot.losses import Sampled, TopK
from mulcot.rows.encoder import TextRow
from mulcot.types import Post, RationaleRecord, Task

Layout = Literal["shared", "paired"]
"""How rows become tensors. `paired`: each row is a sequence of its own. `shared`: what the rows of a post begin with,
its picture above all, is there once, and what follows are branches that do not see each other."""
LAYOUTS: Final[tuple[Layout, ...]] = ("shared", "paired")
Inputs = dict[str, Tensor]
"""What `mulcot.models.hidden_states` takes.

Always `input_ids` `[B, L]`, what else the processor gives per token, and its vision tensors. In the paired layout
`attention_mask` `[B, L]`. In the shared one `depths` `[B, L]` (tokens before each on its own path), `until` `[B, L]`
(see `TokenTree`; a padding token is seen by itself alone), `trees` `[B, L]` (the post that a token belongs to, -1 for
padding) and `heads` `[posts, 3]` (row, start and length of each post's picture with the text before it).
Where the vision tensors hold every distinct picture once, `pictures` says which of them each post or row has, in the
order in which they stand in `input_ids`."""


@dataclass(frozen=True, slots=True)
class AssistantRows:
    """The same rows as the assistant reads them, where its processor makes other tokens than the student's."""

    inputs: Inputs
    """See `Inputs`."""
    positions: Tensor
    """For every response token of the assistant's, see `RowBatch`."""
    partner: Tensor | None
    """`[tokens]`: for every response token of the student's the index of the one that the assistant predicts from the
    same text, -1 where there is none. None where both have the same response tokens."""
    lengths: tuple[int, ...]
    """Response tokens of the assistant's in every row."""


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows with the tensors that they are in."""

    rows: tuple[TextRow, ...]
    """The rows, in order."""
    inputs: Inputs
    """What the model takes. Batches of several tasks may share one and the same, which is then to be computed once."""
    positions: Tensor
    """`[tokens]`: for every response token the index into `B * L` of the position that predicts it, row by row."""
    targets: Tensor
    """`[tokens]`: the response tokens."""
    ends: Tensor
    """`[rows]`: the index into `B * L` of every row's last token."""
    soft_labels: TopK | Sampled | None = None
    """The assistant's view of the response tokens, `[tokens, k]`, when a cache was given."""
    assistant: AssistantRows | None = None
    """The rows for an assistant beside the student; None where there is none, or it takes `inputs` as they are."""

    @property
    def is_shared(self) -> bool:
        """Whether the rows of a post share what they begin with."""
        return "until" in self.inputs

    def path_lengths(self) -> list[int]:
        """How many tokens each row has, its picture's and response included."""
        if self.is_shared:
            lengths = self.inputs["depths"].flatten()[self.ends] + 1
        else:
            lengths = self.inputs["attention_mask"].sum(dim=1)
        return [int(length) for length in lengths.tolist()]

    def to(self, device: Any, **kwargs: Any) -> RowBatch:
        """The same batch on another device."""
        return _Moved(device, kwargs).rows(self)

    def parts(self, counts: Sequence[int]) -> list[RowBatch]:
        """The batch cut into groups of neighbouring rows; the groups share its inputs.

        Args:
            counts: rows of each group.
        """
        cuts: list[RowBatch] = []
        first = 0
        for count in counts:
            cuts.append(self._part(first, first + count))
            first += count
        return cuts

    def without_responses(self) -> RowBatch:
        """The same sequences with nothing to learn, for a process that has no row of a task and must take part in it.

        They are computed as rows of this task would be: with those of the other tasks in the shared layout, by
        themselves in the paired one.
        """
        nothing = self.parts([0])[0]
        return nothing if self.is_shared else replace(nothing, inputs=dict(nothing.inputs))

    def _part(self, first: int, last: int) -> RowBatch:
        before, tokens = (sum(len(row.response_ids) for row in self.rows[:at]) for at in (first, last))
        mine = slice(before, tokens)
        assistant = self.assistant
        if assistant is not None:
            start, stop = sum(assistant.lengths[:first]), sum(assistant.lengths[:last])
            partner = None if assistant.partner is None else assistant.partner[mine]
            if partner is not None:
                partner = torch.where(partner < 0, partner, partner - start)
            lengths = assistant.lengths[first:last]
            assistant = AssistantRows(assistant.inputs, assistant.positions[start:stop], partner, lengths)
        return RowBatch(
            self.rows[first:last],
            self.inputs,
            self.positions[mine],
            self.targets[mine],
            self.ends[first:last],
            None if self.soft_labels is None else self.soft_labels[mine],
            assistant,
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
    idle: RowBatch | None = None
    """Some rows to compute where there are no posts and the model is spread over processes; nothing is learnt there."""

    def to(self, device: Any, **kwargs: Any) -> MicroBatch:
        """The same batch on another device."""
        moved = _Moved(device, kwargs)
        idle = None if self.idle is None else moved.rows(self.idle)
        return replace(self, tasks={task: moved.rows(rows) for task, rows in self.tasks.items()}, idle=idle)

    def rows_of_step(self) -> dict[Task, RowBatch]:
        """The rows of every task of the optimizer step; of one without any those of another, with nothing to learn."""
        spare = next(iter(self.tasks.values()), self.idle)
        assert spare is not None
        return {
            task: self.tasks[task] if task in self.tasks else spare.without_responses() for task in self.step_tokens
        }


@dataclass(frozen=True, slots=True)
class QuestionBatch:
    """Posts to be answered: their candidates for label scoring and, where wanted, their prompts for generation."""

    posts: tuple[Post, ...]
    """The posts, in order."""
    candidates: RowBatch | None
    """Every post with every label as classification answer, post by post, labels in the label set's order."""
    prompts: RowBatch | None
    """The reasoning prompts; padded on the left where the layout is paired."""
    references: tuple[RationaleRecord | None, ...] = field(default=())
    """A teacher's rationale of each post where there is one."""
    numbers: tuple[int, ...] = field(default=())
    """Where each post stands in its split: batches are grouped by length, answers are kept in the split's order."""

    def to(self, device: Any, **kwargs: Any) -> QuestionBatch:
        """The same batch on another device."""
        moved = _Moved(device, kwargs)
        return replace(
            self,
            candidates=None if self.candidates is None else moved.rows(self.candidates),
            prompts=None if self.prompts is None else moved.rows(self.prompts),
        )


class _Moved:
    """Copies on another device; inputs that batches share are copied once and stay shared."""

    def __init__(self, device: Any, options: dict[str, Any]) -> None:
        self._device = device
        self._options = options
        self._inputs: dict[int, Inputs] = {}

    def rows(self, batch: RowBatch) -> RowBatch:
        return RowBatch(
            batch.rows,
            self._of_inputs(batch.inputs),
            self._tensor(batch.positions),
            self._tensor(batch.targets),
            self._tensor(batch.ends),
            None if batch.soft_labels is None else batch.soft_labels.to(self._device),
            None if batch.assistant is None else self._of_assistant(batch.assistant),
        )

    def _of_inputs(self, inputs: Inputs) -> Inputs:
        if id(inputs) not in self._inputs:
            self._inputs[id(inputs)] = {key: self._tensor(value) for key, value in inputs.items()}
        return self._inputs[id(inputs)]

    def _of_assistant(self, rows: AssistantRows) -> AssistantRows:
        partner = None if rows.partner is None else self._tensor(rows.partner)
        return AssistantRows(self._of_inputs(rows.inputs), self._tensor(rows.positions), partner, rows.lengths)

    def _tensor(self, value: Tensor) -> Tensor:
        return value.to(self._device, **self._options)
