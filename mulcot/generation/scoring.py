"""Classification by scoring every label's answer, which gives probabilities instead of a single generated word."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mulcot.models import head, hidden_states
from mulcot.rows import RowBatch


@torch.no_grad()
def label_probabilities(model: nn.Module, candidates: RowBatch, labels: int) -> Tensor:
    """The probability of each label: P(label) ∝ exp Σ log p over the answer's tokens, end of turn included.

    There is no length normalisation: the answers are compared as the whole sequences that the model would write.

    Args:
        model: in eval mode.
        candidates: every post with every label as answer, post by post.
        labels: how many labels there are.

    Returns:
        `[posts, labels]` in fp32; rows sum to 1.
    """
    hidden = hidden_states(model, candidates.inputs).flatten(0, 1)[candidates.positions]
    log_probs = head(model)(hidden).float().log_softmax(dim=-1)
    chosen = log_probs.gather(-1, candidates.targets.unsqueeze(-1)).squeeze(-1)
    lengths = torch.tensor([len(row.response_ids) for row in candidates.rows], device=chosen.device)
    of_row = torch.arange(len(lengths), device=chosen.device).repeat_interleave(lengths)
    totals = torch.zeros(len(lengths), device=chosen.device).index_add_(0, of_row, chosen)
    return totals.view(-1, labels).softmax(dim=-1)
