"""What every reader shares: the contract, and the checks that a post must pass.

A reader turns one source into `Post` values. It loads no torch, and opens no picture unless it is told to decode them
all; it does check that every picture is there and inside the image root. A wrong row stops it with an error of one
line that names the file, the row, the field and what would be right, or is left out and listed (`RowLog`).
"""

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TypeVar

from data_modules.readers.image_root import ImageRoot
from data_modules.readers.row_log import Places, Row, RowError, RowLog, one_line, shown
from data_modules.readers.row_log import filled as filled
from data_modules.readers.taken_ids import TakenIds
from data_modules.readers.text_files import read_lines as read_lines
from data_modules.readers.text_files import read_text as read_text
from mulcot.images import load_image
from mulcot.types import DEFAULT_LABELS, SPLITS, InputError, Post, Split, StoredPicture

Raw = TypeVar("Raw")
Entries = Iterator[tuple[Row, Post]]
"""Posts, each with the place where it stands."""
_DECODING_THREADS = min(8, os.cpu_count() or 1)


class Reader(ABC):
    """A source of posts. A subclass has a flat constructor, so that a YAML file can name it and its arguments."""

    labels: Sequence[str] = DEFAULT_LABELS
    """The labels that posts may have, in order."""
    image_root: Path | None = None
    """The folder that all pictures lie in; None where they have none, such as pictures inside a table."""
    image_field: str = "image"
    """What the source calls the field of a post's picture."""

    @abstractmethod
    def entries(self, split: Split, log: RowLog) -> Entries:
        """The posts of a split one by one, in the order of the source; wrong rows go to `log`.

        Raises:
            InputError: A file is wrong, or the source has no such split; or a row is, where `log` does not skip it.
        """

    @abstractmethod
    def files(self) -> list[Path]:
        """The files that the posts come from and that exist, for a run's manifest; the pictures are not among them."""

    def splits(self) -> tuple[Split, ...]:
        """The splits that the source has."""
        return SPLITS

    def read(self, split: Split, log: RowLog | None = None) -> Sequence[Post]:
        """The posts of a split; without a log the first wrong row is an error.

        Raises:
            InputError: See `entries`.
        """
        log = log or RowLog()
        return _posts(self.entries(split, log), log, self.image_field)

    def tokens(self, split: Split, fingerprint: str) -> Path | None:
        """The folder of a split's tokens for the encoder with this fingerprint; only a converted data set has one."""
        return None

    def replies(self) -> dict[str, str]:
        """A teacher's replies that come with the posts, by post id, as they were written; most sources have none."""
        return {}


class SingleFileReader(Reader):
    """A source that is one file without splits; `GroupedSplit` gives it some."""

    @abstractmethod
    def all_entries(self, log: RowLog) -> Entries:
        """Every post of the file, in its order.

        Raises:
            InputError: See `Reader.entries`.
        """

    def read_all(self, log: RowLog | None = None) -> list[Post]:
        """Every post of the file, in its order.

        Raises:
            InputError: The file or a row is wrong.
        """
        log = log or RowLog()
        return _posts(self.all_entries(log), log, self.image_field)

    def splits(self) -> tuple[Split, ...]:
        """None."""
        return ()

    def entries(self, split: Split, log: RowLog) -> Entries:
        """Always an error: handing out the same posts as every split would let a run test on what it trained on."""
        name = type(self).__name__
        raise InputError(
            f"{name}: this source has no splits, so no {split!r}; put it inside GroupedSplit "
            f"(class_path: GroupedSplit, init_args: {{reader: {{class_path: {name}, ...}}, train: ..., val: ...}})"
        )


def checked(rows: Iterable[tuple[Row, Raw]], make: Callable[[Row, Raw], Post | None], log: RowLog) -> Entries:
    """The posts that `make` gives for rows; what it refuses goes to `log`, and where it gives None there is none."""
    for row, raw in rows:
        try:
            post = make(row, raw)
        except RowError as error:
            log.add(error)
            continue
        if post is not None:
            yield row, post


def decoded(entries: Entries, log: RowLog, field: str = "image") -> Entries:
    """The entries whose pictures can be decoded, several at a time, in their order; the others go to `log`.

    Args:
        entries: The entries.
        log: Where those with a broken picture go.
        field: What the source calls the field of the picture.
    """
    window: deque[tuple[Row, Post, Future[str]]] = deque()
    log.settle = lambda: [row for row, _, problem in window if problem.result()]
    with ThreadPoolExecutor(_DECODING_THREADS) as threads:
        for row, post in entries:
            window.append((row, post, threads.submit(_decode, post)))
            if len(window) > 8 * _DECODING_THREADS:
                yield from _decided(*window.popleft(), log, field)
        while window:
            yield from _decided(*window.popleft(), log, field)


