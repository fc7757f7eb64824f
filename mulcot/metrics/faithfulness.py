"""How answers and rationales change when what they are about is taken away or swapped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Final

from mulcot.metrics.functional.text import rouge_l
from mulcot.metrics.probe_files import AspectSwaps, Changes, Conflict, Marked, RationaleChanges
from mulcot.types import RATIONALE_KEYS, Answer, Rationale

Gold = str | None
FIELDS: Final = {key: name for key, name in RATIONALE_KEYS.items() if key != "Prediction"}
"""The fields that are compared as texts."""


def total_variation(p: Mapping[str, float], q: Mapping[str, float]) -> float:
    """½ Σ abs(p - q) over all labels, in [0, 1]."""
    distance = sum(abs(p.get(label, 0.0) - q.get(label, 0.0)) for label in p.keys() | q.keys()) / 2
    return min(1.0, distance)  # probabilities of two sums that are rounded


def changes(before: Sequence[Answer], after: Sequence[Answer], golds: Sequence[Gold], *, written: bool) -> Changes:
    """What a perturbation did.

    Args:
        before: the answers to the posts as they are.
        after: those to the perturbed posts, in the same order.
        golds: the gold labels of the posts as they are.
        written: whether rationales were asked for.

    Raises:
        ValueError: the three differ in length, or answers are to different posts.
    """
    pairs = list(zip(before, after, strict=True))
    if any(one.post_id != other.post_id for one, other in pairs):
        raise ValueError("the answers before and after are to different posts")
    return Changes(
        posts=len(pairs),
        golds=sum(gold is not None for gold in golds),
        accuracy=accuracy(after, golds),
        accuracy_before=accuracy(before, golds),
        labels_changed=mean([one.label != other.label for one, other in pairs]),
        total_variation=mean([total_variation(one.probabilities, other.probabilities) for one, other in pairs]),
        probability_change=mean(
            [other.probabilities[one.label] - one.probabilities[one.label] for one, other in pairs]
        ),
        rationales=_rationale_changes(pairs) if written and pairs else None,
    )


def conflict(
    text_only: Sequence[Answer], image_only: Sequence[Answer], whole: Sequence[Answer], golds: Sequence[Gold]
) -> Conflict:
    """Accuracy where the model itself reads text and picture differently, and where it does not.

    Args:
        text_only: the answers without the picture.
        image_only: the answers without the text.
        whole: the answers to whole posts.
        golds: their gold labels.
    """
    marks = [one.label != other.label for one, other in zip(text_only, image_only, strict=True)]
    parts = {}
    for mark in (True, False):
        chosen = [number for number, given in enumerate(marks) if given is mark]
        known = [golds[number] for number in chosen]
        answers = [whole[number] for number in chosen]
        number_known = sum(gold is not None for gold in known)
        parts[mark] = Marked(posts=len(chosen), golds=number_known, accuracy=accuracy(answers, known))
    return Conflict(yes=parts[True], no=parts[False])


def aspect_swaps(answers: Sequence[Answer], golds: Sequence[Gold], others: Sequence[Gold]) -> AspectSwaps | None:
    """Whether answers follow the aspect; None where no other aspect's gold label is known.

    Args:
        answers: to posts that are asked about another aspect of their own.
        golds: the gold labels of their first aspects.
        others: those of the aspects that they are asked about.
    """
    known = [
        (answer.label, gold, other)
        for answer, gold, other in zip(answers, golds, others, strict=True)
        if gold is not None and other is not None
    ]
    differing = [(label, gold, other) for label, gold, other in known if gold != other]
    return (
        AspectSwaps(
            posts=len(known),
            follows=mean([label == other for label, _, other in known]),
            differing=len(differing),
            differing_follows=mean([label == other for label, _, other in differing]),
            differing_stays=mean([label == gold for label, gold, _ in differing]),
        )
        if known
        else None
    )


def accuracy(answers: Sequence[Answer], golds: Sequence[Gold]) -> float | None:
    """The share of answers that are the gold label, where there is one."""
    return mean([answer.label == gold for answer, gold in zip(answers, golds, strict=True) if gold is not None])


def mean(values: Sequence[float]) -> float | None:
    """The mean; None of nothing."""
    return fmean(values) if values else None


def _rationale_changes(pairs: Sequence[tuple[Answer, Answer]]) -> RationaleChanges:
    both = [
        (one.rationale, other.rationale)
        for one, other in pairs
        if one.rationale is not None and other.rationale is not None
    ]
    texts = {key: [(getattr(one, name), getattr(other, name)) for one, other in both] for key, name in FIELDS.items()}
    texts["whole"] = [(_joined(one), _joined(other)) for one, other in both]
    return RationaleChanges(
        parse_rate=fmean(other.rationale is not None for _, other in pairs),
        parse_rate_before=fmean(one.rationale is not None for one, _ in pairs),
        pairs=len(both),
        distance={key: _distance(given) for key, given in texts.items()},
        predictions_changed=mean([one.prediction != other.prediction for one, other in both]),
    )


def _joined(rationale: Rationale) -> str:
    return " ".join(getattr(rationale, name) for name in FIELDS.values())


def _distance(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Mean of 1 - ROUGE-L; equal texts are at 0 even where ROUGE-L, which knows ASCII words alone, finds none."""
    if not pairs:
        return None
    scores = rouge_l([after for _, after in pairs], [before for before, _ in pairs])
    return fmean(0.0 if one == other else 1 - score for (one, other), score in zip(pairs, scores, strict=True))
