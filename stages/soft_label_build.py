"""The assistant's soft labels of everything that the student will learn, computed once."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mulcot.losses import TopK
from mulcot.manifests import digest
from mulcot.models import ModelSource, base_of, find_model, head, hidden_states
from mulcot.rows import RowBatch, RowEncoder
from mulcot.soft_labels import SoftLabelWriter


def soft_label_fingerprint(assistant: str, encoder: RowEncoder) -> dict[str, str]:
    """What soft labels depend on beside the response tokens, which are part of an entry's own key."""
    return {"assistant": _digest_of(find_model(assistant))} | encoder.fingerprint()


def _digest_of(source: ModelSource) -> str:
    """A digest of a model's weights: an adapter's with those of what it goes onto, a hub's model by its name."""
    weights = source.checkpoint or Path(source.name)
    own = digest(weights) if weights.exists() else source.name
    base = base_of(source)
    return own if base is None else hashlib.sha256(f"{own} on {_digest_of(base)}".encode()).hexdigest()


class SoftLabelBuild:
    """Writes the top-k log-probabilities of the assistant for every response token it is given.

    Args:
        folder: where the cache goes.
        fingerprint: see `soft_label_fingerprint`.
        k: ids kept for each token.
        temperature: the T of the student's loss.
        rows: rows of the assistant's head that soft labels are taken from.
        rank: which process this is.
    """

    def __init__(
        self, folder: Path, fingerprint: dict[str, str], k: int, temperature: float, rows: int, rank: int
    ) -> None:
        self.k = min(k, rows)
        self.temperature = temperature
        self.rows = rows
        self.kept_mass = 0.0
        self.tokens = 0
        self.skipped = 0
        self.writer = SoftLabelWriter(folder, fingerprint, self.k, temperature, vocab_rows=rows, rank=rank)

    @torch.no_grad()
    def add(self, model: nn.Module, batch: RowBatch) -> None:
        """Scores a batch of rows, unless an earlier build that was interrupted has them all."""
        if all(self.writer.has(row.post.id, row.task, row.response_ids) for row in batch.rows):
            self.skipped += len(batch.rows)
            return
        hidden = hidden_states(model, batch.inputs).flatten(0, 1)[batch.positions]
        view = TopK.from_logits(head(model)(hidden)[:, : self.rows], self.k, self.temperature).to("cpu")
        self.kept_mass += float(view.log_probs.exp().sum())
        self.tokens += len(batch.targets)
        start = 0
        for row in batch.rows:
            stop = start + len(row.response_ids)
            if not self.writer.has(row.post.id, row.task, row.response_ids):
                self.writer.add(row.post.id, row.task, row.response_ids, view[start:stop])
            start = stop

    def totals(self) -> dict[str, Any]:
        """What this process scored, for the metrics."""
        return {"tokens": self.tokens, "kept_mass": self.kept_mass, "rows_found_finished": self.skipped}
