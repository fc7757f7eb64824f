"""The metrics as pure functions; the classes that collect answers over an epoch are in `mulcot.metrics`."""

from mulcot.metrics.functional.classification import ClassificationScores, classification_scores, majority_scores
from mulcot.metrics.functional.text import corpus_bleu, rouge_l, sentence_bleu

__all__ = [
    "ClassificationScores",
    "classification_scores",
    "corpus_bleu",
    "majority_scores",
    "rouge_l",
    "sentence_bleu",
]
