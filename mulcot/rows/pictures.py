"""Pictures as the model takes them, each opened once as long as there is room for it."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from mulcot.rows.encoder import EncodedHead, RowEncoder, TextRow
from mulcot.types import InputError, Post, StoredPicture

PlaceOf = Callable[[Post], str | None]
"""Says where a post stands in its source (`FILE, line N`), None where that is not known. It may read the source again:
it is asked when something is wrong with a post, not before."""
Key = tuple[Path | StoredPicture, str]
"""A picture and the text before it."""


class PictureCache:
    """Encoded pictures up to a budget, the one used longest ago goes first.

    A small data set is then decoded once instead of once an epoch. Pictures of the same content are one, whether or not
    they are one file: a table holds a picture as often as posts have it. Each worker process keeps its own.

    Args:
        encoder: encodes pictures.
        budget_mb: the budget in MiB; 0 keeps the pictures of the current batch alone.
        place_of: where posts stand in their source, for the error about a picture that cannot be decoded.
    """

    def __init__(self, encoder: RowEncoder, budget_mb: int = 0, place_of: PlaceOf | None = None) -> None:
        self.encoder = encoder
        self.place_of = place_of
        self._budget = budget_mb * 2**20
        self._heads: OrderedDict[tuple[bytes, str], tuple[EncodedHead, list[Key]]] = OrderedDict()
        self._contents: dict[Key, bytes] = {}
        self._bytes = 0

    def head(self, row: TextRow) -> EncodedHead:
        """The row's picture with the text before it; rows of one picture get one and the same object.

        Raises:
            InputError: the picture cannot be decoded.
        """
        key = (row.post.image, row.head)
        if key not in self._contents:
            try:
                self._add(key, row)
            except InputError as error:
                raise load_error(row.post, error, self.place_of) from error
        content = (self._contents[key], row.head)
        self._heads.move_to_end(content)
        return self._heads[content][0]

    def trim(self) -> None:
        """Drops what is over the budget; the caller does so after each batch."""
        while self._heads and self._bytes > self._budget:
            _, (head, keys) = self._heads.popitem(last=False)
            self._bytes -= head.nbytes
            for key in keys:
                del self._contents[key]

    def _add(self, key: Key, row: TextRow) -> None:
        try:
            digest = hashlib.sha256(row.post.image.read_bytes()).digest()
        except OSError:  # encoding it says what is wrong
            digest = str(row.post.image).encode()
        if (digest, row.head) not in self._heads:
            head = self.encoder.head(row)
            self._heads[digest, row.head] = head, []
            self._bytes += head.nbytes
        self._heads[digest, row.head][1].append(key)
        self._contents[key] = digest


def load_error(post: Post, error: InputError, place_of: PlaceOf | None) -> InputError:
    """The error about a post's picture, with the place where the post stands in its source."""
    place = place_of(post) if place_of else None
    return error if place is None else InputError(f"{place}, field 'image' (post {post.id!r}): {error}")
