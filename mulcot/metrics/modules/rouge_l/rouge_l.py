"""ROUGE-L for `evaluate.load`."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from mulcot.metrics.functional import text
from mulcot.metrics.modules import base


class RougeL(base.TextMetric):
    """ROUGE-L F1 in [0, 1], mean over posts."""

    description = "F1 of the longest common subsequence of lower-cased words, not stemmed; mean over posts"
    citation = "Lin 2004"

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        return {"rouge_l": fmean(text.rouge_l(predictions, references))}
