"""Writing a cache, shard by shard, from one process or several."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save
from torch import Tensor

from mulcot.files import write_atomic
from mulcot.losses import TopK
from mulcot.soft_labels.forms import CachedView, Key, SoftLabelForm, response_digest
from mulcot.soft_labels.shards import (
    FORMAT,
    MANIFEST,
    REPAIR,
    Shard,
    ShardFormat,
    check_size,
    differences,
    read_json,
    spans_of,
)
from mulcot.soft_labels.verification import SUMS, kept_mass, measure, moved_mass, refuse_bug, summary
from mulcot.types import InputError, Task

_TOTALS: Final = ("kept_mass", "rounding_error")


@dataclass(frozen=True, slots=True)
class Check:
    """Tokens of a response, on which what the cache gives is compared with the assistant's whole distribution."""

    positions: Sequence[int]
    """Which tokens of the response, at least one."""
    logits: Tensor
    """The assistant's logits of them, `[positions, vocab]`: the ids that there were to choose from."""


@dataclass(frozen=True, slots=True)
class _Pending:
    """A response that waits for its shard."""

    key: Key
    parts: dict[str, Tensor]
    """The view as it is stored."""
    tokens: int
    totals: Tensor
    """`_TOTALS`, summed over the tokens."""
    errors: Tensor | None
    """`SUMS` of each token that was checked, `[checked, sums]`."""


