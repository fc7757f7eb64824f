"""Classification by scoring every label's answer, which gives probabilities instead of a single generated word."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mulcot.generation.continuing import Reading
from mulcot.models import hidden_states, logits
from mulcot.rows import RowBatch, common_length


@torch.no_grad()
def label_probabilities(model: nn.Module, candidates: RowBatch, labels: int, reading: Reading | None = None) -> Tensor:
    """The probability of each label: P(label) ∝ exp Σ log p over the answer's tokens, end of turn included.

    There is no length normalisation: the answers are compared as the whole sequences that the model would write. What
    all answers to a post begin with changes no probability and is not scored.

    Args:
        model: in eval mode.
        candidates: every post with every label as answer, post by post.
        labels: how many labels there are.
        reading: what the model has read of them; None reads them now.

    Returns:
        `[posts, labels]` in fp32; rows sum to 1.
    """
    read = hidden_states(model, candidates.inputs).flatten(0, 1) if reading is None else reading.hidden
    wanted, rows = _telling(candidates, labels)
    chosen = torch.tensor(wanted, dtype=torch.int64, device=read.device)
    # In the shared layout several answers may have been written from one place; the head is large.
    places, place_of = candidates.positions[chosen].unique(return_inverse=True)
    scores = logits(model, read[places]).float()
    log_probs = scores[place_of, candidates.targets[chosen]] - scores.logsumexp(dim=-1)[place_of]
    totals = torch.zeros(len(candidates.rows), device=read.device)
    totals.index_add_(0, torch.tensor(rows, dtype=torch.int64, device=read.device), log_probs)
    return totals.view(-1, labels).softmax(dim=-1)


def _telling(candidates: RowBatch, labels: int) -> tuple[list[int], list[int]]:
    """The response tokens, with the row of each, that tell a post's answers from each other."""
    wanted: list[int] = []
    rows: list[int] = []
    token = 0
    for first in range(0, len(candidates.rows), labels):
        answers = [row.response_ids for row in candidates.rows[first : first + labels]]
        common = min(common_length(answers[0], answer) for answer in answers)
        for row, answer in enumerate(answers, start=first):
            wanted += range(token + common, token + len(answer))
            rows += [row] * (len(answer) - common)
            token += len(answer)
    return wanted, rows
