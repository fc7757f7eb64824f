"""The folder that pictures must lie in, and why a name does not."""

import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Final

_SUSPECT: Final = re.compile(r"[:\\]|^/|\.\.")
"""Without one of these a name is no URL, begins at no root or drive, and does not go up; most names have none."""


class ImageRoot:
    """The folder of a data set's pictures; no path in the data may lead out of it.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is looked at yet."""
        self.folder = Path(folder)
        self._written = str(self.folder)
        self._real = Path(os.path.realpath(folder))

    def problem(self, name: str) -> str:
        """Why a name leads out of the folder, after every symbolic link is followed; empty when it does not."""
        return why_outside(name) or (
            "is a symbolic link that leads out of the image root" if self._leads_out(name) else ""
        )

    def _leads_out(self, name: str) -> bool:
        """Whether a symbolic link takes a name without `..` out of the root; only a link can."""
        path = self._written
        for part in name.split("/"):
            path = os.path.join(path, part)
            if os.path.islink(path):
                return not Path(os.path.realpath(self.folder / name)).is_relative_to(self._real)
        return False


def why_outside(name: str) -> str:
    """Why a name cannot lie in an image root, whatever the disk holds; empty when it can."""
    if not _SUSPECT.search(name):
        return ""
    if "://" in name or name.lower().startswith("data:"):
        return "is a URL"
    windows = PureWindowsPath(name)
    if PurePosixPath(name).is_absolute() or windows.drive or windows.root:
        return "is an absolute path"
    if ".." in windows.parts:
        return "goes up with '..'"
    return ""
