"""What a checkpoint file must be before torch looks into it: an archive that holds no more than it weighs.

`torch.load(weights_only=True)` runs no code. It does inflate what is compressed (1 MB becomes 1 GB), makes as many
zeros as a number in the file says, reads any old pickle, and takes a compressed storage as it lies when it is mapped.
"""

from __future__ import annotations

import os
import pickletools
import stat
import zipfile
from pathlib import Path
from typing import Final

MAX_PICKLE: Final = 16 << 20
"""Bytes of the archive's pickle. Weights lie beside it: 16 MiB name 50,000 tensors; empty lists take 70 times it."""
_MAKERS: Final = ("bytearray", "encode", "Tensor")
"""Ends of names that torch allows and that make memory out of a number; no checkpoint that is written here has any."""


def archive_problem(path: Path) -> str:
    """Why a file is no checkpoint to be read, in words that follow `PATH: `; empty when torch may read it.

    Args:
        path: The file; it is there.

    Raises:
        OSError: It cannot be read.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        return "refused, because it is no regular file"
    with path.open("rb") as file:
        start = file.read(200)
    if start.lstrip().startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not a checkpoint (`git lfs pull` fetches it)"
    if start.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        return "an HTML page, not a checkpoint (a download that went wrong)"
    if start[:1] == b"\x80":
        return "refused, because loading it would run code that it could name: it is a bare pickle, not an archive"
    try:
        with zipfile.ZipFile(path) as archive:
            return _members_problem(archive, path.stat().st_size) or _pickle_problem(archive)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, IndexError, UnicodeDecodeError):
        return "the checkpoint is damaged or is none"


def _members_problem(archive: zipfile.ZipFile, size: int) -> str:
    """What is wrong with an archive's list of members; nothing of them is read."""
    names = set()
    for member in archive.infolist():
        parts = member.orig_filename.replace("\\", "/").split("/")
        if "\0" in member.orig_filename or ".." in parts or parts[0] in ("", "~") or ":" in parts[0]:
            return f"refused, because its member {member.orig_filename[:80]!r} has a path that leads out of it"
        if stat.S_ISLNK(member.external_attr >> 16):
            return f"refused, because its member {member.filename[:80]!r} is a link"
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            return f"refused, because its member {member.filename[:80]!r} is compressed, which torch.save never does"
        if member.filename in names:
            return f"refused, because its member {member.filename[:80]!r} stands twice"
        names.add(member.filename)
    if sum(member.file_size for member in archive.infolist()) > size:
        return "refused, because its members together are larger than the file"
    return ""


def _pickle_problem(archive: zipfile.ZipFile) -> str:
    """What is wrong with the pickle that names the tensors."""
    pickles = [member for member in archive.infolist() if member.filename.endswith("/data.pkl")]
    if len(pickles) != 1:
        return "the checkpoint is damaged or is none"
    if pickles[0].file_size > MAX_PICKLE:
        return f"refused, because its pickle has {pickles[0].file_size} bytes, more than {MAX_PICKLE}"
    for opcode, argument, _ in pickletools.genops(archive.read(pickles[0])):
        if opcode.name == "GLOBAL" and str(argument).endswith(_MAKERS):
            name = str(argument).replace(" ", ".")
            return f"refused, because it names {name}, which no checkpoint of mulcot needs"
    return ""
