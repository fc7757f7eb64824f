"""The files of a cache: views as tensors of few bytes and back, and nothing damaged is read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mulcot.losses import Sampled, TopK
from mulcot.soft_labels.forms import CachedView, SoftLabelForm
from mulcot.types import InputError

MANIFEST: Final = "soft_labels.json"
FORMAT: Final = 2
"""1 had the form `top_k` alone, without digests of prompts and without a verification."""
SHARD_NAME: Final = re.compile(r"shard-r\d{3,}-\d{5,}")
REPAIR: Final = "delete it with its .json file and run `mulcot predict --config soft_labels.yaml` again"
_HALF_MIN: Final = torch.finfo(torch.float16).min
_COUNT_TOLERANCE: Final = 1e-3


class ShardFormat:
    """How the views of one form become tensors of a shard, and tensors become views again.

    Args:
        form: the form.
        vocab_rows: rows of the assistant's head that there are labels for; up to 32,768 an id takes two bytes
            instead of four.
    """

    def __init__(self, form: SoftLabelForm, vocab_rows: int | None) -> None:
        self.form, self.vocab_rows = form, vocab_rows
        small = vocab_rows is not None and vocab_rows <= torch.iinfo(torch.int16).max + 1
        self._id_type = torch.int16 if small else torch.int32

    def encode(self, view: CachedView) -> dict[str, Tensor]:
        """The view as it is stored, on the CPU.

        `top_k`: `ids`, `log_probs` `[tokens, k]`, `log_tail`, `log_z` `[tokens]`. `sampled`: `widths` `[tokens]` says
        how many different ids each token drew; `ids`, `counts`, `log_probs` `[sum of widths]` have them one token after
        the other.

        Raises:
            InputError: a weight of a sampled view is no count of draws.
        """
        view = view.to("cpu")
        if isinstance(view, TopK):
            rounded = _round(view)
            return {
                "ids": rounded.ids.to(self._id_type),
                "log_probs": rounded.log_probs,
                "log_tail": rounded.log_tail,
                "log_z": rounded.log_z,
            }
        is_drawn = view.weights > 0
        exact = view.weights[is_drawn].double() * (self.form.draws or 0)
        counts = exact.round()
        if bool(((exact - counts).abs() > _COUNT_TOLERANCE).any()):
            raise InputError("a weight of a sampled soft label is no count of draws; draw from p^T itself")
        return {
            "widths": is_drawn.sum(dim=-1).to(torch.int16),
            "ids": view.ids[is_drawn].to(self._id_type),
            "counts": counts.to(torch.uint8 if (self.form.draws or 0) <= torch.iinfo(torch.uint8).max else torch.int16),
            "log_probs": view.log_probs[is_drawn].float().clamp(min=_HALF_MIN).to(torch.float16),
        }

    def decode(self, parts: Mapping[str, Tensor]) -> CachedView:
        """The view of `encode`'s tensors, or of slices of them: int64 ids and fp32 probabilities."""
        if self.form.kind == "top_k":
            return TopK(
                ids=parts["ids"].to(torch.int64),
                log_probs=parts["log_probs"].float(),
                log_tail=parts["log_tail"].float(),
                log_z=parts["log_z"].float(),
                temperature=self.form.temperature,
                rows=self.vocab_rows,
            )
        widths = parts["widths"].to(torch.int64)
        width = int(widths.max()) if len(widths) else 0
        is_drawn = torch.arange(width) < widths.unsqueeze(-1)

        def padded(values: Tensor) -> Tensor:
            return values.new_zeros(is_drawn.shape).masked_scatter_(is_drawn, values)

        return Sampled(
            ids=padded(parts["ids"].to(torch.int64)),
            weights=padded(parts["counts"].float() / (self.form.draws or 0)),
            log_probs=padded(parts["log_probs"].float()),
            temperature=self.form.temperature,
            rows=self.vocab_rows,
        )


Span = tuple[str, int, int, int, int]
"""A shard's name; first and last token of a response in it, and of its drawn ids where they are not a row a token."""


class Shard:
    """An open shard, mapped into memory.

    Args:
        path: the .safetensors file.
        form: what it was written with.

    Raises:
        InputError: the file is no shard.
    """

    def __init__(self, path: Path, form: ShardFormat) -> None:
        self._format = form
        try:
            self._file = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise InputError(f"{path}: the shard is damaged ({error}); {REPAIR}") from error
        self._slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118 (no mapping)

    def view(self, span: Span) -> CachedView:
        """The view of one response."""
        _, start, stop, first, last = span
        is_ragged = "widths" in self._slices
        return self._format.decode(
            {
                name: values[first:last] if is_ragged and name != "widths" else values[start:stop]
                for name, values in self._slices.items()
            }
        )


def spans_of(name: str, entries: Sequence[Sequence[Any]]) -> list[tuple[tuple[str, str, str, str], Span]]:
    """Key and place of every response of a shard, from its index."""
    spans, start, first = [], 0, 0
    for post_id, task, response, prompt, tokens, *drawn in entries:
        stop, last = start + tokens, first + (drawn[0] if drawn else 0)
        spans.append(((post_id, task, response, prompt), (name, start, stop, first, last)))
        start, first = stop, last
    return spans


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Each key whose value differs, with both values; empty when none does."""
    return ", ".join(
        f"{key} is {old.get(key)!r} in the cache and {new.get(key)!r} here"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of the cache."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: the file is damaged ({error}); {REPAIR}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: the file is damaged (no JSON object); {REPAIR}")
    return values


def check_size(path: Path, expected: int) -> None:
    """Refuse a file that is missing or cut short."""
    size = path.stat().st_size if path.is_file() else 0
    if size != expected:
        raise InputError(f"{path}: the shard is damaged: it has {size} bytes and should have {expected}; {REPAIR}")


def check_hash(path: Path, expected: str) -> None:
    """Refuse a file that is missing or holds anything else than what was written."""
    if not path.is_file():
        raise InputError(f"{path}: the file is missing; {REPAIR}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise InputError(f"{path}: the file is damaged: its sha256 is {found[:12]}… and not {expected[:12]}…; {REPAIR}")


def _round(view: TopK) -> TopK:
    """The view as it is stored: ids as they are, log-probabilities and the tail at T=1 in fp16, log Z in fp32.

    log Z is computed anew from the rounded values, with the exact tail at T: otherwise the rounding of the large
    probabilities would end up in the tail, whose mass may be far smaller than that.
    """
    log_probs = view.log_probs.float().clamp(min=_HALF_MIN).to(torch.float16)
    log_tail = view.log_tail.float()
    # -inf stays in the tail alone, where it says that k covers the vocabulary.
    log_tail = torch.where(log_tail.isinf(), log_tail, log_tail.clamp(min=_HALF_MIN)).to(torch.float16)
    _, tail_at_t = view.at(view.temperature)
    tail_at_t = tail_at_t.float() + view.log_z.float()
    log_z = torch.logaddexp((log_probs.float() / view.temperature).logsumexp(dim=-1), tail_at_t)
    return TopK(view.ids, log_probs, log_tail, log_z, view.temperature, view.rows)
