"""The SHA-256 of every checkpoint of a folder, in a small file beside them: what tells a flipped bit in a weight."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from mulcot.files import write_atomic

DIGESTS: Final = "sha256.json"
Identity = tuple[int, int, int, int]
"""Of a file's content, as long as nothing damages the disk: device, inode, size and time of change."""
_verified: set[Identity] = set()
"""Files whose content was compared in this process."""


class HashedFile:
    """A file that is written from its start to its end, with the SHA-256 of what went into it.

    Args:
        file: open for writing.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.bytes = 0
        """What was handed over so far, whether it could be written or not."""
        self.error: OSError | None = None
        """What the disk answered; torch hides it behind an error of its own."""

    def write(self, data: Any) -> int:
        """Writes some bytes."""
        self.bytes += memoryview(data).nbytes
        try:
            written = self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self._hash.update(data)
        return written

    def flush(self) -> None:
        """Hands everything to the system."""
        try:
            self._file.flush()
        except OSError as error:
            self.error = error
            raise

    @property
    def digest(self) -> str:
        """The SHA-256 so far, as hexadecimal digits."""
        return self._hash.hexdigest()


def identity(path: Path) -> Identity:
    """By what a file is known again.

    Raises:
        OSError: there is none.
    """
    state = os.stat(path)
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def read_digests(folder: Path) -> dict[str, list[str]]:
    """The digests that each checkpoint of a folder may have, by name.

    A list that is missing or damaged is an empty one: the checkpoints beside it may be good all the same.
    """
    try:
        found = json.loads((folder / DIGESTS).read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: digests for name, digests in found.items() if isinstance(name, str) and _are_digests(digests)}


def note_digests(folder: Path, added: Mapping[str, Sequence[str]], present: Mapping[str, str]) -> None:
    """Adds digests, to be called before a file gets its name: a crash in between leaves both files known.

    Args:
        folder: of the checkpoints.
        added: the digests that will be right too, by name.
        present: the digests of files whose present content is known for sure, by name: no other one can be theirs.
    """
    known = read_digests(folder)
    for name, digests in added.items():
        may_be = [present[name]] if name in present else known.get(name, [])
        known[name] = list(dict.fromkeys([*may_be, *digests]))
    known = {name: digests for name, digests in known.items() if digests}
    write_atomic(folder / DIGESTS, json.dumps(known, indent=1) + "\n")


def forget_digests(folder: Path, name: str) -> None:
    """Removes the digests of a checkpoint that is gone, and the list with the last of them."""
    known = read_digests(folder)
    if known.pop(name, None) is None:
        return
    if known:
        write_atomic(folder / DIGESTS, json.dumps(known, indent=1) + "\n")
    else:
        (folder / DIGESTS).unlink(missing_ok=True)


def is_as_written(path: Path) -> bool:
    """Whether a checkpoint holds what was written; one that the list does not know cannot be told to be otherwise.

    Args:
        path: the checkpoint.

    Raises:
        OSError: it cannot be read.
    """
    expected = read_digests(path.parent).get(path.name)
    if not expected:
        return True
    compared = identity(path)
    if compared in _verified:
        return True
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found in expected:
        _verified.add(compared)
    return found in expected


def _are_digests(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) and len(each) == 64 for each in value)
