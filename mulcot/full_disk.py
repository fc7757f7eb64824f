"""A disk that is full: told of with the folder and what is free there, whichever thread meets it."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mulcot.checkpoints import NO_ROOM
from mulcot.types import InputError

_LOG = logging.getLogger(__name__)


@contextmanager
def told_of(folder: Path, again: str) -> Iterator[None]:
    """Turns an error of the system for want of room into one line.

    Args:
        folder: where files are written, for an error that names none.
        again: what goes on there, for the user.

    Raises:
        InputError: there was no room; it says where, and how many bytes are free there.
    """
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if isinstance(args.exc_value, OSError) and args.exc_value.errno in NO_ROOM:
            # TensorBoard's thread, whose error the main thread meets with the next value, and ends by it.
            _LOG.warning("a logger's file: no room (%s)", args.exc_value.strerror)
        else:
            before(args)

    threading.excepthook = hook
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise InputError(_no_room(folder, error, again)) from error
    finally:
        threading.excepthook = before


def _no_room(folder: Path, error: OSError, again: str) -> str:
    named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
    place = folder if named is None else named.parent
    place = next(each for each in (place, *place.absolute().parents) if each.is_dir())
    return (
        f"{named or f'a file of the stage {folder}'}: no room ({error.strerror}), {shutil.disk_usage(place).free:,} "
        f"bytes are free in {place}; what was finished is kept: make room; {again} goes on"
    )
