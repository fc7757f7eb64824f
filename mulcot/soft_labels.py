"""The soft-label cache: the assistant's view of every response token, written once, read by every epoch.

A finished cache is a folder:

    soft_labels.json               k, temperature, fingerprint, shards with their hashes; written last
    shard-r000-00000.safetensors   ids, log_probs, log_tail, log_z of about `shard_tokens` tokens
    shard-r000-00000.json          whose tokens they are, in order; written after the shard, so its presence commits it

A response is found by post, task and a digest of its token ids, since a post may have several rationales.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mulcot.files import write_atomic
from mulcot.losses import TopK
from mulcot.types import InputError, MissingInputError, Task

MANIFEST: Final = "soft_labels.json"
FORMAT: Final = 1
_HALF_MIN: Final = torch.finfo(torch.float16).min
_SHARD_NAME: Final = re.compile(r"shard-r\d{3,}-\d{5,}")

Key = tuple[str, str, str]
"""Post id, task, digest of the response's token ids."""


def response_digest(response_ids: Sequence[int]) -> str:
    """A short digest of a response's token ids; it only tells apart the responses of one post and task."""
    return hashlib.sha256(struct.pack(f"<{len(response_ids)}q", *response_ids)).hexdigest()[:16]


class SoftLabelWriter:
    """Writes a cache shard by shard, and goes on where an earlier, unfinished build stopped.

    With several ranks each has a writer of its own on the same folder; rank 0 closes after the others have.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: Mapping[str, str],
        k: int,
        temperature: float,
        shard_tokens: int = 200_000,
        *,
        vocab_rows: int | None = None,
        rank: int = 0,
    ) -> None:
        """Open a folder, new or with shards of the same build.

        Args:
            folder: where the cache lies or will lie.
            fingerprint: what the soft labels depend on (assistant, adapter, template, ...), each with a hash.
            k: ids a token.
            temperature: the T that the cache serves.
            shard_tokens: a shard is committed when it has at least so many tokens.
            vocab_rows: rows of the assistant's head; below 32,769 ids take two bytes instead of four.
            rank: which process this is.

        Raises:
            InputError: the folder's shards were made by something else, or are damaged.
        """
        self.folder, self.rank, self.shard_tokens = Path(folder), rank, shard_tokens
        self._settings = _settings(fingerprint, k, temperature, vocab_rows)
        self._vocab_rows = vocab_rows
        self._small_ids = vocab_rows is not None and vocab_rows <= torch.iinfo(torch.int16).max + 1
        self._known: set[Key] = set()
        self._pending: list[tuple[Key, TopK]] = []
        self._pending_tokens = 0
        for name, index in self._committed():
            differing = _differences(_flat(index["settings"]), _flat(self._settings))
            if differing:
                raise InputError(f"{self.folder / name}.json: the cache was begun with other settings: {differing}")
            self._known.update((post_id, task, digest) for post_id, task, digest, _ in index["entries"])

    def has(self, post_id: str, task: Task, response_ids: Sequence[int]) -> bool:
        """Whether this response is in the cache already, committed or waiting for its shard."""
        return (post_id, task, response_digest(response_ids)) in self._known

    def add(self, post_id: str, task: Task, response_ids: Sequence[int], view: TopK) -> None:
        """Take the view of one response; one that the cache has already is passed over.

        Args:
            post_id: the post.
            task: the task that the response answers.
            response_ids: its token ids, end of turn included.
            view: what the assistant thinks of each of them, in the same order, at the cache's k and temperature.

        Raises:
            InputError: the view does not fit the response or the cache, or holds NaN.
        """
        key = (post_id, task, response_digest(response_ids))
        if key in self._known:
            return
        given = (len(view), view.k, view.temperature)
        wanted = (len(response_ids), self._settings["k"], self._settings["temperature"])
        if given != wanted:
            raise InputError(
                f"post {post_id!r}, task {task}: soft labels of (tokens, k, T) = {given}, expected {wanted}"
            )
        if not response_ids:
            raise InputError(f"post {post_id!r}, task {task}: the response has no token; it needs its end of turn")
        if self._vocab_rows is not None and int(view.ids.max()) >= self._vocab_rows:
            raise InputError(
                f"post {post_id!r}, task {task}: soft label for id {int(view.ids.max())}, but the cache was opened "
                f"for {self._vocab_rows} vocabulary rows"
            )
        if any(bool(part.isnan().any()) for part in (view.log_probs, view.log_tail, view.log_z)):
            raise InputError(f"post {post_id!r}, task {task}: the assistant's logits are not numbers (NaN)")
        self._known.add(key)
        self._pending.append((key, view.to("cpu")))
        self._pending_tokens += len(view)
        if self._pending_tokens >= self.shard_tokens:
            self.flush()

    def flush(self) -> None:
        """Commit the waiting responses as a shard; nothing happens when none waits."""
        if not self._pending:
            return
        exact = TopK.cat([view for _, view in self._pending])
        stored = _round(exact)
        tensors = {
            "ids": stored.ids.to(torch.int16 if self._small_ids else torch.int32),
            "log_probs": stored.log_probs,
            "log_tail": stored.log_tail,
            "log_z": stored.log_z,
        }
        data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        name = self._next_name()
        index = {
            "settings": self._settings,
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "tokens": len(exact),
            "rounding_error": _rounding_error(exact, stored),
            "entries": [[*key, len(view)] for key, view in self._pending],
        }
        write_atomic(self.folder / f"{name}.safetensors", data)
        write_atomic(self.folder / f"{name}.json", json.dumps(index, separators=(",", ":")).encode())
        self._pending, self._pending_tokens = [], 0

    def close(self) -> None:
        """Commit what waits; on rank 0 also declare the cache complete, with the shards of all ranks.

        Raises:
            InputError: a shard is damaged.
        """
        self.flush()
        if self.rank != 0:
            return
        shards, tokens, error = [], 0, 0.0
        for name, index in self._committed():
            tokens += index["tokens"]
            error += index["tokens"] * index["rounding_error"]
            shard = {field: index[field] for field in ("sha256", "bytes", "tokens")}
            index_hash = hashlib.sha256((self.folder / f"{name}.json").read_bytes()).hexdigest()
            shards.append({"name": name, **shard, "index_sha256": index_hash})
        totals = {"tokens": tokens, "rounding_error": error / max(tokens, 1)}
        manifest = {"format": FORMAT, **self._settings, **totals, "shards": shards}
        write_atomic(self.folder / MANIFEST, json.dumps(manifest, indent=1).encode())

    def _next_name(self) -> str:
        """The first name of this rank that is not committed: a shard without an index is written over."""
        names = (f"shard-r{self.rank:03d}-{number:05d}" for number in count())
        return next(name for name in names if not (self.folder / f"{name}.json").exists())

    def _committed(self) -> list[tuple[str, dict[str, Any]]]:
        """Name and index of every committed shard of every rank, in a fixed order."""
        found = []
        for path in sorted(self.folder.glob("shard-r*.json")):
            index = _read_json(path)
            _check_size(path.with_suffix(".safetensors"), index["bytes"])
            found.append((path.stem, index))
        return found


class SoftLabelCache:
    """Reads a finished cache. Shards are memory-mapped when they are first needed, in whichever process needs them.

    A pickled cache carries no open file, so workers of a DataLoader may have it.
    """

    def __init__(self, folder: Path, expected: Mapping[str, str] | None = None) -> None:
        """Open a cache and check that it is whole and, unless `expected` is None, that it was made by `expected`.

        Args:
            folder: what a `SoftLabelWriter` closed.
            expected: the fingerprint that this run would write.

        Raises:
            MissingInputError: there is no finished cache.
            InputError: the fingerprint differs, or a file is damaged.
        """
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        if not path.is_file():
            raise MissingInputError(
                f"{path}: there is no finished soft-label cache; make it with "
                "`mulcot predict --config soft_labels.yaml`"
            )
        manifest = _read_json(path)
        if manifest.get("format") != FORMAT:
            raise InputError(f"{path}: format {manifest.get('format')!r} is not known; this version reads {FORMAT}")
        self.fingerprint: dict[str, str] = manifest["fingerprint"]
        differing = "" if expected is None else _differences(self.fingerprint, expected)
        if differing:
            raise InputError(f"{path}: the cache is stale: {differing}; make it anew in another folder")
        self.k: int = manifest["k"]
        self.temperature: float = manifest["temperature"]
        self.vocab_rows: int | None = manifest["vocab_rows"]
        self.tokens: int = manifest["tokens"]
        self.rounding_error: float = manifest["rounding_error"]
        self._bytes = path.stat().st_size
        self._hashes: dict[str, str] = {}
        self._spans: dict[Key, tuple[str, int, int]] = {}
        self._open: dict[str, Any] = {}
        for shard in manifest["shards"]:
            self._read_index(shard)

    @property
    def bytes_per_token(self) -> float:
        """Bytes on disk, index and manifest included, by response tokens; 0 for an empty cache."""
        return self._bytes / self.tokens if self.tokens else 0.0

    def __len__(self) -> int:
        """How many responses there are."""
        return len(self._spans)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the open files."""
        return {**self.__dict__, "_open": {}}

    def get(self, post_id: str, task: Task, response_ids: Sequence[int]) -> TopK:
        """The view of one response: `[tokens, k]` int64 ids and fp32 log-probabilities, on the CPU.

        Raises:
            InputError: the cache has no such response, or its shard is damaged.
        """
        span = self._spans.get((post_id, task, response_digest(response_ids)))
        if span is None:
            raise InputError(
                f"{self.folder}: no soft labels for post {post_id!r}, task {task}, and this response of "
                f"{len(response_ids)} tokens; add them with `mulcot predict --config soft_labels.yaml`"
            )
        name, start, stop = span
        shard = self._shard(name)

        def part(field: str, dtype: torch.dtype) -> Tensor:
            values: Tensor = shard.get_slice(field)[start:stop]
            return values.to(dtype)

        return TopK(
            ids=part("ids", torch.int64),
            log_probs=part("log_probs", torch.float32),
            log_tail=part("log_tail", torch.float32),
            log_z=part("log_z", torch.float32),
            temperature=self.temperature,
            rows=self.vocab_rows,
        )

    def _read_index(self, shard: Mapping[str, Any]) -> None:
        """Learn whose tokens a shard holds."""
        name = shard["name"]
        if not _SHARD_NAME.fullmatch(name):
            raise InputError(f"{self.folder / MANIFEST}: {name!r} is not the name of a shard; make the cache anew")
        path = self.folder / f"{name}.json"
        _check_hash(path, shard["index_sha256"])
        _check_size(path.with_suffix(".safetensors"), shard["bytes"])
        self._hashes[name] = shard["sha256"]
        self._bytes += path.stat().st_size + shard["bytes"]
        start = 0
        for post_id, task, digest, tokens in _read_json(path)["entries"]:
            self._spans[post_id, task, digest] = (name, start, start + tokens)
            start += tokens

    def _shard(self, name: str) -> Any:
        """The open shard, checked against its hash when this process opens it."""
        if name not in self._open:
            path = self.folder / f"{name}.safetensors"
            _check_hash(path, self._hashes[name])
            try:
                self._open[name] = safe_open(path, framework="pt")
            except SafetensorError as error:
                raise InputError(f"{path}: the shard is damaged ({error}); {_REPAIR}") from error
        return self._open[name]


