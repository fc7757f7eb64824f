"""What the label store keeps of a dialogue beside its replies."""

from __future__ import annotations

from dataclasses import dataclass

from mulcot.types import Source


@dataclass(frozen=True, slots=True)
class Settled:
    """How the dialogue about one rationale of one post ended: what the last run says beside the replies themselves."""

    split: str
    """The split."""
    position: int
    """Orders the posts of a split."""
    sample: int
    """Which of several rationales of the post."""
    post_id: str
    """The post."""
    gold: str | None
    """Its gold label."""
    first_prediction: str | None
    """The label that the teacher found by itself; None when it gave no valid one."""
    source: Source | None
    """Where the rationale comes from; None where there is none."""
    failure: str | None
    """The kind of failure; None where there is a rationale."""
    reason: str
    """The failure in words; empty where there is a rationale."""
    model: str
    """Who was asked."""
    prompt_hash: str
    """The hash of the prompt that the last reply answers; empty where nothing was asked."""
    asks: tuple[tuple[str, int, bool], ...]
    """Every question in order: content key, attempt, and whether this run sent it."""
    imported: str | None = None
    """The record as one line of JSON, where it was brought in."""


@dataclass(frozen=True, slots=True)
class Conclusion:
    """How a dialogue came to its rationale, as far as it does not depend on the run."""

    source: Source
    """Where the rationale comes from."""
    first_prediction: str | None
    """The label that the teacher found by itself."""
    model: str
    """Who was asked."""
    prompt_hash: str
    """The hash of the prompt that the last reply answers."""
    asks: tuple[tuple[str, int], ...]
    """Every question in order: content key and attempt; the last one's reply holds the rationale."""
