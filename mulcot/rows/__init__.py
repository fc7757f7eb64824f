"""Posts as rows of tokens."""

from mulcot.rows.batch import AssistantRows, MicroBatch, PlaceOf, QuestionBatch, RowBatch, RowCollator, load_error
from mulcot.rows.encoder import EncodedHead, RowEncoder, TextRow, vocabulary_digest
from mulcot.rows.sections import SECTIONS, token_sections

__all__ = [
    "SECTIONS",
    "AssistantRows",
    "EncodedHead",
    "MicroBatch",
    "PlaceOf",
    "QuestionBatch",
    "RowBatch",
    "RowCollator",
    "RowEncoder",
    "TextRow",
    "load_error",
    "token_sections",
    "vocabulary_digest",
]
