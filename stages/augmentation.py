"""Which of the assistant's sampled rationales join the teacher's: the right ones that say something new."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mulcot.generation import RationaleRefusedError, parse_rationale
from mulcot.types import Post, Rationale, RationaleRecord


@dataclass(frozen=True, slots=True)
class Sample:
    """One reply that the assistant sampled."""

    post_id: str
    """The post."""
    index: int
    """The how-manieth sample of the post it is."""
    reply: str
    """As it was written."""


@dataclass
class Augmentation:
    """The outcome of sampling."""

    kept: list[RationaleRecord] = field(default_factory=list)
    """The accepted rationales, in the order of the posts."""
    refused: list[tuple[Sample, str]] = field(default_factory=list)
    """The others, each with the reason."""

    def counts(self) -> dict[str, int]:
        """How many were refused for which kind of reason."""
        return dict(Counter(reason.split(":")[0] for _, reason in self.refused))


def select(
    samples: Iterable[Sample],
    posts: dict[str, Post],
    known: dict[str, Sequence[Rationale]],
    labels: Sequence[str],
    model: str,
    prompt_hashes: dict[str, str],
) -> Augmentation:
    """Keeps a sample when its Prediction is the gold label and its text stands in no rationale of the post yet.

    Args:
        samples: in the order in which they are to be judged.
        posts: by id; all with a gold label.
        known: rationales that each post has already.
        labels: the label set.
        model: the assistant's name, for the records.
        prompt_hashes: the reasoning prompt's hash by setting.
    """
    outcome = Augmentation()
    texts = {post_id: {rationale.to_json() for rationale in given} for post_id, given in known.items()}
    for sample in samples:
        post = posts[sample.post_id]
        try:
            rationale = parse_rationale(sample.reply, labels)
        except RationaleRefusedError as refused:
            outcome.refused.append((sample, f"not a rationale: {refused}"))
            continue
        seen = texts.setdefault(post.id, set())
        if rationale.prediction != post.label:
            outcome.refused.append((sample, f"wrong label: {rationale.prediction} where {post.label} is right"))
        elif rationale.to_json() in seen:
            outcome.refused.append((sample, "not new: the post has this very rationale"))
        else:
            seen.add(rationale.to_json())
            prompt_hash = prompt_hashes[post.setting]
            outcome.kept.append(RationaleRecord(post.id, rationale, "assistant", model, prompt_hash, sample.index + 1))
    return outcome
