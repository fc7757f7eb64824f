"""What the data module asks of the stage that it feeds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, Protocol

from mulcot.rows import Layout, RowEncoder, RowForm
from mulcot.types import Task

PredictKind = Literal["posts", "questions", "responses"]


class RowUser(Protocol):
    """A stage."""

    encoder: RowEncoder
    """Encodes posts for the stage's model."""
    pretrained: str
    """The stage's model, for messages."""
    tasks: Sequence[Task]
    """The tasks that are trained or asked."""
    predict_kind: PredictKind
    """What `predict` wants: plain posts, prompts to answer, or the responses to be learnt."""
    soft_label_fingerprint: dict[str, str] | None
    """What a soft-label cache must have been built with; None when any will do."""
    assistant_encoder: RowEncoder | None
    """Encodes the same rows for an assistant beside the student; None where there is none, or it takes the same."""

    def finished_posts(self) -> Collection[str]:
        """The posts that an interrupted prediction has asked about already; they are not asked about again."""
        ...

    def row_forms(self, layout: Layout, row_tokens: int | None) -> tuple[RowForm, RowForm]:
        """In which form the stage's model and the assistant beside it take rows, when this one is wanted."""
        ...
