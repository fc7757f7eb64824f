"""Splits for a source that has none, or other ones than its own: no picture and no near-copy of a text on two sides."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from data_modules.dealing import deal
from data_modules.near_copies import group, near_copy_pairs
from data_modules.readers.base import Entries, Reader, SingleFileReader, decoded
from data_modules.readers.row_log import OnBadRow, PictureFault, Places, Row, RowError, RowLog, shown
from data_modules.readers.taken_ids import check_new_id
from data_modules.sharing import are_shares, as_counts, check_sizes, split_sizes
from mulcot.ranges import Natural, Share
from mulcot.types import SPLITS, InputError, Post, Split

_LOG = logging.getLogger(__name__)


class GroupedSplit(Reader):
    """A seeded split of a source: no picture and no near-copy of a text on two sides, and the same label shares on all.

    A source with splits of its own is pooled, train, val and test in this order. Pictures are the same when their
    bytes are, whatever they are called. Texts are near-copies when their words are (see `data_modules.near_copies`);
    what is connected by pictures and near-copies, also by way of others, is one group and goes to one split. The sizes
    are met exactly whenever any choice of whole groups meets them. When none does, shares take the nearest sizes, and
    the first reading logs these; for counts, and where a split would be left without posts, the error names them.
    Label shares are those of the whole as nearly as the groups allow; `label_counts` says how they came out, and the
    first reading logs it. A split keeps the source's order.

    The source is read once, as the log of the first reading says (`on_bad_row`, `decode`). To which split a wrong row
    would have gone is not known, so it goes to the log of the split that is read first, and to that one alone however
    many logs the three splits are read with; a split that is read again with another log begins anew. A log with
    `on_bad_row: error` is told of a wrong row in any case.

    Args:
        reader: The source.
        train: Posts in the training split, or their share of all posts (0.8).
        val: Posts in the validation split, or their share.
        test: Posts in the test split, or their share; None for all that the other two leave.
        seed: Another seed gives another split of the same sizes.
        near_copies: How alike the words of two texts are at least when they are near-copies (Jaccard similarity); 1
            wants the same words, None compares pictures alone.
    """

    def __init__(
        self,
        reader: Reader,
        train: int | float,
        val: int | float,
        test: int | float | None = None,
        seed: Natural = 0,
        near_copies: Share | None = 0.8,
    ) -> None:
        """Keep the arguments; nothing is read before a split is asked for."""
        self.reader = reader
        self.train, self.val, self.test = as_counts(train, val, test)
        check_sizes(self.train, self.val, self.test)
        self.seed = seed
        self.near_copies = near_copies
        self._pool: _Pool | None = None
        self._parts: dict[Split, list[tuple[Row, Post]]] | None = None
        self._informed: tuple[RowLog, set[Split]] | None = None

    @property
    def labels(self) -> Sequence[str]:  # type: ignore[override]
        """The source's labels."""
        return self.reader.labels

    @property
    def image_root(self) -> Path | None:  # type: ignore[override]
        """The source's folder of pictures."""
        return self.reader.image_root

    @property
    def image_field(self) -> str:  # type: ignore[override]
        """What the source calls the field of a post's picture."""
        return self.reader.image_field

    def entries(self, split: Split, log: RowLog) -> Entries:
        """The posts of a split, in the order of the source, each with the place where it stands there.

        Raises:
            InputError: As the source's; or a picture cannot be read, an id stands in two splits of the source, or the
                sizes do not fit the posts.
        """
        pool = self._prepared(log)
        self._inform(split, log, pool.found)
        return iter(self._dealt(pool)[split])

    def read(self, split: Split, log: RowLog | None = None) -> Sequence[Post]:
        """See the base class; pictures that were decoded before the posts were dealt are not decoded again."""
        log = log or RowLog()
        entries = self.entries(split, log)
        again = log.decode and not self._prepared(log).found.decode
        return [post for _, post in (decoded(entries, log, self.image_field) if again else entries)]

    def splits(self) -> tuple[Split, ...]:
        """Those that get posts."""
        sizes: dict[Split, int | float | None] = {"train": self.train, "val": self.val, "test": self.test}
        if self._parts is not None:
            return tuple(split for split in SPLITS if self._parts[split])
        if not all(isinstance(size, int) for size in sizes.values()):
            # Whoever reads a split decides about wrong rows; they are kept until then.
            self._pool = self._pool or _Pool(self.reader, "skip")
            return tuple(split for split, size in self._sizes(len(self._pool.entries)).items() if size)
        return tuple(split for split, size in sizes.items() if size)

    def files(self) -> list[Path]:
        """The source's files."""
        return self.reader.files()

    def replies(self) -> dict[str, str]:
        """The replies that come with the source."""
        return self.reader.replies()

    def label_counts(self, log: RowLog | None = None) -> dict[Split, Counter[str]]:
        """How many posts of each label every split has; without a gold label a post counts under the empty text."""
        parts = self._parts or self._dealt(self._prepared(log or RowLog()))
        return {split: Counter(post.label or "" for _, post in entries) for split, entries in parts.items()}

    def _prepared(self, log: RowLog) -> _Pool:
        """The source's posts, read once."""
        if self._pool is None:
            self._pool = _Pool(self.reader, log.on_bad_row)
        if self._parts is None:
            self._pool.prepare(log)
        if log.on_bad_row == "error" and self._pool.found.bad:
            raise self._pool.found.bad[0]
        return self._pool

    def _inform(self, split: Split, log: RowLog, found: RowLog) -> None:
        """Adds what the reading found to a log, unless this or the log of another split has it already."""
        if self._informed is not None:
            informed, splits = self._informed
            if informed is log or split not in splits:
                splits.add(split)
                return
        self._informed = (log, {split})
        for error in found.bad:
            log.add(error)
        log.dropped.update(found.dropped)
        log.counts.update(found.counts)

    def _dealt(self, pool: _Pool) -> dict[Split, list[tuple[Row, Post]]]:
        """All three splits; made once, so that they stay disjoint even when the source changes meanwhile."""
        if self._parts is None:
            sides = self._sides(pool)
            self._parts = {split: [] for split in SPLITS}
            for entry, side in zip(pool.entries, sides, strict=True):
                self._parts[side].append(entry)
            for split, counts in self.label_counts().items():
                _LOG.info("split %s: %d posts, %s", split, counts.total(), dict(sorted(counts.items())))
        return self._parts

    def _sides(self, pool: _Pool) -> list[Split]:
        """The split of every post."""
        sizes = self._sizes(len(pool.entries))
        posts = [post for _, post in pool.entries]
        pairs = _same(pool.pictures)
        if self.near_copies is not None:
            pairs = chain(pairs, near_copy_pairs([post.text for post in posts], self.near_copies))
        groups = group(len(posts), pairs)
        largest = max(map(len, groups), default=0)
        _LOG.info("%d posts in %d groups that stay together, the largest of %d", len(posts), len(groups), largest)
        dealt = deal([[posts[at].label or "" for at in members] for members in groups], sizes, self.seed)
        met = Counter(side for members, side in zip(groups, dealt, strict=True) for _ in members)
        if any(met[split] != sizes[split] for split in SPLITS):
            wanted, nearest = (", ".join(f"{split}: {some[split]}" for split in SPLITS) for some in (sizes, met))
            what = "posts with one picture" + ("" if self.near_copies is None else " or nearly one text")
            problem = f"{wanted} would part {what} (the largest group has {largest}); the nearest sizes are {nearest}"
            emptied = any(sizes[split] and not met[split] for split in SPLITS)
            if emptied or not are_shares(self.train, self.val, self.test):
                raise InputError(f"GroupedSplit: {problem}")
            _LOG.info("%s, which are taken", problem)
        sides = {at: side for members, side in zip(groups, dealt, strict=True) for at in members}
        return [sides[at] for at in range(len(posts))]

    def _sizes(self, posts: int) -> dict[Split, int]:
        """The wanted sizes, which must use up the posts."""
        try:
            return split_sizes(posts, self.train, self.val, self.test)
        except InputError as error:
            raise InputError(f"GroupedSplit of {type(self.reader).__name__}: {error}") from error


