"""Posts as rows of tokens."""

from mulcot.rows.batch import MicroBatch, PlaceOf, QuestionBatch, RowBatch, RowCollator, load_error
from mulcot.rows.encoder import EncodedHead, RowEncoder, TextRow, vocabulary_digest

__all__ = [
    "EncodedHead",
    "MicroBatch",
    "PlaceOf",
    "QuestionBatch",
    "RowBatch",
    "RowCollator",
    "RowEncoder",
    "TextRow",
    "load_error",
    "vocabulary_digest",
]
