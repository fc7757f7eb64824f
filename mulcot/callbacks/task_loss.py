"""What a micro-batch's objective came to for one task: what the stage logs and inspection looks at."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mulcot.losses import HeadLoss, View
from mulcot.rows import RowBatch
from mulcot.types import Task


@dataclass(frozen=True, slots=True)
class TaskLoss:
    """The objective of one task over one micro-batch."""

    task: Task
    """Which task."""
    rows: RowBatch
    """The rows that it was computed on."""
    view: View | None
    """The assistant's view of the response tokens; None where nothing is learnt from it."""
    total: Tensor
    """Scalar with a graph: the weighted terms over this micro-batch, divided by the step's response tokens."""
    values: dict[str, Tensor]
    """Each term's share of its mean over the step's response tokens, unweighted, without a graph."""
    head: HeadLoss
    """What the chunked head gave: every term on logits for every response token."""
    divisor: float
    """What sums over tokens were divided by: the response tokens of the whole optimizer step, unless a quirk says
    otherwise."""
