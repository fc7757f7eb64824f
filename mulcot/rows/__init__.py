"""Posts as rows of tokens."""

from mulcot.rows.batch import MicroBatch, QuestionBatch, RowBatch, RowCollator
from mulcot.rows.encoder import EncodedHead, RowEncoder, TextRow, vocabulary_digest

__all__ = [
    "EncodedHead",
    "MicroBatch",
    "QuestionBatch",
    "RowBatch",
    "RowCollator",
    "RowEncoder",
    "TextRow",
    "vocabulary_digest",
]
