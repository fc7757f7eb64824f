"""The metrics as pure functions; the classes that collect answers over an epoch are in `mulcot.metrics`."""

from mulcot.metrics.functional.calibration import Calibration, CalibrationBin, calibration
from mulcot.metrics.functional.classification import (
    ClassificationScores,
    LabelScores,
    classification_scores,
    majority_scores,
)
from mulcot.metrics.functional.significance import (
    Difference,
    McNemar,
    bootstrap_intervals,
    mcnemar,
    mean_differences,
    paired_differences,
)
from mulcot.metrics.functional.text import corpus_bleu, distinct, meteor, rouge_l, sentence_bleu, sim

__all__ = [
    "Calibration",
    "CalibrationBin",
    "ClassificationScores",
    "Difference",
    "LabelScores",
    "McNemar",
    "bootstrap_intervals",
    "calibration",
    "classification_scores",
    "corpus_bleu",
    "distinct",
    "majority_scores",
    "mcnemar",
    "mean_differences",
    "meteor",
    "paired_differences",
    "rouge_l",
    "sentence_bleu",
    "sim",
]
