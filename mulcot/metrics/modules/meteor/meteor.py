"""METEOR for `evaluate.load`."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from mulcot.metrics import resources
from mulcot.metrics.functional import text
from mulcot.metrics.modules import base


class Meteor(base.TextMetric):
    """METEOR in [0, 1], mean over posts; `wordnet` is a folder of WordNet's files, the installed ones without it."""

    description = "METEOR by nltk with the synonyms of WordNet 3.0, on tokens of sacrebleu's 13a; mean over posts"
    citation = "Banerjee and Lavie 2005; Lavie and Agarwal 2007"

    def _compute(self, predictions: list[str], references: list[str], wordnet: str | None = None) -> dict[str, Any]:
        synonyms = resources.load_wordnet(None if wordnet is None else Path(wordnet))
        return {"meteor": fmean(text.meteor(predictions, references, synonyms))}
