"""Accuracy, precision, recall, F1 and the confusion matrix of single-label classification."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class LabelScores(NamedTuple):
    """How well one label is told from the others; a score without anything to measure it on is None."""

    precision: float | None
    """Of the posts with this prediction, the share whose gold label it is; None when it is never predicted."""
    recall: float | None
    """Of the posts with this gold label, the share with this prediction; None when no post has it."""
    f1: float | None
    """Harmonic mean of the two, `2 tp / (posts + predicted)`; None when the label does not occur."""
    posts: int
    """Posts with this gold label."""
    predicted: int
    """Posts with this prediction."""


class ClassificationScores(NamedTuple):
    """How well predicted labels match gold labels; every score is in [0, 1]."""

    accuracy: float
    """Share of posts whose prediction is the gold label."""
    weighted_f1: float
    """F1 of every label, weighted by the label's share of the gold labels."""
    macro_f1: float
    """Plain mean of the labels' F1, over the labels that occur as gold label or as prediction."""
    confusion: list[list[int]]
    """Posts by gold label (row) and predicted label (column); posts without a prediction are in no cell."""
    per_label: list[LabelScores]
    """Label by label."""
    unparsed: int
    """Posts without a prediction."""


def classification_scores(
    predictions: Sequence[int | None], targets: Sequence[int], num_labels: int
) -> ClassificationScores:
    """The scores of predicted labels, by torchmetrics.

    A post without a prediction is wrong: it counts in the accuracy, and as one that its gold label missed in recall
    and F1.

    Args:
        predictions: the index of the predicted label, one a post; None where there is none.
        targets: the index of the gold label, in the same order.
        num_labels: how many labels there are, two or more.

    Raises:
        ValueError: there are no posts, or not as many predictions as targets.
    """
    # Importing torchmetrics takes several seconds, which reports and `--help` should not cost.
    import torch
    from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_f1_score
    from torchmetrics.functional.classification import multiclass_precision as precision
    from torchmetrics.functional.classification import multiclass_recall as recall

    if not targets or len(predictions) != len(targets):
        raise ValueError(
            f"{len(predictions)} predictions for {len(targets)} targets; one for each of at least one post"
        )
    # "No prediction" is a label of its own here, which no post has as gold label; its scores are left out below.
    labels = num_labels + 1
    predicted = torch.tensor([num_labels if said is None else said for said in predictions])
    gold = torch.tensor(targets)
    confusion = multiclass_confusion_matrix(predicted, gold, labels)[:num_labels]
    posts, said = confusion.sum(1).tolist(), confusion.sum(0).tolist()
    by_label = [
        score(predicted, gold, labels, average="none").tolist() for score in (precision, recall, multiclass_f1_score)
    ]
    per_label = [
        LabelScores(p if m else None, r if n else None, f if n + m else None, posts=n, predicted=m)
        for p, r, f, n, m in zip(*by_label, [*posts, 0], said, strict=True)
    ][:num_labels]
    f1 = [label.f1 for label in per_label if label.f1 is not None]
    return ClassificationScores(
        accuracy=int(confusion.trace()) / len(targets),
        weighted_f1=sum((label.f1 or 0.0) * label.posts for label in per_label) / len(targets),
        macro_f1=sum(f1) / len(f1),
        confusion=confusion[:, :num_labels].tolist(),
        per_label=per_label,
        unparsed=said[num_labels],
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
