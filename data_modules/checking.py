"""The computation behind `mulcot data check`: what a data set holds, and what training would drop of it.

Every split is read once. Of a post only its id, its label and a few hashes of 16 bytes are kept, which is enough to
find what is equal; the texts themselves stay only where near-copies are looked for, and then once each.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from data_modules.check_pictures import PictureInspector, SeenPicture
from data_modules.check_rationales import KnownPosts, check_files, check_replies
from data_modules.check_report import (
    Across,
    CheckReport,
    Groups,
    Lengths,
    LostPictures,
    Overlap,
    Pictures,
    Section,
    Spread,
    WrongRow,
)
from data_modules.readers.base import Reader, SingleFileReader, check_label_set
from data_modules.readers.row_log import RowLog
from mulcot.types import InputError, Post, Split

ALL: Final = "all"
"""The name of the one section of a source without splits."""
_TRAIN: Final = "train"
_EXAMPLES: Final = 10
_REPORT_EVERY: Final = 100

Keys = NDArray[np.bytes_]
"""16 bytes for every post of a section, in order."""


def check(
    reader: Reader,
    *,
    rationales: Sequence[Path] = (),
    labels: Sequence[str],
    near_copies: float | None = 0.8,
    decode: bool = True,
    other_prompts: bool = False,
    progress: Callable[[str, int], None] | None = None,
) -> CheckReport:
    """Reads everything that a data set holds, as training with `on_bad_row: skip` would.

    Args:
        reader: The source.
        rationales: Rationale files that belong to it.
        labels: The label set.
        near_copies: How alike the words of two texts must be to count as one text (Jaccard similarity); None does not
            look for near-copies.
        decode: Whether every picture is decoded and compared byte for byte. Without it headers alone are read: what
            is broken further on is not found, and pictures are the same when their paths are.
        other_prompts: Whether rationales may answer other prompts than those of this version of mulcot.
        progress: Called now and then with the name of a split and the number of its posts seen so far.

    Raises:
        InputError: The label set, the threshold or the reader's arguments are wrong. A wrong row or a split that
            cannot be read is no error here: the report holds it.
    """
    check_label_set(labels)
    if near_copies is not None and not 0 < near_copies <= 1:
        raise InputError(f"near_copies: {near_copies!r} is no similarity; give a number above 0 and up to 1, or null")
    names = _names(reader)
    texts = _Texts() if near_copies is not None and len(names) > 1 else None
    with PictureInspector(decode) as pictures:
        kept = [_Posts(name, texts) for name in names]
        sections = [_section(posts, reader, pictures, labels, progress) for posts in kept]
    known = KnownPosts({posts.name: (posts.ids, posts.labels, posts.masc) for posts in kept})
    read_all = all(section.error is None for section in sections)
    return CheckReport(
        sections=tuple(sections),
        across=_across(kept, texts, near_copies) if len(kept) > 1 else None,
        # A file that cannot be read is in the report already.
        replies=check_replies(reader.replies(), known, labels) if read_all else None,
        rationales=check_files(rationales, known, labels, other_prompts) if rationales else None,
    )


def _names(reader: Reader) -> tuple[str, ...]:
    if names := reader.splits():
        return names
    # A source of splits that finds none of its files says so when it is asked for one.
    return (ALL,) if isinstance(reader, SingleFileReader) else (_TRAIN,)


class _Texts:
    """The texts of all splits, each set of words once."""

    def __init__(self) -> None:
        from data_modules.near_copies import normalised_words

        self._words_of = normalised_words
        self._numbers: dict[bytes, int] = {}
        self.texts: list[str] = []

    def number(self, text: str) -> int:
        """The number of a text; texts of the same words have the same one, and so have equal texts."""
        words = self._words_of(text)
        number = self._numbers.setdefault(_hash(sorted(words) if words else text), len(self.texts))
        if number == len(self.texts):
            self.texts.append(text)
        return number


class _Posts:
    """What is kept of the usable posts of a section, in their order."""

    def __init__(self, name: str, texts: _Texts | None) -> None:
        self.name = name
        self.ids: list[str] = []
        self.labels: list[str | None] = []
        self.masc = bytearray()
        self.pictures: Counter[SeenPicture] = Counter()
        self.aspects: set[bytes] = set()
        self.text_numbers = array("q")
        self._texts = texts
        self._keys: dict[str, bytearray] = {"id": bytearray(), "text": bytearray(), "picture": bytearray()}
        self._post_keys = bytearray()
        self._lengths = {name: (array("q"), array("q")) for name in ("text", "aspect")}

    def add(self, post: Post, picture: SeenPicture) -> None:
        """Notes a post."""
        self.ids.append(post.id)
        self.labels.append(post.label)
        self.masc.append(post.aspect is not None)
        self.pictures[picture] += 1
        self._keys["id"] += _hash(post.id)
        self._keys["text"] += _hash(post.text)
        self._keys["picture"] += picture.digest
        self._post_keys += _hash((post.text, picture.digest, post.aspect))
        self._measure("text", post.text)
        if post.aspect is not None:
            self.aspects.add(_hash(post.aspect))
            self._measure("aspect", post.aspect)
        if self._texts is not None:
            self.text_numbers.append(self._texts.number(post.text))

    def keys(self, field: str) -> Keys:
        """What stands for the `id`, `text` or `picture` of every post."""
        return np.frombuffer(self._keys[field], "S16")

    def lengths(self, field: str) -> Lengths | None:
        """Of the `text` or the `aspect`."""
        characters, words = map(Spread.of, self._lengths[field])
        return Lengths(characters, words) if characters and words else None

    def equal_posts(self) -> Iterator[list[int]]:
        """The positions of posts with equal text, picture and aspect, group by group, in the order of the first."""
        keys = np.frombuffer(self._post_keys, "S16")
        _, inverse, times = np.unique(keys, return_inverse=True, return_counts=True)
        groups: dict[int, list[int]] = defaultdict(list)
        for position in np.flatnonzero(times[inverse] > 1).tolist():
            groups[int(inverse[position])].append(position)
        yield from groups.values()

    def _measure(self, field: str, text: str) -> None:
        characters, words = self._lengths[field]
        characters.append(len(text))
        words.append(len(text.split()))


def _section(
    posts: _Posts,
    reader: Reader,
    pictures: PictureInspector,
    labels: Sequence[str],
    progress: Callable[[str, int], None] | None,
) -> Section:
    """Reads a section into `posts` and says what it holds."""
    log = RowLog(on_bad_row="skip")
    error = None
    try:
        if posts.name == ALL and isinstance(reader, SingleFileReader):
            entries = reader.all_entries(log)
        else:
            entries = reader.entries(cast(Split, posts.name), log)
        for number, (post, picture) in enumerate(pictures.seen(entries, log, reader.image_field), 1):
            posts.add(post, picture)
            if progress and number % _REPORT_EVERY == 0:
                progress(posts.name, number)
    except InputError as caught:
        error = str(caught)
    given = Counter(label for label in posts.labels if label is not None)
    masc = sum(posts.masc)
    settings = {"msc": len(posts.ids) - masc, "masc": masc}
    conflicts, duplicates = _equal(posts)
    return Section(
        name=posts.name,
        error=error,
        posts=len(posts.ids),
        without_label=posts.labels.count(None),
        labels={label: given[label] for label in dict.fromkeys([*labels, *given])},
        settings={setting: number for setting, number in settings.items() if number},
        text=posts.lengths("text"),
        aspect=posts.lengths("aspect"),
        aspects=len(posts.aspects),
        pictures=_pictures(posts.pictures),
        lost_pictures=LostPictures.of(log.bad),
        dropped=dict(log.dropped),
        counts=dict(log.counts),
        wrong_rows=WrongRow.of(log.bad),
        conflicts=conflicts,
        duplicates=duplicates,
    )


def _pictures(uses: Mapping[SeenPicture, int]) -> Pictures:
    seen = list(uses)
    shapes = [picture.width / picture.height for picture in seen]
    by_content: dict[bytes, list[SeenPicture]] = defaultdict(list)
    for picture in seen:
        by_content[picture.digest].append(picture)
    copies = [group for group in by_content.values() if len(group) > 1]
    examples = tuple(tuple(picture.name for picture in group) for group in copies[:_EXAMPLES])
    posts = sum(uses[picture] for group in copies for picture in group)
    return Pictures(
        distinct=len(seen),
        shared=sum(times > 1 for times in uses.values()),
        width=Spread.of([picture.width for picture in seen]),
        height=Spread.of([picture.height for picture in seen]),
        narrowest=min(shapes, default=None),
        widest=max(shapes, default=None),
        formats=dict(Counter(picture.format for picture in seen).most_common()),
        bytes=sum(picture.bytes for picture in seen),
        duplicates=Groups(len(copies), posts, examples) if all(picture.hashed for picture in seen) else None,
    )


def _equal(posts: _Posts) -> tuple[tuple[dict[str, str], ...], Groups]:
    """Equal posts with different labels, and those whose labels are equal as well."""
    conflicts: list[dict[str, str]] = []
    copies: list[tuple[str, ...]] = []
    for positions in posts.equal_posts():
        by_label: dict[str | None, list[str]] = defaultdict(list)
        for position in positions:
            by_label[posts.labels[position]].append(posts.ids[position])
        copies += [tuple(ids) for ids in by_label.values() if len(ids) > 1]
        given = {posts.ids[position]: label for position in positions if (label := posts.labels[position]) is not None}
        if len(set(given.values())) > 1:
            conflicts.append(given)
    return tuple(conflicts), Groups(len(copies), sum(map(len, copies)), tuple(copies[:_EXAMPLES]))


def _across(kept: Sequence[_Posts], texts: _Texts | None, near_copies: float | None) -> Across:
    return Across(
        ids=_overlap(kept, "id"),
        pictures=_overlap(kept, "picture"),
        texts=_overlap(kept, "text"),
        near_copies=_near_copies(kept, texts, near_copies) if texts is not None and near_copies is not None else None,
    )


def _overlap(kept: Sequence[_Posts], field: str) -> Overlap:
    """What of a field stands in several sections."""
    first = [np.unique(posts.keys(field), return_index=True) for posts in kept]
    values, times = np.unique(np.concatenate([keys for keys, _ in first]), return_counts=True)
    shared = values[times > 1]
    places: dict[bytes, dict[str, str]] = defaultdict(dict)
    for posts, (keys, positions) in zip(kept, first, strict=True):
        found = np.isin(keys, shared)
        for position, key in sorted(zip(positions[found].tolist(), keys[found].tolist(), strict=True)):
            places[key][posts.name] = posts.ids[position]
    training = [posts.keys(field) for posts in kept if posts.name == _TRAIN]
    counterparts = {
        posts.name: int(np.isin(posts.keys(field), training[0]).sum())
        for posts in kept
        if training and posts.name != _TRAIN
    }
    return Overlap(len(shared), counterparts, tuple(places.values())[:_EXAMPLES])


def _near_copies(kept: Sequence[_Posts], texts: _Texts, threshold: float) -> Overlap:
    """Which near-copies stand in several sections; equal texts are among them."""
    from data_modules.near_copies import group, near_copy_pairs

    pairs = list(near_copy_pairs(texts.texts, threshold))
    # The id of the first post with each text, by section.
    first: dict[int, dict[str, str]] = defaultdict(dict)
    for posts in kept:
        for number, post_id in zip(posts.text_numbers, posts.ids, strict=True):
            first[number].setdefault(posts.name, post_id)
    found: list[dict[str, str]] = []
    for members in group(len(texts.texts), pairs):
        places = {name: post_id for member in reversed(members) for name, post_id in first[member].items()}
        if len(places) > 1:
            found.append({posts.name: places[posts.name] for posts in kept if posts.name in places})
    near_training = _near_training(first, pairs)
    training = any(posts.name == _TRAIN for posts in kept)
    counterparts = {
        posts.name: sum(number in near_training for number in posts.text_numbers)
        for posts in kept
        if training and posts.name != _TRAIN
    }
    return Overlap(len(found), counterparts, tuple(found[:_EXAMPLES]))


def _near_training(first: Mapping[int, Mapping[str, str]], pairs: Iterable[tuple[int, int]]) -> set[int]:
    """The texts that are in the training split or nearly equal to one of it, not only by way of a third."""
    training = {number for number, places in first.items() if _TRAIN in places}
    near = {one for pair in pairs for one, other in (pair, pair[::-1]) if other in training}
    return training | near


def _hash(value: object) -> bytes:
    """16 bytes that stand for a value; `repr` tells None from 'None' and keeps the parts of a tuple apart."""
    return hashlib.blake2b(repr(value).encode(), digest_size=16).digest()
