"""The posts of a reader as the stages see them: each split read once, cut to a limit, found again by id or place."""

from __future__ import annotations

import logging
import time
from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from lightning.pytorch.utilities import rank_zero_only

from data_modules.post_table import AlteredPosts, PostTable, has_aspects, ids_of
from data_modules.rationales import PostsById
from data_modules.readers import Reader
from data_modules.readers.row_log import RowLog, summarise
from mulcot.ablations import Part
from mulcot.rows import PlaceOf
from mulcot.types import InputError, Post, Split

_LOG = logging.getLogger(__name__)
MANY_POSTS: Final = 100_000
"""Above this many, reading and tokenising at every start takes longer than converting once."""


class PostSource:
    """Posts of every split.

    Args:
        reader: Reads them.
        log: Where wrong rows go.
        limit: Only the first so many posts of each split; None for all.
        leave_out: What is taken out of every post; None for nothing.
    """

    def __init__(self, reader: Reader, log: RowLog, limit: int | None, leave_out: Part | None = None) -> None:
        """Nothing is read before a split is asked for."""
        self.reader = reader
        self.log = log
        self.limit = limit
        self.leave_out = leave_out
        self._whole: dict[Split, Sequence[Post]] = {}
        self._posts: dict[Split, Sequence[Post]] = {}

    def posts(self, split: Split) -> Sequence[Post]:
        """The posts of a split, the first so many of them where there is a limit.

        Raises:
            InputError: The source is wrong, or no post of it is right; or aspects are left out and there are none.
        """
        if split not in self._posts:
            posts = self._read(split)
            posts = posts if self.limit is None else _first(posts, self.limit)
            if self.leave_out == "aspect" and not has_aspects(posts):
                raise InputError(f"data.init_args.leave_out is aspect, and no post of {split} has one; leave it null")
            self._posts[split] = posts if self.leave_out is None else AlteredPosts(posts, self.leave_out)
        return self._posts[split]

    def by_id(self, *splits: Split) -> Mapping[str, Post]:
        """The posts that rationales may explain; those beyond a limit too, whose rationales are then not used."""
        known = [PostsById(posts, ids_of(posts)) for posts in map(self._read, splits)]
        return known[0] if len(known) == 1 else ChainMap(*cast(Any, known))

    def place_of(self, split: Split) -> PlaceOf:
        """Where posts of a split stand in the source, by reading it again: it is asked when one of them is wrong."""

        def place(post: Post) -> str | None:
            entries = self.reader.entries(split, RowLog(on_bad_row="skip"))
            return next((str(row) for row, entry in entries if entry.id == post.id), None)

        return place

    def _read(self, split: Split) -> Sequence[Post]:
        """All posts of a split, read once."""
        if split in self._whole:
            return self._whole[split]
        name = type(self.reader).__name__
        bad, started = len(self.log.bad), time.perf_counter()
        posts = self.reader.read(split, self.log)
        if not len(posts):
            wrong = self.log.bad[bad:]
            why = f"{len(wrong)} wrong rows were left out: {summarise(wrong)}" if wrong else "the source has none"
            raise InputError(f"{split}: no post of {name} is left ({why}); mend the source")
        if is_many(len(posts)) and not isinstance(posts, PostTable):
            tell(
                f"{split}: reading {len(posts)} posts of {name} took {time.perf_counter() - started:.0f} s and keeps "
                "them in memory, at every start; `mulcot data convert` does it once, after which a run starts at once "
                "and takes next to no memory for them"
            )
        self._whole[split] = posts
        return posts


def is_many(posts: int) -> bool:
    """Whether so many posts should be converted once instead of being read at every start."""
    return posts > MANY_POSTS


def _first(posts: Sequence[Post], limit: int) -> Sequence[Post]:
    if isinstance(posts, PostTable):
        return PostTable(posts.path, posts.image_root, min(limit, len(posts)))
    return posts[:limit]


@rank_zero_only
def tell(message: str) -> None:
    """A warning, from the first process alone."""
    _LOG.warning(message)
