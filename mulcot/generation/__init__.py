"""Generation: writing replies, scoring labels, reading what models write."""

from mulcot.generation.continuing import Reading, Replies, Sampler, read
from mulcot.generation.decoding import ReplyWriter, SeededSampler, decode_ids, decode_replies, sample_seed
from mulcot.generation.parsing import RationaleRefusedError, held_fields, parse_prediction, parse_rationale
from mulcot.generation.scoring import label_probabilities

__all__ = [
    "RationaleRefusedError",
    "Reading",
    "Replies",
    "ReplyWriter",
    "Sampler",
    "SeededSampler",
    "decode_ids",
    "decode_replies",
    "held_fields",
    "label_probabilities",
    "parse_prediction",
    "parse_rationale",
    "read",
    "sample_seed",
]