def add_broken(log: RowLog, row: Row, field: str, picture: Path | StoredPicture, error: str) -> None:
    """Lists a row whose picture cannot be read, or raises the error where wrong rows stop the reading.

    Args:
        log: Where it is listed.
        row: The row.
        field: What the source calls the field of the picture.
        picture: The picture.
        error: What `load_image` said of it.
    """
    problem, _, remedy = error.rpartition("; ")
    there = not isinstance(picture, Path) or os.path.isfile(picture)
    log.broken.add(row)
    log.add(row.picture_error(field, picture, "unreadable" if there else "missing", problem, remedy))


def _posts(entries: Entries, log: RowLog, field: str) -> list[Post]:
    return [post for _, post in (decoded(entries, log, field) if log.decode else entries)]


def _kept_posts(kept: Callable[[Split, RowLog], Entries], split: Split, decode: bool) -> list[Post]:
    log = RowLog("skip", decode)
    return _posts(kept(split, log), log, "image")


def _decode(post: Post) -> str:
    """What is wrong with a post's picture; empty where nothing is."""
    try:
        load_image(post.image)
    except RowError:
        raise
    except InputError as error:
        return str(error)
    return ""


def _decided(row: Row, post: Post, problem: Future[str], log: RowLog, field: str) -> Entries:
    if problem.result():
        add_broken(log, row, field, post.image, problem.result())
    else:
        yield row, post


MAX_CHARACTERS = 20_000
"""More than any post has; a longer text is a file that went wrong, and would not fit a model's context anyway."""


class PostChecks:
    """The checks of one pass over a source; it remembers the ids of the posts that it gave (`TakenIds`).

    Args:
        labels: The data set's labels.
        image_root: The folder that every picture lies in.
        check_images: Whether the pictures must exist. Paths that leave the root are refused in any case.
        aspect_in_text: Whether the text must hold the aspect, as it does where aspects are words of the author; a
            data set with categories as aspects says no.
        names: What the source calls the fields `id`, `text`, `image`, `aspect` and `label`, where it is not this.
        log: What the pass met, which knows of pictures that turn out to be broken later.

    Raises:
        InputError: The labels are no label set, or the image root is no folder.
    """

    def __init__(
        self,
        labels: Sequence[str],
        image_root: Path,
        check_images: bool,
        aspect_in_text: bool = True,
        names: Mapping[str, str] | None = None,
        log: RowLog | None = None,
    ) -> None:
        check_label_set(labels)
        if check_images and not os.path.isdir(image_root):
            raise InputError(f"image_root: there is no folder {one_line(image_root)}; give the folder of the pictures")
        self._labels = tuple(labels)
        self._root = ImageRoot(image_root)
        self._check_images = check_images
        self._aspect_in_text = aspect_in_text
        self._names = {field: field for field in ("id", "text", "image", "aspect", "label")} | dict(names or {})
        self._ids = TakenIds(log or RowLog())

    def post(
        self,
        row: Row,
        *,
        id: object,
        text: object,
        image: object,
        aspect: object = None,
        label: object = None,
        slices: tuple[tuple[str, str], ...] = (),
    ) -> Post:
        """A post of one row; None stands for a field that is left out, which aspect and label may be.

        Args:
            row: Where the values stand.
            id: A text or a whole number that no earlier row has.
            text: What the author wrote.
            image: A path relative to the image root, or a picture that was found already.
            aspect: The target of the sentiment.
            label: The gold label.
            slices: See `Post`.

        Raises:
            RowError: A field is wrong.
        """
        names = self._names
        written = filled(row, names["text"], text)
        if len(written) > MAX_CHARACTERS:
            problem = f"{len(written)} characters are more than {MAX_CHARACTERS}"
            raise row.error(names["text"], problem, "shorten it, or mend the file where a quotation mark is not closed")
        target = None if aspect is None else filled(row, names["aspect"], aspect)
        if target is not None and self._aspect_in_text and target not in written:
            problem = f"{shown(target)} does not stand in the text"
            remedy = "write it as the text does, or set aspect_in_text: false where aspects are categories"
            raise row.error(names["aspect"], problem, remedy)
        name = self._new_id(row, id)
        if isinstance(image, str) or not isinstance(image, StoredPicture):  # the second question takes long
            image = self.image(row, image, names["image"])
        gold = None if label is None else self.label(row, label, names["label"])
        self._ids.take(name, row)
        return Post(name, written, image, target, gold, slices)

    def across_splits(
        self,
        split: Split,
        posts: Entries,
        ids_of: Callable[[Split], Iterable[tuple[Row, object]]],
        log: RowLog,
        kept: Callable[[Split, RowLog], Entries] | None = None,
        known: dict[Split, Places[str]] | None = None,
    ) -> Entries:
        """The posts of a split, none of which has an id that stands in another split.

        Of two rows with one id it is the one of the later split that is wrong, whichever of the two splits is read.

        Args:
            split: The split that is read.
            posts: Its posts, which come from `post`.
            ids_of: The ids in another split, with their places; None for a row without one, none for no such split.
            log: Where wrong rows go.
            kept: The posts of another split that are kept under a log; it is asked where wrong rows are skipped and
                an id stands in two splits. Without it every id of another split counts.
            known: The ids of other splits that passes under a like log have met; what this pass meets is added. Only
                for a source whose posts all have an id that `ids_of` gives.
        """
        known = {} if known is None else known
        if kept is not None:
            self._ids.kept = lambda other: {post.id for post in _kept_posts(kept, other, log.decode)}
        for name in SPLITS:
            if name == split:
                yield from posts
                if log.on_bad_row == "skip":
                    return  # an id that stands again in a later split is listed when that one is read
                known[name] = self._ids.here
            elif name not in known or not self._ids.take_split(name, known[name]):
                for row, value in ids_of(name):
                    self.note_id(name, row, value, log)
                known[name] = self._ids.of_split(name)

    def note_id(self, split: Split, row: Row, value: object, log: RowLog) -> None:
        """Remembers the id of another split's row, if it has one.

        Raises:
            RowError: The id is none or stands already, where wrong rows stop the reading; else it is listed when that
                split is read.
        """
        if value is None:
            return
        try:
            name = self._new_id(row, value) if log.on_bad_row == "error" else self._id(row, value)
        except RowError:
            if log.on_bad_row == "error":
                raise
        else:
            self._ids.take_elsewhere(split, name, row)

    def _new_id(self, row: Row, value: object) -> str:
        """An id as text, refused when a post that is kept has it already."""
        name = self._id(row, value)
        self._ids.check(row, name, self._names["id"])
        return name

    def _id(self, row: Row, value: object) -> str:
        """An id as text; whole numbers are taken as their digits."""
        field = self._names["id"]
        name = filled(row, field, as_digits(value))
        if name != name.strip():
            raise row.error(field, f"blanks around the id {shown(name)}", f"write {shown(name.strip())}")
        return name

    def label(self, row: Row, value: object, field: str = "label") -> str:
        """A label as it stands in the label set; another spelling of it is refused, not mended."""
        label = filled(row, field, value)
        if label in self._labels:
            return label
        for known in self._labels:
            if plain_label(known) == plain_label(label):
                raise row.error(field, f"{shown(label)} differs from a label in capitals or blanks", f"write {known!r}")
        choices = ", ".join(repr(known) for known in self._labels)
        raise row.error(field, f"unknown label {shown(label)}", f"use one of {choices}, or name it in `labels`")

    def image(self, row: Row, value: object, field: str = "image") -> Path:
        """The path of a picture, which must lie inside the image root after every symbolic link is followed."""
        name = filled(row, field, value)
        problem = self._root.problem(name)
        if problem:
            remedy = "copy the picture into it" if "link" in problem else "give a path inside the image root"
            raise row.picture_error(field, name, "outside", f"{shown(name)} {problem}", f"{remedy}, relative to it")
        path = self._root.folder / name
        if self._check_images and not os.path.isfile(path):
            kind = "a folder, not a picture," if os.path.isdir(path) else "no picture"
            kind = "a broken link, not a picture," if os.path.islink(path) and not os.path.exists(path) else kind
            remedy = "put the picture there or take the post out"
            problem = f"there is {kind} {shown(name)} in {one_line(self._root.folder)}"
            raise row.picture_error(field, path, "missing", problem, remedy)
        return path


