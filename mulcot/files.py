"""Files that are whole or absent: a reader never meets one that was only half written."""

import contextlib
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from mulcot.types import InputError

_TEMPORARY: Final = re.compile(r"\.(.+\.)?([0-9a-f]{8}|[0-9a-f]{12}|[0-9a-f]{16})\.tmp")
"""The names of files that are being written."""


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write ``data`` to ``path`` so that a crash leaves the old file or the new one, nothing in between.

    The bytes go to a temporary file in the same folder, are forced to disk and then renamed over ``path``.
    A missing folder is created. An existing file keeps its permissions; a new one gets the usual ones.

    Args:
        path: The file to make or replace.
        data: Text, written as UTF-8 with its line ends as they are, or bytes.

    Raises:
        InputError: It is a symbolic link: a run folder that somebody else made must not name what is written.
        OSError: The folder cannot be written to, or the disk is full; the temporary file is gone then.
    """
    content = data.encode("utf-8") if isinstance(data, str) else data
    target = refuse_link(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    # O_EXCL with 0o666 lets the system apply the umask; asking for the umask would mean setting it for all threads.
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            if target.exists():
                os.fchmod(file.fileno(), target.stat().st_mode & 0o777)
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    _sync_folder(target.parent)


def refuse_link(path: Path) -> Path:
    """The path, unless nothing may be written there.

    Raises:
        InputError: It is a symbolic link.
    """
    if path.is_symlink():
        raise InputError(f"{path}: is a symbolic link, through which nothing is written: remove it, or name the file")
    return path


def sweep(paths: Iterable[Path]) -> None:
    """Removes temporary files of ours, which a killed process left; to be called where no other process works.

    Args:
        paths: Files and folders, of which those with other names stay.
    """
    for path in list(paths):
        if _TEMPORARY.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Force the rename itself to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
