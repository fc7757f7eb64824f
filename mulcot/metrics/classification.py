"""Classification over an epoch: labels go in batch by batch, a JSON-ready report comes out."""

from collections.abc import Sequence
from typing import Any

from mulcot.metrics.functional.classification import classification_scores
from mulcot.types import InputError


class ClassificationReport:
    """Accuracy, F1 and confusion matrix of the labels that a model gave.

    Args:
        labels: the label set, two labels or more; rows and columns of the confusion matrix keep its order.

    Raises:
        InputError: there are fewer than two labels, or one occurs twice.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        if len(labels) < 2 or len(set(labels)) != len(labels):
            raise InputError(f"labels are {', '.join(labels) or 'missing'}; two or more different ones are needed")
        self.labels = tuple(labels)
        self._predictions: list[int] = []
        self._targets: list[int] = []

    def update(self, predictions: Sequence[str], targets: Sequence[str]) -> None:
        """Adds posts.

        Args:
            predictions: the label that the model gave, one a post.
            targets: the gold label, in the same order.

        Raises:
            InputError: a label is not one of the label set; nothing is added then.
            ValueError: there are not as many predictions as targets; nothing is added then.
        """
        if len(predictions) != len(targets):
            raise ValueError(f"{len(predictions)} predictions for {len(targets)} targets; one for each is needed")
        predicted, gold = self._indices("prediction", predictions), self._indices("gold label", targets)
        self._predictions += predicted
        self._targets += gold

    def compute(self) -> dict[str, Any]:
        """The report over everything added so far.

        Returns:
            `accuracy`, `weighted_f1`, `macro_f1` in [0, 1], None without a post; `confusion`, gold label → predicted
            label → posts, with every label; `posts`, their number.
        """
        if not self._targets:
            empty = {gold: dict.fromkeys(self.labels, 0) for gold in self.labels}
            return {"accuracy": None, "weighted_f1": None, "macro_f1": None, "confusion": empty, "posts": 0}
        scores = classification_scores(self._predictions, self._targets, len(self.labels))
        rows = [dict(zip(self.labels, row, strict=True)) for row in scores.confusion]
        return {
            "accuracy": scores.accuracy,
            "weighted_f1": scores.weighted_f1,
            "macro_f1": scores.macro_f1,
            "confusion": dict(zip(self.labels, rows, strict=True)),
            "posts": len(self._targets),
        }

    def _indices(self, what: str, names: Sequence[str]) -> list[int]:
        indices = {label: index for index, label in enumerate(self.labels)}
        for position, name in enumerate(names):
            if name not in indices:
                raise InputError(f"{what} {position} is {name!r}; it must be one of {', '.join(self.labels)}")
        return [indices[name] for name in names]
