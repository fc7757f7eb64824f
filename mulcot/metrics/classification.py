"""Classification over an epoch: labels go in batch by batch, a JSON-ready report comes out."""

from collections.abc import Mapping, Sequence
from typing import Any

from mulcot.metrics.functional.calibration import calibration
from mulcot.metrics.functional.classification import classification_scores
from mulcot.metrics.functional.significance import SCORES, bootstrap_intervals
from mulcot.types import InputError

Probabilities = Mapping[str, float]


class ClassificationReport:
    """Accuracy, F1, confusion matrix and calibration of the labels that a model gave.

    A post without a label that can be read (None) counts as wrong; it is never left out.

    Args:
        labels: the label set, two labels or more; rows and columns of the confusion matrix keep its order.

    Raises:
        InputError: there are fewer than two labels, or one occurs twice.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        if len(labels) < 2 or len(set(labels)) != len(labels):
            raise InputError(f"labels are {', '.join(labels) or 'missing'}; two or more different ones are needed")
        self.labels = tuple(labels)
        self._predictions: list[int | None] = []
        self._targets: list[int] = []
        self._confidences: list[float] = []
        self._right: list[bool] = []

    def update(
        self,
        predictions: Sequence[str | None],
        targets: Sequence[str],
        probabilities: Sequence[Probabilities | None] | None = None,
    ) -> None:
        """Adds posts.

        Args:
            predictions: the label that the model gave, one a post; None where none could be read.
            targets: the gold label, in the same order.
            probabilities: the probability of every label, in the same order; None where there are none.

        Raises:
            InputError: a label is not one of the label set, or has no probability in [0, 1]; nothing is added then.
            ValueError: there are not as many predictions as targets; nothing is added then.
        """
        if len(predictions) != len(targets):
            raise ValueError(f"{len(predictions)} predictions for {len(targets)} targets; one for each is needed")
        predicted = [None if name is None else self._index("prediction", n, name) for n, name in enumerate(predictions)]
        gold = [self._index("gold label", n, name) for n, name in enumerate(targets)]
        given = [None] * len(targets) if probabilities is None else probabilities
        # Without a label there is no confidence in it.
        sure = [
            (_confidence(position, name, known), name == target)
            for position, (name, known, target) in enumerate(zip(predictions, given, targets, strict=True))
            if name is not None and known is not None
        ]
        self._predictions += predicted
        self._targets += gold
        self._confidences += [confidence for confidence, _ in sure]
        self._right += [right for _, right in sure]

    def compute(self) -> dict[str, Any]:
        """The report over everything added so far.

        Returns:
            `accuracy`, `weighted_f1`, `macro_f1` in [0, 1], None without a post; `intervals` of these three: score →
            [low, high], the 95% percentile bootstrap over posts (1,000 resamples). `per_class`: label → `precision`,
            `recall`, `f1` (None where there is nothing to measure), `posts` (with this gold label), `predicted`.
            `confusion`: gold label → predicted label → posts, with every label. `posts`: their number, `unparsed`:
            those without a prediction, which are in no cell of the matrix. `ece`: top-label expected calibration error
            over 15 bins of equal width, over the posts with probabilities, None without any; `calibration`: the bins
            with posts, each with `lower`, `upper`, `confidence`, `accuracy`, `posts`.
        """
        if not self._targets:
            return self._empty()
        scores = classification_scores(self._predictions, self._targets, len(self.labels))
        intervals = bootstrap_intervals(self._predictions, self._targets, len(self.labels))
        rows = [dict(zip(self.labels, row, strict=True)) for row in scores.confusion]
        per_class = [label._asdict() for label in scores.per_label]
        calibrated = calibration(self._confidences, self._right) if self._confidences else None
        return {
            "accuracy": scores.accuracy,
            "weighted_f1": scores.weighted_f1,
            "macro_f1": scores.macro_f1,
            "intervals": {name: list(interval) for name, interval in intervals.items()},
            "per_class": dict(zip(self.labels, per_class, strict=True)),
            "confusion": dict(zip(self.labels, rows, strict=True)),
            "posts": len(self._targets),
            "unparsed": scores.unparsed,
            "ece": calibrated.ece if calibrated else None,
            "calibration": [found._asdict() for found in calibrated.bins] if calibrated else [],
        }

    def _empty(self) -> dict[str, Any]:
        nothing = {"precision": None, "recall": None, "f1": None, "posts": 0, "predicted": 0}
        return {
            **dict.fromkeys(SCORES),
            "intervals": {},
            "per_class": {label: dict(nothing) for label in self.labels},
            "confusion": {gold: dict.fromkeys(self.labels, 0) for gold in self.labels},
            "posts": 0,
            "unparsed": 0,
            "ece": None,
            "calibration": [],
        }

    def _index(self, what: str, position: int, name: str) -> int:
        if name not in self.labels:
            raise InputError(f"{what} {position} is {name!r}; it must be one of {', '.join(self.labels)}")
        return self.labels.index(name)


def _confidence(position: int, label: str, probabilities: Probabilities) -> float:
    confidence = probabilities.get(label)
    if confidence is None or not 0 <= confidence <= 1:
        raise InputError(
            f"prediction {position}: the probability of {label!r} is {confidence}; it must be between 0 and 1"
        )
    return confidence
