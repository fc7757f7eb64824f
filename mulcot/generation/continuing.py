"""Replies to prompts that were read in the shared layout: keys and values of what was read are used again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from mulcot.generation.row_cache import RowCache, States
from mulcot.models import base_model, logits, run_body, tree_positions, turned_head
from mulcot.rows import Inputs, RowBatch, RowEncoder

Sampler = Callable[[Tensor, Sequence[int]], Tensor]
"""From the next token's scores of some replies, `[replies, vocab]`, and which replies they are, to scores of which the
highest is taken."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model has read."""

    hidden: Tensor
    """`[B * L, hidden]`: its last hidden states."""
    cache: DynamicCache
    """Keys and values of all tokens."""


@torch.no_grad()
def read(model: nn.Module, inputs: Inputs) -> Reading:
    """Reads rows and keeps what is needed to continue them.

    Args:
        model: in eval mode.
        inputs: in the shared layout.
    """
    kept = DynamicCache(config=base_model(model).config.get_text_config())
    name = _cache_name(cast(nn.Module, base_model(model).model))
    seen = run_body(model, inputs, use_cache=True, **{name: kept})
    return Reading(seen.last_hidden_state.flatten(0, 1), kept)


@dataclass
class Replies:
    """Replies to a batch of prompts."""

    ids: list[list[int]]
    """See `decode_ids`; a reply that is still being written has what there is of it."""
    unfinished: int = 0
    """How many are still being written, or wait."""


@dataclass
class _Job(Replies):
    """Replies that a `RowWriter` writes."""

    sampler: Sampler | None = None
    states: _Prompts | None = None
    """The prompts as they were read, as long as there is a reply to be written."""
    waiting: list[int] = field(default_factory=list)
    """The replies that have no row yet."""

    @property
    def prompts(self) -> _Prompts:
        """The prompts as they were read."""
        assert self.states is not None
        return self.states

    def count_finished(self) -> None:
        """Counts a reply as finished."""
        self.unfinished -= 1
        if not self.unfinished:
            self.states = None


class RowWriter:
    """Writes replies to prompts that were read in the shared layout.

    A reply that is finished leaves the batch, and one that waits takes its place, be it of the same prompts or of those
    that are added next: as long as there are more, every pass of the model is over a full batch.

    Args:
        model: in eval mode.
        encoder: see `decode_ids`.
        max_new_tokens: see `decode_ids`.
        give_up: see `decode_ids`.
    """

    def __init__(
        self, model: nn.Module, encoder: RowEncoder, max_new_tokens: int, give_up: Callable[[], bool] | None = None
    ) -> None:
        self._model = model
        self._decoder: Any = base_model(model).get_decoder()
        self._ends = {encoder.end_of_turn[-1], encoder.pad_id}
        self._max_new_tokens = max_new_tokens
        self._give_up = give_up
        self._cache = RowCache()
        self._live: list[tuple[_Job, int]] = []  # the reply of every row
        self._room = 0
        self._given_up = False
        self._hidden: Tensor | None = None  # of the last token of every row

    @cached_property
    def _turned(self) -> Tensor | None:
        return turned_head(self._model)

    def add(self, prompts: RowBatch, reading: Reading, sampler: Sampler | None = None, copies: int = 1) -> Replies:
        """Writes replies to further prompts, together with what is left of others, until no prompt waits any more.

        Rows are written as many at a time as there are prompts.

        Args:
            prompts: in the shared layout.
            reading: of their inputs; it is used up.
            sampler: see `decode_ids`.
            copies: see `decode_ids`.
        """
        count = copies * len(prompts.rows)
        job = _Job(
            [[] for _ in range(count)], count, sampler, _Prompts(self._model, prompts, reading), list(range(count))
        )
        self._room = len(prompts.rows)
        while job.waiting and not self._given_up:
            self._step(job)
        return job

    def finish(self) -> None:
        """Writes what is left."""
        self._room = 0
        while self._live and not self._given_up:
            self._step(None)

    @torch.no_grad()
    def _step(self, coming: _Job | None) -> None:
        """Writes a token of every row, after rows of `coming` were added as far as there is room."""
        if coming is not None and len(self._live) < self._room:
            self._admit(coming)
        assert self._hidden is not None
        tokens = self._choose(logits(self._model, self._hidden, self._turned))
        for (job, number), token in zip(self._live, tokens, strict=True):
            job.ids[number].append(token)
        if self._give_up is not None and self._give_up():
            self._given_up = True
            return
        going: list[int] = []
        for row, ((job, number), token) in enumerate(zip(self._live, tokens, strict=True)):
            if token in self._ends or len(job.ids[number]) == self._max_new_tokens:
                job.count_finished()
            else:
                going.append(row)
        if len(going) < len(self._live):
            going = self._cache.keep(going)
            self._live = [self._live[row] for row in going]
        self._hidden = self._read([tokens[row] for row in going]) if going else None

    def _admit(self, job: _Job) -> None:
        """Adds as many rows as there is room for."""
        count, prompts = self._room - len(self._live), job.prompts
        numbers, job.waiting = job.waiting[:count], job.waiting[count:]
        chosen = [number % len(prompts.lengths) for number in numbers]
        lengths = [prompts.lengths[prompt] for prompt in chosen]
        index = torch.tensor(chosen, device=prompts.lines.device)
        columns = prompts.columns[index, -max(lengths) :]
        self._cache.admit(prompts.kept, prompts.lines[index], columns, lengths, self._room)
        first = prompts.hidden[index]
        self._hidden = first if self._hidden is None else torch.cat([self._hidden, first])
        self._live += [(job, number) for number in numbers]
        if not job.waiting:
            prompts.kept = []  # the rows have what they need of it

    def _choose(self, scores: Tensor) -> list[int]:
        """The next token of every row."""
        jobs = {id(job): job for job, _ in self._live}
        if all(job.sampler is None for job in jobs.values()):
            return scores.argmax(dim=-1).tolist()
        tokens = [0] * len(self._live)
        for job in jobs.values():
            rows = [row for row, (other, _) in enumerate(self._live) if other is job]
            mine = scores if len(jobs) == 1 else scores[rows]
            if job.sampler is not None:
                mine = job.sampler(mine, [self._live[row][1] for row in rows])
            for row, token in zip(rows, mine.argmax(dim=-1).tolist(), strict=True):
                tokens[row] = token
        return tokens

    def _read(self, tokens: Sequence[int]) -> Tensor:
        """Reads one more token of every row; gives the hidden states `[rows, hidden]` behind them."""
        self._cache.make_room(self._room)
        device = self._decoder.device
        seen = self._cache.seen(device)
        # Behind a prompt all dimensions of a rotary position go on together.
        places = [job.prompts.place(number) + len(job.ids[number]) for job, number in self._live]
        given = torch.tensor([tokens, places], device=device).unsqueeze(-1)
        with _attention_to_all(self._decoder) as attention:
            if seen is not None and attention == "sdpa":
                seen = seen[:, None, None]  # what it takes; of the plain one it would be made at every token
            output = self._decoder(
                input_ids=given[0],
                attention_mask=seen,
                position_ids=given[1],
                use_cache=True,
                **{_cache_name(self._decoder): self._cache.cache},
            )
        self._cache.advance()
        return output.last_hidden_state[:, -1]


