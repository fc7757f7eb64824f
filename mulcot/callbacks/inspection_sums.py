"""What inspection adds up over an optimizer step: sums and counts in fixed places, so that ranks can be added too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from mulcot.callbacks.inspection_view import VIEW_STATISTICS, view_statistics
from mulcot.callbacks.task_loss import TaskLoss
from mulcot.rows import SECTIONS, RowEncoder, token_sections

PLACES: Final = 32
"""Parts of equal length that a response is cut into, for what depends on the position."""
_DECADES: Final = (-6, 3)
_PER_DECADE: Final = 8
LOSS_EDGES: Final = tuple(
    _DECADES[0] + index / _PER_DECADE for index in range((_DECADES[1] - _DECADES[0]) * _PER_DECADE + 1)
)
"""Edges of histogram bins of log10 of a token's loss; what lies beyond, 0 too, is in the outermost bins."""
_KINDS: Final = ("hard", "soft")
_STATISTICS: Final = (*VIEW_STATISTICS, "student_right")
_CACHED_RESPONSES: Final = 20_000


@dataclass(frozen=True)
class TaskSummary:
    """What the tokens of a task in one optimizer step came to, over all micro-batches and ranks."""

    gradients: dict[str, float]
    """For `hard` and `soft` the norm of the gradient of the task's objective with respect to the head's input."""
    sections: dict[str, dict[str, float]]
    """For each term the mean loss per token by section, of the sections that have tokens."""
    places: dict[str, list[tuple[float, float]]]
    """For each term the sum of the loss and the tokens in each of `PLACES` parts of a response."""
    losses: dict[str, list[float]]
    """For each term the tokens in each bin between `LOSS_EDGES`."""
    statistics: dict[str, float]
    """Means per token: those of `VIEW_STATISTICS` that are known, and `student_right`, the share of tokens at which
    the student's likeliest id is the response's."""


class TaskSums:
    """Sums over the micro-batches of one task.

    Args:
        terms: the names of the task's terms, on every rank the same.
        device: where the sums are kept.
    """

    def __init__(self, terms: Sequence[str], device: torch.device) -> None:
        self.terms = tuple(terms)
        sizes = {
            "norms": (len(_KINDS),),
            "sections": (2, len(terms), len(SECTIONS)),  # sums, then tokens
            "places": (2, len(terms), PLACES),
            "losses": (len(terms), len(LOSS_EDGES) - 1),
            "statistics": (2, len(_STATISTICS)),
        }
        lengths = [math.prod(size) for size in sizes.values()]
        # One vector, of which each part is a piece: all of it is summed over ranks at once.
        self.vector = torch.zeros(sum(lengths), device=device)
        self._parts = {
            name: part.view(size) for (name, size), part in zip(sizes.items(), self.vector.split(lengths), strict=True)
        }

    @torch.no_grad()
    def add(self, loss: TaskLoss, places: ResponsePlaces) -> None:
        """Adds a micro-batch whose head was inspected."""
        norms = loss.head.gradient_norms or {}
        for index, kind in enumerate(_KINDS):
            if kind in norms:
                self._parts["norms"][index] += (norms[kind].float() / loss.divisor) ** 2
        sections, parts = (index.to(self.vector.device) for index in places.of(loss))
        for row, name in enumerate(self.terms):
            # A term on hidden states has no loss on logits, and one at other positions none for the response tokens.
            if name in loss.head.per_token:
                values = loss.head.per_token[name].float()
                _add_means(self._parts["sections"][:, row], sections, values)
                _add_means(self._parts["places"][:, row], parts, values)
                self._parts["losses"][row].index_add_(0, _bins(values), torch.ones_like(values))
        if loss.head.predicted is not None:
            predicted, targets = loss.head.predicted, loss.rows.targets
            found = {} if loss.view is None else view_statistics(loss.view, predicted, targets)
            for name, of_tokens in (found | {"student_right": (predicted == targets).float()}).items():
                index = _STATISTICS.index(name)
                self._parts["statistics"][0, index] += of_tokens.sum()
                self._parts["statistics"][1, index] += len(of_tokens)

    def summary(self) -> TaskSummary:
        """What the sums mean."""
        parts = {name: part.tolist() for name, part in self._parts.items()}
        sections, places = parts["sections"], parts["places"]
        known = {name: row for row, name in enumerate(self.terms) if any(sections[1][row])}
        return TaskSummary(
            gradients={kind: math.sqrt(square) for kind, square in zip(_KINDS, parts["norms"], strict=True)},
            sections={name: _means(SECTIONS, sections[0][row], sections[1][row]) for name, row in known.items()},
            places={name: list(zip(places[0][row], places[1][row], strict=True)) for name, row in known.items()},
            losses={name: parts["losses"][row] for name, row in known.items()},
            statistics=_means(_STATISTICS, *parts["statistics"]),
        )


class ResponsePlaces:
    """Where in its response every token is.

    Args:
        encoder: the student's.
    """

    def __init__(self, encoder: RowEncoder) -> None:
        tokenizer, end = encoder.tokenizer, encoder.end_of_turn

        def sections(response_ids: tuple[int, ...]) -> Tensor:
            return torch.tensor(token_sections(tokenizer, response_ids, end))

        # A response comes again in every epoch.
        self._sections = lru_cache(maxsize=_CACHED_RESPONSES)(sections)
        self._parts = lru_cache(maxsize=1024)(lambda length: torch.arange(length) * PLACES // length)

    def of(self, loss: TaskLoss) -> tuple[Tensor, Tensor]:
        """For every response token its section, as an index into `SECTIONS`, and which of `PLACES` it is in."""
        responses = [row.response_ids for row in loss.rows.rows]
        if not responses:
            return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
        sections = torch.cat([self._sections(response) for response in responses])
        return sections, torch.cat([self._parts(len(response)) for response in responses])


def _add_means(sums_and_counts: Tensor, index: Tensor, values: Tensor) -> None:
    sums_and_counts[0].index_add_(0, index, values)
    sums_and_counts[1].index_add_(0, index, torch.ones_like(values))


def _means(names: Sequence[str], sums: Sequence[float], counts: Sequence[float]) -> dict[str, float]:
    return {name: total / count for name, total, count in zip(names, sums, counts, strict=True) if count}


def _bins(values: Tensor) -> Tensor:
    """The bin of every value; what is not above 0 is in the first one."""
    decades = values.clamp(min=10.0 ** _DECADES[0]).log10()
    return ((decades - _DECADES[0]) * _PER_DECADE).long().clamp(0, len(LOSS_EDGES) - 2)
