"""Reading a finished cache."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from mulcot.soft_labels.forms import (
    CachedView,
    Key,
    SoftLabelDescription,
    SoftLabelForm,
    SoftLabelKind,
    response_digest,
)
from mulcot.soft_labels.shards import (
    FORMAT,
    MANIFEST,
    REPAIR,
    SHARD_NAME,
    Shard,
    ShardFormat,
    Span,
    check_hash,
    check_size,
    differences,
    read_json,
    spans_of,
)
from mulcot.types import InputError, MissingInputError, Task


class _Shard(TypedDict):
    """What a manifest says of a shard."""

    name: str
    bytes: int
    sha256: str
    index_sha256: str


_SHARDS: Final = TypeAdapter(list[_Shard])
_HASHING_THREADS = min(8, os.cpu_count() or 1)


class SoftLabelCache:
    """Reads a finished cache. Shards are memory-mapped when they are first needed, in whichever process needs them.

    Every shard is hashed when the cache is opened and never again, so that no step waits for it: 1.6 GB a second and
    core, a second for 4 million tokens of 64 ids. A pickled cache carries no open file, so workers of a DataLoader may
    have it; they do not hash again.
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
        manifest = _read_manifest(self.folder)
        path = self.folder / MANIFEST
        self.fingerprint: dict[str, str] = manifest["fingerprint"]
        differing = "" if expected is None else differences(self.fingerprint, expected)
        if differing:
            raise InputError(f"{path}: the cache is stale: {differing}; make it anew in another folder")
        self.form = SoftLabelForm.of(manifest)
        self.vocab_rows: int | None = manifest["vocab_rows"]
        self.tokens: int = manifest["tokens"]
        self.kept_mass: float = manifest["kept_mass"]
        self.rounding_error: float = manifest["rounding_error"]
        self.verification: dict[str, Any] = manifest["verification"]
        self._format = ShardFormat(self.form, self.vocab_rows)
        self._bytes = path.stat().st_size
        self._spans: dict[Key, Span] = {}
        self._open: dict[str, Shard] = {}
        for shard in manifest["shards"]:
            self._read_index(shard)
        files = [self.folder / f"{shard['name']}.safetensors" for shard in manifest["shards"]]
        with ThreadPoolExecutor(_HASHING_THREADS) as pool:
            list(pool.map(check_hash, files, [shard["sha256"] for shard in manifest["shards"]]))

    @staticmethod
    def describe(folder: Path) -> SoftLabelDescription:
        """What a finished cache says of itself; only its manifest is read.

        Raises:
            MissingInputError: there is no finished cache.
            InputError: the manifest is damaged or of another format.
        """
        manifest = _read_manifest(Path(folder))
        return SoftLabelDescription(
            Path(folder),
            SoftLabelForm.of(manifest),
            manifest["vocab_rows"],
            manifest["fingerprint"],
            manifest["tokens"],
        )

    @property
    def kind(self) -> SoftLabelKind:
        """The view that it gives."""
        return self.form.kind

    @property
    def temperature(self) -> float:
        """The T that it serves."""
        return self.form.temperature

    @property
    def k(self) -> int | None:
        """Ids a token; None when they were drawn."""
        return self.form.k

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

    def get(self, post_id: str, task: Task, response_ids: Sequence[int], prompt: str = "") -> CachedView:
        """The view of one response, on the CPU: `TopK` `[tokens, k]` or `Sampled`, with int64 ids and fp32 values.

        Args:
            post_id: the post.
            task: the task that the response answers.
            response_ids: its token ids, end of turn included.
            prompt: the digest of what it answers, see `prompt_digest`.

        Raises:
            InputError: the cache has no such response, or has it as the answer to another prompt.
        """
        key = (post_id, task, response_digest(response_ids), prompt)
        span = self._spans.get(key)
        if span is None:
            what = f"{self.folder}: no soft labels for post {post_id!r}, task {task}, and this response of "
            what += f"{len(response_ids)} tokens"
            if any(known[:3] == key[:3] for known in self._spans):
                what += ": the cache has them for another text, aspect or picture of this post, so it is stale"
            raise InputError(f"{what}; make them with `mulcot predict --config soft_labels.yaml --fresh`")
        return self._shard(span[0]).view(span)

    def items(self) -> Iterator[tuple[Key, CachedView]]:
        """Every response and its view, in the order in which they lie on the disk."""
        for key, span in self._spans.items():
            yield key, self._shard(span[0]).view(span)

    def _read_index(self, shard: Mapping[str, Any]) -> None:
        """Learn whose tokens a shard holds."""
        name = shard["name"]
        if not SHARD_NAME.fullmatch(name):
            raise InputError(f"{self.folder / MANIFEST}: {name!r} is not the name of a shard; make the cache anew")
        path = self.folder / f"{name}.json"
        check_hash(path, shard["index_sha256"])
        check_size(path.with_suffix(".safetensors"), shard["bytes"])
        self._bytes += path.stat().st_size + shard["bytes"]
        self._spans.update(spans_of(name, read_json(path)["entries"]))

    def _shard(self, name: str) -> Shard:
        """The open shard."""
        if name not in self._open:
            self._open[name] = Shard(self.folder / f"{name}.safetensors", self._format)
        return self._open[name]


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished cache of this format."""
    path = folder / MANIFEST
    if not path.is_file():
        raise MissingInputError(
            f"{path}: there is no finished soft-label cache; make it with `mulcot predict --config soft_labels.yaml`"
        )
    manifest = read_json(path)
    found = manifest.get("format")
    if found != FORMAT:
        made = "an earlier" if isinstance(found, int) and found < FORMAT else "another"
        raise InputError(
            f"{path}: format {found!r} is not known, this version reads {FORMAT}: {made} version of mulcot wrote the "
            "cache; make it anew with `mulcot predict --config soft_labels.yaml --fresh`"
        )
    missing = {"fingerprint", "kind", "temperature", "tokens", "vocab_rows", "verification", "shards"} - manifest.keys()
    if missing:
        raise InputError(f"{path}: the file is damaged (no {', '.join(sorted(missing))}); {REPAIR}")
    try:
        _SHARDS.validate_python(manifest["shards"])
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in ("shards", *first["loc"]))
        raise InputError(f"{path}: the file is damaged ({place}: {first['msg']}); {REPAIR}") from error
    return manifest
