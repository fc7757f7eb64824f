"""Files that somebody else may have made, opened so that neither a pipe blocks nor a device has no end."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

MAX_JSON: Final = 64 << 20
"""Bytes of a JSON file that a stage leaves: metrics, a manifest; they have thousands."""


def open_regular(path: Path) -> BinaryIO:
    """A regular file, links followed, to be read.

    Args:
        path: The file.

    Raises:
        OSError: There is none, it cannot be opened, or it is a pipe, a device or a folder; `strerror` says so.
    """
    # Without O_NONBLOCK a pipe is waited for; what is asked afterwards is of the very file that was opened.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return os.fdopen(handle, "rb")


def read_regular(path: Path, most: int) -> bytes:
    """What a regular file holds.

    Args:
        path: The file.
        most: Bytes that such a file has at most.

    Raises:
        OSError: As `open_regular`, or it is larger.
    """
    with open_regular(path) as file:
        # Asked first: a file with a hole of a terabyte takes no room on the disk.
        if os.fstat(file.fileno()).st_size <= most:
            content = file.read(most + 1)
            if len(content) <= most:
                return content
    raise OSError(errno.EFBIG, f"it has more than {most} bytes", str(path))
