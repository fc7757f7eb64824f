"""Distinct-1 and Distinct-2 for `evaluate.load`."""

from __future__ import annotations

from typing import Any

from mulcot.metrics.functional import text
from mulcot.metrics.modules import base


class Distinct(base.TextMetric):
    """Distinct-1 and Distinct-2 in [0, 1] of all predictions together."""

    inputs = ("predictions",)
    description = "different n-grams over all n-grams of the predictions of the corpus, on tokens of sacrebleu's 13a"
    citation = "Li et al. 2016"

    def _compute(self, predictions: list[str]) -> dict[str, Any]:
        return {f"distinct_{n}": text.distinct(predictions, n) for n in (1, 2)}
