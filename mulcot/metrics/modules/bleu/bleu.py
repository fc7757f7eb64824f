"""BLEU-4 for `evaluate.load`."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from mulcot.metrics.functional import text
from mulcot.metrics.modules import base


class Bleu(base.TextMetric):
    """BLEU-4 in [0, 1]: of the corpus (`bleu`), and the mean of unsmoothed sentence BLEU (`sentence_bleu`)."""

    description = "BLEU-4 by sacrebleu, tokenizer 13a: of the corpus, and the mean over posts without smoothing"
    citation = "Papineni et al. 2002; Post 2018"

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        counts = text.bleu_counts(predictions, references)
        return {"bleu": text.corpus_bleu_of(counts), "sentence_bleu": fmean(map(text.sentence_bleu_of, counts))}
