"""Locks on folders, so that two processes do not work in one; they end with the process that holds them."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mulcot.files import refuse_link
from mulcot.types import InputError

_WITHOUT: Final = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
"""What a network folder without locks answers."""


class InUseError(InputError):
    """Another process works here; trying again later may do."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[int]:
    """Holds a lock while something is done; see `take_lock`."""
    handle = take_lock(path, refusal, is_needed=False)
    try:
        yield handle
    finally:
        os.close(handle)


def take_lock(path: Path, refusal: str, *, is_needed: bool) -> int:
    """Takes a lock, by a file that is made where it is not there.

    Args:
        path: The lock's file, which stays; it names the process that held it last.
        refusal: What to say where another process holds it.
        is_needed: Whether a folder without locks, such as some network folders, is an error.

    Returns:
        Its descriptor: a process that inherits it holds the lock too.

    Raises:
        InUseError: Another process holds it.
        InputError: Something else has its name.
        OSError: The file cannot be made or locked.
    """
    handle = os.open(refuse_link(path), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        if os.fstat(handle).st_nlink > 1:
            raise InputError(f"{path}: is a second name of another file, which the lock would overwrite: remove it")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
            raise InUseError(refusal + (f" ({holder})" if holder else "")) from error
        except OSError as error:
            if is_needed or error.errno not in _WITHOUT:
                raise
        os.truncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
    except BaseException:
        os.close(handle)
        raise
    return handle


def give_lock_back(handle: int) -> None:
    """Unlocks by name, not only by closing: a forked loader process shares the open file and would keep the lock."""
    fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)
