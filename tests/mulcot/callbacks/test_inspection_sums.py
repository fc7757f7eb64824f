"""The sums of a step against numbers worked out by hand."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from mulcot.callbacks.inspection_sums import LOSS_EDGES, PLACES, ResponsePlaces, TaskSums
from mulcot.callbacks.task_loss import TaskLoss
from mulcot.losses import HeadLoss, TopK
from mulcot.rows import RowEncoder, TextRow
from mulcot.types import Post

PIECES = ["<end>", '{"Text_analysis": "', "good", " day", '", "Prediction": "', "positive", '"}']
RESPONSES = [(1, 2, 3, 4, 5, 6, 0), (1, 2, 4, 5, 6, 0)]


class ReadableTokenizer:
    def decode(self, ids: list[int], **_: object) -> str:
        return "".join(PIECES[each] for each in ids)


ENCODER = cast(RowEncoder, SimpleNamespace(tokenizer=ReadableTokenizer(), end_of_turn=(0,)))


def micro_batch(responses: list[tuple[int, ...]], losses: list[float], norms: tuple[float, float]) -> TaskLoss:
    rows = [TextRow(Post("1", "t", Path()), "reasoning", "", (), response) for response in responses]
    targets = torch.tensor([token for response in responses for token in response])
    head = HeadLoss(
        torch.zeros(()),
        {"kl": torch.tensor(losses), "ce": torch.ones(len(losses))},
        targets.clone().index_fill_(0, torch.tensor([0]), 5),  # the first token alone is wrong
        {"hard": torch.tensor(norms[0]), "soft": torch.tensor(norms[1])},
    )
    logits = torch.zeros(len(targets), len(PIECES)).scatter_(1, targets.unsqueeze(1), 9.0)
    view = TopK.from_logits(logits, 2, 2.0)
    batch: Any = SimpleNamespace(rows=rows, targets=targets)
    return TaskLoss("reasoning", batch, view, torch.zeros(()), {}, head, divisor=10.0)


FIRST = micro_batch(RESPONSES[:1], [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0], (30.0, 0.0))
SECOND = micro_batch(RESPONSES[1:], [3.0, 6.0, 9.0, 12.0, 15.0, 0.0], (40.0, 5.0))


def sums_of(*losses: TaskLoss) -> TaskSums:
    sums = TaskSums(["ce", "kl", "hidden"], torch.device("cpu"))
    for loss in losses:
        sums.add(loss, ResponsePlaces(ENCODER))
    return sums


def test_means_are_per_token_over_all_micro_batches() -> None:
    found = sums_of(FIRST, SECOND).summary()
    assert found.sections["kl"] == pytest.approx(
        {
            "Text_analysis": (2 + 4 + 6) / 3,
            "Prediction": (16 + 12) / 2,
            "format": (1 + 8 + 32 + 64 + 3 + 9 + 15 + 0) / 8,
        }
    )
    assert set(found.sections["ce"].values()) == {1.0}
    assert found.sections.keys() == {"ce", "kl"}  # a term on hidden states is not told by token
    # Norms of parts of one gradient are added as squares, and the gradient is divided by the step's tokens.
    assert found.gradients == pytest.approx({"hard": math.hypot(3, 4), "soft": 0.5})
    assert found.statistics["student_right"] == pytest.approx(11 / 13)
    assert found.statistics["agreement"] == pytest.approx(11 / 13)
    assert found.statistics["assistant_right"] == 1


def test_positions_are_relative_to_the_response() -> None:
    places = sums_of(FIRST, SECOND).summary().places["kl"]
    assert len(places) == PLACES == 32
    expected = dict.fromkeys(range(PLACES), (0.0, 0.0))
    for losses, length in ((FIRST.head.per_token["kl"].tolist(), 7), (SECOND.head.per_token["kl"].tolist(), 6)):
        for index, loss in enumerate(losses):
            at = index * 32 // length
            expected[at] = (expected[at][0] + loss, expected[at][1] + 1)
    assert places == list(expected.values())


def test_the_histogram_is_of_decimal_logarithms() -> None:
    counts = sums_of(FIRST, SECOND).summary().losses["kl"]
    assert sum(counts) == 13
    assert counts[0] == 1  # a loss of 0
    assert counts[next(index for index, edge in enumerate(LOSS_EDGES) if edge > math.log10(64)) - 1] == 1
    assert counts[next(index for index, edge in enumerate(LOSS_EDGES) if edge > 0) - 1] == 1  # a loss of 1
    odd = micro_batch([(1, 0)], [-1.0, 1e9], (0.0, 0.0))
    ends = sums_of(odd).summary().losses["kl"]
    assert (ends[0], ends[-1]) == (1, 1)


def test_ranks_are_added_by_their_vectors_and_one_without_posts_adds_nothing() -> None:
    ranks = [sums_of(FIRST), sums_of(SECOND), sums_of()]
    total = sums_of()
    total.vector.copy_(sum((each.vector for each in ranks), torch.zeros(())))
    assert total.summary() == sums_of(FIRST, SECOND).summary()
    empty = sums_of().summary()
    assert (empty.sections, empty.places, empty.statistics) == ({}, {}, {})