class _Pool:
    """The posts of all splits of a source, with what reading them found.

    Args:
        reader: The source.
        on_bad_row: As in `RowLog`.
    """

    def __init__(self, reader: Reader, on_bad_row: OnBadRow) -> None:
        """Reads them."""
        self.found = RowLog(on_bad_row)
        self._field = reader.image_field
        self.pictures: list[bytes] = []
        """A hash of every post's picture, once `prepare` was called."""
        if isinstance(reader, SingleFileReader):
            self.entries = list(reader.all_entries(self.found))
        else:
            self.entries = list(_unique(reader, self.found))

    def prepare(self, log: RowLog) -> None:
        """Looks at the pictures: decodes them where the log says so, and hashes them."""
        self.found.on_bad_row = log.on_bad_row
        if log.decode and not self.found.decode:
            self.entries = list(decoded(iter(self.entries), self.found, self._field))
            self.found.decode = True
        known: dict[Path, bytes] = {}
        kept: list[tuple[Row, Post]] = []
        pictures: list[bytes] = []
        for row, post in self.entries:
            try:
                pictures.append(_digest(row, post, known, self._field))
            except RowError as error:
                self.found.add(error)
            else:
                kept.append((row, post))
        self.entries, self.pictures = kept, pictures


def _unique(reader: Reader, found: RowLog) -> Entries:
    """The posts of one split after the other, each id once."""
    ids: Places[str] = Places()
    for split in reader.splits():
        for row, post in reader.entries(split, found):
            try:
                check_new_id(ids, row, post.id)
            except RowError as error:
                found.add(error)
            else:
                yield row, post


def _digest(row: Row, post: Post, known: dict[Path, bytes], field: str) -> bytes:
    """A hash of the picture's bytes; several posts often name one file, which is read once."""
    if isinstance(post.image, Path) and post.image in known:
        return known[post.image]
    place = f"the picture {shown(str(post.image))} of post {shown(post.id)} cannot be read"
    remedy = "put it there: a split compares all pictures"
    try:
        digest = hashlib.sha256(post.image.read_bytes()).digest()
    except OSError as error:
        fault: PictureFault = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
        raise row.picture_error(field, post.image, fault, f"{place} ({error.strerror})", remedy) from error
    except InputError as error:
        raise row.picture_error(field, post.image, "unreadable", f"{place} ({error})", remedy) from error
    if isinstance(post.image, Path):
        known[post.image] = digest
    return digest


def _same(keys: Iterable[Hashable]) -> Iterator[tuple[int, int]]:
    """Pairs of positions that connect those with equal keys."""
    latest: dict[Hashable, int] = {}
    for position, key in enumerate(keys):
        if key in latest:
            yield latest[key], position
        latest[key] = position
