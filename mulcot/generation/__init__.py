"""Generation: writing replies, scoring labels, reading what models write."""

from mulcot.generation.decoding import SeededSampler, decode_ids, decode_replies, sample_seed
from mulcot.generation.parsing import RationaleRefusedError, parse_prediction, parse_rationale
from mulcot.generation.scoring import label_probabilities

__all__ = [
    "RationaleRefusedError",
    "SeededSampler",
    "decode_ids",
    "decode_replies",
    "label_probabilities",
    "parse_prediction",
    "parse_rationale",
    "sample_seed",
]
