"""Posts as rows of tokens."""

from mulcot.rows.batch import LAYOUTS, AssistantRows, Inputs, Layout, MicroBatch, QuestionBatch, RowBatch
from mulcot.rows.collator import RowCollator, RowForm
from mulcot.rows.encoder import EncodedHead, RowEncoder, TextRow, vocabulary_digest
from mulcot.rows.pictures import PictureCache, PlaceOf, load_error
from mulcot.rows.sections import SECTIONS, token_sections
from mulcot.rows.tree import TokenTree, common_length, merge

__all__ = [
    "LAYOUTS",
    "SECTIONS",
    "AssistantRows",
    "EncodedHead",
    "Inputs",
    "Layout",
    "MicroBatch",
    "PictureCache",
    "PlaceOf",
    "QuestionBatch",
    "RowBatch",
    "RowCollator",
    "RowEncoder",
    "RowForm",
    "TextRow",
    "TokenTree",
    "common_length",
    "load_error",
    "merge",
    "token_sections",
    "vocabulary_digest",
]
