"""Scores of groups of posts: where a model is right and where it is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from mulcot.metrics.functional.significance import bootstrap_intervals
from mulcot.metrics.reasoning import Reference
from mulcot.predictions import Prediction

ASPECTS: Final = "aspects of the post"
WORDS: Final = "words of the text"
REFERENCE: Final = "reference rationale"
ASPECT: Final = "aspect"
MIN_ASPECT_POSTS: Final = 5
"""Posts that an aspect must have to be a group."""
MAX_ASPECTS: Final = 20
"""Aspects that are groups at most, the most frequent first."""
_WORDS: Final = ((10, "up to 10"), (15, "11 to 15"), (20, "16 to 20"))
_MORE_WORDS: Final = "more than 20"


def slice_scores(
    predictions: Sequence[Prediction], references: Mapping[str, Reference], labels: Sequence[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Accuracy and macro F1 of the classification answers in groups of posts, over the posts with a gold label.

    Args:
        predictions: what a model answered.
        references: the reference rationales, by post id.
        labels: the label set.

    Returns:
        What the groups are groups of → group → `posts`, `accuracy`, `macro_f1` (over the labels that occur in the
        group) and `intervals` of both (score → [low, high], 95% bootstrap). Groups: by the number of aspects that are
        asked about of the same text and picture, the words of the text, the source of the reference rationale, the
        aspect (those of five posts or more, the 20 most frequent), and by every key of `Prediction.slices`. A kind of
        group that does not occur, such as aspects of posts without one, is left out.

    Raises:
        ValueError: a label is not one of the set.
    """
    known = [prediction for prediction in predictions if prediction.gold is not None]
    # The others of a post count although their own gold label is not known.
    aspects = Counter((p.text, p.image) for p in predictions if p.aspect is not None)
    grouped: dict[str, dict[str, list[Prediction]]] = {}

    def add(kind: str, group: str, prediction: Prediction) -> None:
        grouped.setdefault(kind, {}).setdefault(group, []).append(prediction)

    for prediction in known:
        if prediction.aspect is not None:
            add(ASPECTS, _number_of_aspects(aspects[prediction.text, prediction.image]), prediction)
        add(WORDS, _length(prediction.text), prediction)
        reference = references.get(prediction.answer.post_id)
        add(REFERENCE, "none" if reference is None else reference.source, prediction)
    for name, aspect in _frequent_aspects(known):
        grouped.setdefault(ASPECT, {})[name] = aspect
    for prediction in known:
        for kind, group in prediction.slices.items():
            add(kind, group, prediction)
    return {
        kind: {group: _scores(found, labels) for group, found in _in_order(kind, groups)}
        for kind, groups in grouped.items()
    }


def _scores(predictions: Sequence[Prediction], labels: Sequence[str]) -> dict[str, Any]:
    said = [labels.index(p.answer.label) for p in predictions]
    gold = [labels.index(p.gold) for p in predictions if p.gold is not None]
    right = sum(one == two for one, two in zip(said, gold, strict=True))
    f1 = [
        2 * sum(one == two == label for one, two in zip(said, gold, strict=True)) / count
        for label in range(len(labels))
        if (count := said.count(label) + gold.count(label))
    ]
    intervals = bootstrap_intervals(said, gold, len(labels))
    return {
        "posts": len(gold),
        "accuracy": right / len(gold),
        "macro_f1": sum(f1) / len(f1),
        "intervals": {name: list(intervals[name]) for name in ("accuracy", "macro_f1")},
    }


def _number_of_aspects(count: int) -> str:
    return str(count) if count < 3 else "3 or more"


def _length(text: str) -> str:
    words = len(text.split())
    return next((name for most, name in _WORDS if words <= most), _MORE_WORDS)


def _frequent_aspects(predictions: Sequence[Prediction]) -> Iterable[tuple[str, list[Prediction]]]:
    """Aspects in any case, under the spelling that comes first; equally frequent ones by name."""
    found: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        if prediction.aspect is not None:
            found.setdefault(prediction.aspect.casefold(), []).append(prediction)
    enough = [(key, posts) for key, posts in found.items() if len(posts) >= MIN_ASPECT_POSTS]
    for _, posts in sorted(enough, key=lambda entry: (-len(entry[1]), entry[0]))[:MAX_ASPECTS]:
        yield str(posts[0].aspect), posts


def _in_order(kind: str, groups: Mapping[str, list[Prediction]]) -> list[tuple[str, list[Prediction]]]:
    """Lengths and aspects in their own order, others by name."""
    if kind == ASPECT:
        return list(groups.items())
    order = [*(name for _, name in _WORDS), _MORE_WORDS] if kind == WORDS else sorted(groups)
    return [(name, groups[name]) for name in order if name in groups]
