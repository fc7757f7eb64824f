"""How dialogues with a teacher are led and how they end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from mulcot.prompts import PromptUse
from mulcot.teachers.base import TeacherUse
from mulcot.teachers.filters import RationaleFilter
from mulcot.types import InputError, Post, RationaleRecord

Failure = Literal["unlabelled", "malformed", "contradicting", "filtered", "silent", "unavailable"]
"""Why there is no rationale: no gold label; replies that do not parse; explanations whose own Prediction is not the
label that was given; rationales that a filter refused; no reply, now or later; no reply this time."""


PromptWords = Literal["teacher", "trained"]
"""In whose words a teacher is asked to predict: at length, for a model that has never seen the task; or in those that
assistant and student are trained on, the only ones that a model of mulcot's own knows."""
_PROMPTS: Final[dict[PromptWords, dict[TeacherUse, PromptUse]]] = {
    "teacher": {"predict": "teacher_predict", "explain": "teacher_explain"},
    "trained": {"predict": "reasoning", "explain": "teacher_explain"},  # no model is trained to explain a given label
}
PROMPT_USES: Final[tuple[PromptUse, ...]] = ("teacher_predict", "teacher_explain", "reasoning")
"""All prompts that a teacher may be asked with."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the dialogues about all posts have in common."""

    labels: tuple[str, ...]
    """The labels of the data set."""
    max_reasks: int = 2
    """How often a reply that is refused is asked for again, for each of the two uses."""
    accept_unlabelled: bool = False
    """Whether a post without a gold label is given the teacher's own; else it is not asked about."""
    rationales_per_post: int = 1
    """How many rationales of a post are asked for."""
    filters: tuple[RationaleFilter, ...] = ()
    """What a rationale must be beside well-formed and right."""
    prompt: PromptWords = "teacher"
    """In whose words the teacher is asked to predict."""

    def prompt_use(self, use: TeacherUse) -> PromptUse:
        """The prompt for a question."""
        return _PROMPTS[self.prompt][use]

    def __post_init__(self) -> None:
        if not self.labels:
            raise InputError("labels: the list is empty; give the labels of the data set")
        if self.max_reasks < 0:
            raise InputError(f"max_reasks: must be 0 or more, is {self.max_reasks}")
        if self.rationales_per_post < 1:
            raise InputError(f"rationales_per_post: must be 1 or more, is {self.rationales_per_post}")


@dataclass(frozen=True, slots=True)
class Ask:
    """One question of a dialogue, answered or not."""

    key: str
    """Its content key."""
    attempt: int
    """0, then 1 for the first re-ask, ..."""
    is_new: bool
    """True when a request was sent for it now, False when the store, or an equal post of this run, had the reply."""
    prompt_tokens: int = 0
    """Tokens read for it, whenever that was."""
    completion_tokens: int = 0
    """Tokens written for it, whenever that was."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the dialogue about one rationale of one post ended."""

    post: Post
    """The post."""
    sample: int
    """Which of several rationales of the post."""
    record: RationaleRecord | None
    """The accepted rationale; None when there is none."""
    failure: Failure | None
    """The kind of failure; None when a rationale was accepted."""
    reason: str
    """The failure in words; empty when a rationale was accepted."""
    last_reply: str
    """What the teacher wrote last; empty when it wrote nothing."""
    first_prediction: str | None
    """The label that the teacher found by itself; None when it gave no valid one."""
    asks: tuple[Ask, ...]
    """Every question, in order."""
    prompt_hash: str
    """The hash of the prompt that was asked last; empty when nothing was."""
    image_sha256: str = ""
    """The hash of the post's picture; empty when nothing was asked."""
    is_imported: bool = False
    """Whether the rationale was brought in instead of asked for."""
