"""The pictures of a data set, each looked at once, several at a time."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from data_modules.readers.base import Entries, add_broken
from data_modules.readers.row_log import Row, RowLog
from mulcot.images import load_image, upright_size
from mulcot.types import InputError, Post, StoredPicture

_THREADS: Final = min(8, os.cpu_count() or 1)
_SIGNATURES: Final = {b"\xff\xd8": "JPEG", b"\x89PNG": "PNG", b"RIFF": "WEBP", b"GIF8": "GIF"}
"""How a picture of each of the formats begins; asked only after it was opened as one of them."""


@dataclass(frozen=True, slots=True, eq=False)
class SeenPicture:
    """A picture that can be read. Two of them are the same when they are one object."""

    name: str
    """The path, or where it was first met in a table."""
    digest: bytes
    """16 bytes that stand for its content, or for its name where only the header was read."""
    hashed: bool
    """Whether `digest` stands for the content."""
    format: str
    width: int
    """Pixels, upright."""
    height: int
    bytes: int


@dataclass(frozen=True, slots=True)
class _Content:
    """The bytes of a file, so that it is read from disk once."""

    picture: Path | StoredPicture
    content: bytes

    def read_bytes(self) -> bytes:
        return self.content

    def __str__(self) -> str:
        return str(self.picture)


_Known = SeenPicture | str | Future["SeenPicture | str"]
"""A picture, what is wrong with it, or the thread that finds out."""


class PictureInspector:
    """Looks at the pictures of posts; use it as a context manager around the readings of all splits.

    Args:
        decode: Whether pictures are decoded and compared by content; else only their headers are read.
    """

    def __init__(self, decode: bool) -> None:
        """No picture was seen yet."""
        self._decode = decode
        self._threads = ThreadPoolExecutor(_THREADS)
        self._files: dict[str, _Known] = {}
        self._stored: dict[bytes, SeenPicture] = {}

    def __enter__(self) -> PictureInspector:
        """Ready."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the threads; after an error, looks that were not begun are not taken."""
        self._threads.shutdown(cancel_futures=True)

    def seen(self, entries: Entries, log: RowLog, field: str = "image") -> Iterator[tuple[Post, SeenPicture]]:
        """The posts whose pictures can be read, in their order; every post with another one is a wrong row.

        Args:
            entries: The posts.
            log: Where wrong rows go.
            field: What the source calls the field of the picture.
        """
        for row, post, known in self._ahead(entries, log):
            picture = self._settled(post.image, known)
            if isinstance(picture, SeenPicture):
                yield post, picture
            else:
                add_broken(log, row, field, post.image, picture)

    def _ahead(self, entries: Entries, log: RowLog) -> Iterator[tuple[Row, Post, _Known]]:
        """The entries, while the pictures of some of the following ones are looked at."""
        window: deque[tuple[Row, Post, _Known]] = deque()
        log.settle = lambda: [row for row, _, known in window if not isinstance(_found(known), SeenPicture)]
        try:
            for row, post in entries:
                window.append((row, post, self._begun(post.image)))
                if len(window) > 8 * _THREADS:
                    yield window.popleft()
        except InputError:
            # The file ends in an error; the posts before it are good all the same.
            yield from window
            raise
        yield from window

    def _begun(self, picture: Path | StoredPicture) -> _Known:
        """What is known of a picture: at the first time that a thread is about to look at it."""
        if not isinstance(picture, Path):
            return self._threads.submit(_look, picture, self._decode)
        name = str(picture)
        if name not in self._files:
            self._files[name] = self._threads.submit(_look, picture, self._decode)
        return self._files[name]

    def _settled(self, picture: Path | StoredPicture, known: _Known) -> SeenPicture | str:
        """The picture, as the same object for all posts that have it, or what is wrong with it."""
        found = _found(known)
        if isinstance(picture, Path):
            self._files[str(picture)] = found
        elif isinstance(found, SeenPicture):
            return self._stored.setdefault(found.digest, found)
        return found


def _found(known: _Known) -> SeenPicture | str:
    return known.result() if isinstance(known, Future) else known


def _look(picture: Path | StoredPicture, decode: bool) -> SeenPicture | str:
    """What a picture is like, or in words what is wrong with it (an error would hold on to the picture's bytes)."""
    content = _content(picture, decode)
    try:
        source = picture if content is None else _Content(picture, content)
        width, height = load_image(source).size if decode else upright_size(source)
    except InputError as error:
        return str(error)
    if content is not None:
        size, beginning, digest = len(content), content[:8], hashlib.sha256(content).digest()
    else:
        path = Path(str(picture))
        size, digest = os.path.getsize(path), hashlib.sha256(os.fsencode(path)).digest()
        with path.open("rb") as file:
            beginning = file.read(8)
    return SeenPicture(str(picture), digest[:16], content is not None, _format(beginning), width, height, size)


def _content(picture: Path | StoredPicture, decode: bool) -> bytes | None:
    """A picture's bytes; None where only the header is wanted, or where `load_image` will say why there are none."""
    if not isinstance(picture, Path):
        return picture.read_bytes()
    with contextlib.suppress(OSError):
        # Not every path is a file that ends.
        if decode and os.path.isfile(picture):
            return picture.read_bytes()
    return None


def _format(beginning: bytes) -> str:
    return next((name for signature, name in _SIGNATURES.items() if beginning.startswith(signature)), "other")