def as_digits(value: object) -> object:
    """A whole number as its digits, anything else as it is: sources write ids and codes of labels either way."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def check_label_set(labels: Sequence[str]) -> None:
    """Refuse a label set that replies could not be compared with.

    Raises:
        InputError: There are fewer than two labels; one is empty, has outer blanks or more than one line; or two differ
            in capitals or blanks alone, which a model's reply need not keep apart.
    """
    if isinstance(labels, str) or len(labels) < 2:
        raise InputError(f"labels: {labels!r} is no list of two or more labels; give one, such as [positive, negative]")
    known: dict[str, str] = {}
    for number, label in enumerate(labels, 1):
        if not isinstance(label, str) or not label or label != label.strip() or len(label.splitlines()) > 1:
            raise InputError(f"labels, entry {number}: {label!r} must be a text on one line without outer blanks")
        if label in known.values():
            raise InputError(f"labels, entry {number}: {label!r} comes twice; name every label once")
        other = known.setdefault(plain_label(label), label)
        if other != label:
            problem = f"{label!r} differs from {other!r} in capitals or blanks alone"
            raise InputError(f"labels, entry {number}: {problem}; name every label once")


def plain_label(label: str) -> str:
    """What spellings of a label have in common that differ in capitals or blanks."""
    return "".join(label.split()).casefold()


def not_empty(path: Path, rows: Iterator[tuple[Row, Raw]]) -> Iterator[tuple[Row, Raw]]:
    """The same rows.

    Raises:
        InputError: There are none; a run on no posts would end well and mean nothing.
    """
    first = next(rows, None)
    if first is None:
        raise InputError(f"{one_line(path)}: it holds no posts; give a file with at least one")
    return chain([first], rows)
