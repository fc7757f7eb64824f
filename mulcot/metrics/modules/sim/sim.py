"""Sim for `evaluate.load`."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from mulcot.metrics import resources
from mulcot.metrics.functional import text
from mulcot.metrics.modules import base


class Sim(base.TextMetric):
    """Sim in [-1, 1], mean over posts; `encoder` is a sentence-transformers folder, the installed one without it."""

    description = "cosine of the sentence embeddings of prediction and reference (all-MiniLM-L6-v2); mean over posts"
    citation = "Reimers and Gurevych 2019"

    def _compute(self, predictions: list[str], references: list[str], encoder: str | None = None) -> dict[str, Any]:
        embed = resources.load_encoder(None if encoder is None else Path(encoder))
        return {"sim": fmean(text.sim(predictions, references, embed))}