class _Prompts:
    """What is known of prompts that were read.

    Args:
        model: the model.
        prompts: in the shared layout.
        reading: of their inputs.
    """

    def __init__(self, model: nn.Module, prompts: RowBatch, reading: Reading) -> None:
        body: Any = base_model(model).model
        self.lines, self.columns, self.lengths = _paths(prompts)
        positions = tree_positions(body, prompts.inputs).flatten(-2)[..., prompts.ends]
        self._positions: list[int] = positions.view(-1, len(self.lengths)).amax(dim=0).tolist()
        self.hidden = reading.hidden[prompts.ends]
        self.kept: States = [(layer.keys, layer.values) for layer in reading.cache.layers]  # type: ignore[misc, union-attr]
        reading.cache.layers.clear()

    def place(self, reply: int) -> int:
        """The position of the last token of a reply's prompt; replies go round the prompts."""
        return self._positions[reply % len(self._positions)]


def _paths(prompts: RowBatch) -> tuple[Tensor, Tensor, list[int]]:
    """Where the tokens are that each prompt consists of.

    Returns:
        Line `[prompts]`, columns `[prompts, longest]` of which a shorter prompt has the last ones, lengths.
    """
    until = prompts.inputs["until"]
    width = until.shape[1]
    lines, places = prompts.ends // width, (prompts.ends % width)[:, None]
    on_path = (torch.arange(width, device=until.device) <= places) & (places < until[lines])
    lengths: list[int] = on_path.sum(dim=1).tolist()
    columns = on_path.long().argsort(dim=1, stable=True)[:, -max(lengths) :]
    return lines, columns, lengths


@contextmanager
def _attention_to_all(decoder: Any) -> Iterator[str]:
    """Gives one token of a row an attention without blocks, which have nothing to skip there and a mask to be built."""
    given = decoder.config._attn_implementation
    chosen = given if given in ("eager", "sdpa") else "sdpa"
    decoder.config._attn_implementation = chosen
    try:
        yield chosen
    finally:
        decoder.config._attn_implementation = given


def _cache_name(module: nn.Module) -> str:
    """What the model's version of transformers calls its cache."""
    return "cache" if "cache" in _arguments(type(module).forward) else "past_key_values"


@cache
def _arguments(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