_REPAIR: Final = "delete it with its .json file and run `mulcot predict --config soft_labels.yaml` again"


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


def _rounding_error(exact: TopK, stored: TopK) -> float:
    """Mean over tokens of the probability, at T, that rounding moves from some ids to others (total variation)."""
    before = exact.log_probs.float() / exact.temperature - exact.log_z.float().unsqueeze(-1)
    after = stored.log_probs.float() / exact.temperature - stored.log_z.unsqueeze(-1)
    return float((before.exp() - after.exp()).abs().sum(dim=-1).mean() / 2)


def _settings(fingerprint: Mapping[str, str], k: int, temperature: float, vocab_rows: int | None) -> dict[str, Any]:
    """What every shard of one cache has in common."""
    return {
        "k": k,
        "temperature": float(temperature),
        "vocab_rows": vocab_rows,
        "fingerprint": dict(fingerprint),
    }


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the fingerprint's keys beside the others."""
    own = {key: value for key, value in settings.items() if key != "fingerprint"}
    return own | {f"fingerprint.{key}": value for key, value in settings["fingerprint"].items()}


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Each key whose value differs, with both values; empty when none does."""
    return ", ".join(
        f"{key} is {old.get(key)!r} in the cache and {new.get(key)!r} here"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    )


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object of the cache."""
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: the file is damaged ({error}); {_REPAIR}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: the file is damaged (no JSON object); {_REPAIR}")
    return values


def _check_size(path: Path, expected: int) -> None:
    """Refuse a file that is missing or cut short."""
    size = path.stat().st_size if path.is_file() else 0
    if size != expected:
        raise InputError(f"{path}: the shard is damaged: it has {size} bytes and should have {expected}; {_REPAIR}")


def _check_hash(path: Path, expected: str) -> None:
    """Refuse a file that is missing or holds anything else than what was written."""
    if not path.is_file():
        raise InputError(f"{path}: the file is missing; {_REPAIR}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise InputError(
            f"{path}: the file is damaged: its sha256 is {found[:12]}… and not {expected[:12]}…; {_REPAIR}"
        )
