"""Accuracy, F1 and the confusion matrix of single-label classification."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class ClassificationScores(NamedTuple):
    """How well predicted labels match gold labels; every score is in [0, 1]."""

    accuracy: float
    """Share of posts whose prediction is the gold label."""
    weighted_f1: float
    """F1 of every label, weighted by the label's share of the gold labels."""
    macro_f1: float
    """Plain mean of the labels' F1, over the labels that occur as gold label or as prediction."""
    confusion: list[list[int]]
    """Posts by gold label (row) and predicted label (column)."""


def classification_scores(predictions: Sequence[int], targets: Sequence[int], num_labels: int) -> ClassificationScores:
    """The scores of predicted labels, by torchmetrics.

    Args:
        predictions: the index of the predicted label, one a post.
        targets: the index of the gold label, in the same order.
        num_labels: how many labels there are, two or more.

    Raises:
        ValueError: there are no posts, or not as many predictions as targets.
    """
    # Importing torchmetrics takes several seconds, which reports and `--help` should not cost.
    import torch
    from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_f1_score

    if not targets or len(predictions) != len(targets):
        raise ValueError(
            f"{len(predictions)} predictions for {len(targets)} targets; one for each of at least one post"
        )
    predicted, gold = torch.tensor(predictions), torch.tensor(targets)
    confusion = multiclass_confusion_matrix(predicted, gold, num_labels)
    return ClassificationScores(
        accuracy=int(confusion.trace()) / len(targets),
        weighted_f1=multiclass_f1_score(predicted, gold, num_labels, average="weighted").item(),
        macro_f1=multiclass_f1_score(predicted, gold, num_labels, average="macro").item(),
        confusion=confusion.tolist(),
    )


def majority_scores(gold_counts: Mapping[str, int], label: str) -> dict[str, float]:
    """The scores of a classifier that answers every post with one label.

    With p the label's share of the posts: accuracy is p; precision of the label is p and its recall 1, which makes its
    F1 `2p / (1 + p)`; F1 of every other label is 0.

    Args:
        gold_counts: posts by gold label, at least one post in all.
        label: the label that is always answered.

    Returns:
        `accuracy`, `weighted_f1` and `macro_f1`, the same as those of `classification_scores`.

    Raises:
        ValueError: there are no posts.
    """
    posts = sum(gold_counts.values())
    if posts == 0:
        raise ValueError("there are no posts; the scores of a majority class need at least one")
    share = gold_counts.get(label, 0) / posts
    f1 = 2 * share / (1 + share)
    occurring = {name for name, count in gold_counts.items() if count} | {label}
    return {"accuracy": share, "weighted_f1": share * f1, "macro_f1": f1 / len(occurring)}