class SoftLabelWriter:
    """Writes a cache shard by shard, and goes on where an earlier, unfinished build stopped.

    With several ranks each has a writer of its own on the same folder; rank 0 closes after the others have.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: Mapping[str, str],
        form: SoftLabelForm,
        shard_tokens: int = 200_000,
        shard_seconds: float = 600.0,
        *,
        vocab_rows: int | None = None,
        rank: int = 0,
        made_with: Mapping[str, str] | None = None,
    ) -> None:
        """Open a folder, new or with shards of the same build.

        Args:
            folder: where the cache lies or will lie.
            fingerprint: what the soft labels depend on (assistant, adapter, template, ...), each with a hash.
            form: what is kept of each token.
            shard_tokens: a shard is committed when it has at least so many tokens.
            shard_seconds: or when its first response has waited so long: a slow model must not lose hours.
            vocab_rows: rows of the assistant's head that labels are taken from.
            rank: which process this is.
            made_with: what a student need not share but one build must not mix, such as the precision.

        Raises:
            InputError: the folder's shards were made by something else, or are damaged.
        """
        self.folder, self.rank, self.form = Path(folder), rank, form
        self.shard_tokens, self.shard_seconds = shard_tokens, shard_seconds
        self._format = ShardFormat(form, vocab_rows)
        self._settings = {
            "format": FORMAT,
            **form.settings(),
            "vocab_rows": vocab_rows,
            "fingerprint": dict(fingerprint),
            "made_with": dict(made_with or {}),
        }
        self._known: set[Key] = set()
        self._pending: list[_Pending] = []
        self._pending_tokens = 0
        self._since = time.monotonic()
        for name, index in self._committed():
            differing = differences(_flat(index["settings"]), _flat(self._settings))
            if differing:
                raise InputError(
                    f"{self.folder / name}.json: the cache was begun with other settings: {differing}; go on with "
                    "those, give another --stage, or begin anew with --fresh"
                )
            self._known.update(key for key, _ in spans_of(name, index["entries"]))

    def has(self, post_id: str, task: Task, response_ids: Sequence[int], prompt: str = "") -> bool:
        """Whether this response is in the cache already, committed or waiting for its shard."""
        return (post_id, task, response_digest(response_ids), prompt) in self._known

    def add(
        self,
        post_id: str,
        task: Task,
        response_ids: Sequence[int],
        view: CachedView,
        prompt: str = "",
        check: Check | None = None,
    ) -> None:
        """Take the view of one response; one that the cache has already is passed over.

        Args:
            post_id: the post.
            task: the task that the response answers.
            response_ids: its token ids, end of turn included.
            view: what the assistant thinks of each of them, in the same order, in the cache's form.
            prompt: the digest of what it answers, see `prompt_digest`.
            check: tokens on which the stored view is verified.

        Raises:
            InputError: the view does not fit the response or the cache, or holds NaN.
        """
        key = (post_id, task, response_digest(response_ids), prompt)
        if key in self._known:
            return
        view = view.to("cpu")
        try:
            self._check_fits(view, response_ids)
            parts = self._format.encode(view)
        except InputError as error:
            raise InputError(f"post {post_id!r}, task {task}: {error}") from error
        stored = self._format.decode(parts)
        errors = None
        if check is not None:
            positions = torch.tensor(check.positions)
            errors = measure(check.logits, view[positions], stored[positions], self.form)
        temperature = self.form.temperature
        kept, moved = kept_mass(view, temperature), moved_mass(view, stored, temperature)
        self._known.add(key)
        self._since = self._since if self._pending else time.monotonic()
        self._pending.append(_Pending(key, parts, len(view), torch.stack([kept, moved]).double().sum(dim=-1), errors))
        self._pending_tokens += len(view)
        waited = time.monotonic() - self._since
        if self._pending_tokens >= self.shard_tokens or waited >= self.shard_seconds:
            self.flush()

    def flush(self) -> None:
        """Commit the waiting responses as a shard; nothing happens when none waits.

        Raises:
            InputError: the verification shows a mistake, or the disk does not give back what was written.
        """
        if not self._pending:
            return
        name, waiting = self._next_name(), self._pending
        path = self.folder / f"{name}.safetensors"
        errors = [row for each in waiting if each.errors is not None for row in each.errors]
        sums = _by_name(SUMS, errors)
        if errors:
            refuse_bug(self.form, sums, len(errors), str(path))
        data = save({part: torch.cat([each.parts[part] for each in waiting]) for part in waiting[0].parts})
        entries = [self._entry(each) for each in waiting]
        index = {
            "settings": self._settings,
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "tokens": self._pending_tokens,
            "totals": _by_name(_TOTALS, [each.totals for each in waiting]),
            "checked": len(errors),
            "sums": sums,
            "entries": entries,
        }
        write_atomic(path, data)
        self._read_back(path, entries)
        write_atomic(path.with_suffix(".json"), json.dumps(index, separators=(",", ":")).encode())
        self._pending, self._pending_tokens = [], 0

    def close(self) -> None:
        """Commit what waits; on rank 0 also declare the cache complete, with the shards of all ranks.

        Raises:
            InputError: a shard is damaged, or the verification shows a mistake.
        """
        self.flush()
        if self.rank != 0:
            return
        shards, tokens, checked = [], 0, 0
        totals, sums = dict.fromkeys(_TOTALS, 0.0), dict.fromkeys(SUMS, 0.0)
        for name, index in self._committed():
            tokens, checked = tokens + index["tokens"], checked + index["checked"]
            totals = {key: value + index["totals"][key] for key, value in totals.items()}
            sums = {key: value + index["sums"][key] for key, value in sums.items()}
            shard = {field: index[field] for field in ("sha256", "bytes", "tokens")}
            index_hash = hashlib.sha256((self.folder / f"{name}.json").read_bytes()).hexdigest()
            shards.append({"name": name, **shard, "index_sha256": index_hash})
        if checked:
            refuse_bug(self.form, sums, checked, str(self.folder))
        manifest = {
            **self._settings,
            "tokens": tokens,
            **{key: value / max(tokens, 1) for key, value in totals.items()},
            "verification": summary(self.form, sums, checked),
            "shards": shards,
        }
        write_atomic(self.folder / MANIFEST, json.dumps(manifest, indent=1).encode())

    def _check_fits(self, view: CachedView, response_ids: Sequence[int]) -> None:
        """Refuse a view that is not of this response or not of this cache."""
        given = (view.kind, len(view), view.k if isinstance(view, TopK) else self.form.k, view.temperature)
        wanted = (self.form.kind, len(response_ids), self.form.k, self.form.temperature)
        if given != wanted:
            raise InputError(f"soft labels of (kind, tokens, k, T) = {given}, expected {wanted}")
        if not response_ids:
            raise InputError("the response has no token; it needs its end of turn")
        rows, largest = self._format.vocab_rows, int(view.ids.max())
        if rows is not None and largest >= rows:
            raise InputError(f"soft label for id {largest}, but the cache was opened for {rows} vocabulary rows")
        if any(bool(part.isnan().any()) for part in view.tensors().values()):
            raise InputError("the assistant's logits are not numbers (NaN)")

    def _entry(self, waiting: _Pending) -> list[Any]:
        """A response in the index: its key, its tokens, and how many ids it drew where that is not k a token."""
        drawn = [len(waiting.parts["ids"])] if self.form.kind == "sampled" else []
        return [*waiting.key, waiting.tokens, *drawn]

    def _read_back(self, path: Path, entries: Sequence[Sequence[Any]]) -> None:
        """Refuse a shard that does not give what was verified."""
        shard = Shard(path, self._format)
        for (_, span), waiting in zip(spans_of(path.stem, entries), self._pending, strict=True):
            found, given = shard.view(span), self._format.decode(waiting.parts)
            if any(not torch.equal(found.tensors()[part], value) for part, value in given.tensors().items()):
                raise InputError(f"{path}: the file does not hold what was written (post {waiting.key[0]!r}); {REPAIR}")

    def _next_name(self) -> str:
        """The first name of this rank that is not committed: a shard without an index is written over."""
        names = (f"shard-r{self.rank:03d}-{number:05d}" for number in count())
        return next(name for name in names if not (self.folder / f"{name}.json").exists())

    def _committed(self) -> list[tuple[str, dict[str, Any]]]:
        """Name and index of every committed shard of every rank, in a fixed order."""
        found = []
        for path in sorted(self.folder.glob("shard-r*.json")):
            index = read_json(path)
            check_size(path.with_suffix(".safetensors"), index["bytes"])
            found.append((path.stem, index))
        return found


def _by_name(names: Sequence[str], values: Sequence[Tensor]) -> dict[str, float]:
    """The sums of some tensors `[names]`."""
    total = torch.stack(list(values)).sum(dim=0) if values else torch.zeros(len(names))
    return dict(zip(names, total.tolist(), strict=True))


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the keys of nested ones beside the others."""
    nested = {key: value for key, value in settings.items() if isinstance(value, dict)}
    own = {key: value for key, value in settings.items() if key not in nested}
    return own | {f"{name}.{key}": value for name, values in nested.items() for key, value in values.items()}
