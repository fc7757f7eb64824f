"""MVSA-Single and MVSA-Multiple as they are distributed: one file of annotations, a picture and a text file a post."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from data_modules.readers.base import (
    Entries,
    PostChecks,
    SingleFileReader,
    as_digits,
    checked,
    filled,
    not_empty,
    read_lines,
)
from data_modules.readers.image_root import ImageRoot
from data_modules.readers.json_files import RepeatedKey, as_object, json_list
from data_modules.readers.row_log import Places, Row, RowError, RowLog, one_line, shown
from data_modules.readers.taken_ids import check_new_id
from mulcot.regular_files import open_regular
from mulcot.types import DEFAULT_LABELS, SPLITS, InputError, Post, Split

Merge = Literal["merged", "strict"]
Line = tuple[Row, str]
Lines = Iterator[tuple[Row, str | RowError]]
"""Lines of annotations, those that cannot be read as errors."""

ANNOTATIONS: Final = "labelResultAll.txt"
WORDS: Final = ("positive", "neutral", "negative")
"""What annotators write; the codes 0, 1 and 2 of split files stand for them in this order."""
EQUAL: Final = "equal labels"
CONTRADICTION: Final = "contradicting text and image labels"
DIFFERENCE: Final = "text and image labels differ"
NO_MAJORITY: Final = "no majority of the annotators"
_PAIR: Final = "text,image"
_ENCODINGS: Final = ("utf-8-sig", "gb18030")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the annotations of one post come to."""

    label: str | None
    """The post's label; None when the post is dropped."""
    kind: str | None
    """How text and picture agree, as `RowLog.counts` names it; None when they contradict or have no majority."""
    dropped: str | None
    """Why the post is dropped, as `RowLog.dropped` names it; None when it is kept."""


def merge_labels(texts: Sequence[str], images: Sequence[str], merge: Merge = "merged") -> Verdict:
    """The label of a post by the merge rule of the literature; `strict` keeps equal labels alone.

    Args:
        texts: The label of the text, one from each of one or three annotators.
        images: The label of the picture, one from each annotator.
        merge: See `Mvsa`.
    """
    text, image = _majority(texts), _majority(images)
    if text is None or image is None:
        return Verdict(None, None, NO_MAJORITY)
    if text == image:
        return Verdict(text, EQUAL, None)
    if "neutral" not in (text, image):
        return Verdict(None, None, CONTRADICTION)
    if merge == "strict":
        return Verdict(None, "neutral with another", DIFFERENCE)
    return Verdict(image if text == "neutral" else text, "neutral with another", None)


def _majority(words: Sequence[str]) -> str | None:
    """The word that more than half of the annotators wrote."""
    word, count = Counter(words).most_common(1)[0]
    return word if 2 * count > len(words) else None


class Mvsa(SingleFileReader):
    """The folder of `labelResultAll.txt` and `data/N.txt`, `data/N.jpg`; the header tells Single from Multiple.

    Every annotator gives the text a label and the picture one. With three annotators (Multiple) the majority counts
    for each of the two, and a post without one is dropped. Then equal labels stay, neutral with another gives the
    other, and positive against negative is dropped. What the rule drops stands in `RowLog.dropped`, what it made of
    the annotations in `RowLog.counts`; both come from the annotations alone, whatever texts and pictures are like.

    A post's slice `conflict` is `yes` where text and picture have different labels (neutral and another), else `no`.

    A text is UTF-8, else GB18030. The line ends that close its file are taken off; all else stays, line ends inside
    and blanks at the end too. A post's id is its number.

    The data set has no official splits. `split_files` takes the lists that go with CLMLF: JSON lists of objects with
    `id` and `emotion_label` (0 positive, 1 neutral, 2 negative). A split is then the posts that its list names, in
    its order, and counts are those of the named posts; texts and labels still come from the raw files. A listed label
    that differs from the raw one is a wrong row: Single and Multiple give the same ids to different posts.

    Args:
        folder: The folder of `labelResultAll.txt` and `data`.
        merge: `merged` is the rule above; `strict` keeps a post only where text and picture have the same label.
        labels: The labels that posts may have, the three of MVSA among them.
        split_files: A list of posts for each split; without it the source has no splits.
        check_images: Whether every picture must exist.
    """

    def __init__(
        self,
        folder: Path,
        merge: Merge = "merged",
        labels: Sequence[str] = DEFAULT_LABELS,
        split_files: dict[Split, Path] | None = None,
        check_images: bool = True,
    ) -> None:
        """Keep the arguments; nothing is read before the posts are asked for."""
        self.folder = Path(folder)
        self.merge: Merge = merge
        self.labels = tuple(labels)
        self.split_files = dict(split_files or {})
        self.check_images = check_images
        self.image_root = self.folder / "data"
        self._root = ImageRoot(self.image_root)

    def all_entries(self, log: RowLog) -> Entries:
        """See the base class.

        Raises:
            InputError: The annotations are missing, without their header or without posts, or a row is wrong.
        """
        checks = self._checks(log)
        annotators, lines = self._annotations()
        seen: Places[str] = Places()

        def post(row: Row, line: str | RowError) -> Post | None:
            if isinstance(line, RowError):
                raise line
            number, verdict = self._verdict(row, line, annotators, seen)
            _count(verdict, log)
            if verdict.dropped is not None:
                log.dropped[verdict.dropped] += 1
                return None
            return self._post(checks, row, number, verdict)

        return checked(lines, post, log)

    def splits(self) -> tuple[Split, ...]:
        """Those that `split_files` names."""
        return tuple(split for split in SPLITS if split in self.split_files)

    def entries(self, split: Split, log: RowLog) -> Entries:
        """The posts that the split's list names, in its order.

        Raises:
            InputError: `split_files` has no list for the split, or a file is wrong; or a row is, or its id stands in
                another list as well.
        """
        if not self.split_files:
            return super().entries(split, log)
        if split not in self.split_files:
            raise InputError(f"Mvsa: split_files has no list for {split!r}; add one (split_files: {{{split}: ...}})")
        checks = self._checks(log)
        annotators, lines = self._annotations()
        found: dict[str, list[Line]] = defaultdict(list)
        for row, line in lines:
            if isinstance(line, str):
                found[line.split("\t")[0]].append((row, line))
            elif log.on_bad_row == "error" or split == self.splits()[0]:  # once for all splits
                log.add(line)

        def post(row: Row, entry: object) -> Post:
            values = as_object(row, entry)
            number = filled(row, "id", as_digits(values.get("id")))
            if number not in found:
                problem = f"{one_line(self.folder / ANNOTATIONS)} has no post {shown(number)}"
                raise row.error("id", problem, "take the row out, or give the folder that the list belongs to")
            seen: Places[str] = Places()
            for place, line in found[number]:
                _, verdict = self._verdict(place, line, annotators, seen)
            _agree(row, values.get("emotion_label"), verdict)
            _count(verdict, log)
            return self._post(checks, row, number, verdict)

        path = Path(self.split_files[split])
        posts = checked(not_empty(path, json_list(path)), post, log)
        return checks.across_splits(split, posts, self._ids, log, self.entries)

    def files(self) -> list[Path]:
        """The annotations, the split lists and the text files, those that exist."""
        paths = [self.folder / ANNOTATIONS, *(Path(self.split_files[split]) for split in self.splits())]
        return [*(path for path in paths if path.is_file()), *sorted(self._root.folder.glob("*.txt"))]

    def _checks(self, log: RowLog) -> PostChecks:
        # Without the folder of pictures there are no texts either, and every row says so.
        check_images = self.check_images and self._root.folder.is_dir()
        checks = PostChecks(self.labels, self._root.folder, check_images, log=log)
        if not set(WORDS) <= set(self.labels):
            raise InputError(f"labels: MVSA has the labels {', '.join(WORDS)}; name all three of them")
        return checks

    def _annotations(self) -> tuple[int, Lines]:
        """The number of annotators, and the lines after the header."""
        path = self.folder / ANNOTATIONS
        lines = read_lines(path)
        row, header = next(lines, (Row(path, 1, "line"), ""))
        if isinstance(header, RowError):
            raise header
        cells = header.rstrip().split("\t")
        if row.number != 1 or cells not in (["ID", _PAIR], ["ID", *3 * [_PAIR]]):
            raise InputError(
                f"{Row(path, 1, 'line')}: {shown(header)} is no header of MVSA; begin the file with 'ID' and one "
                f"(MVSA-Single) or three (MVSA-Multiple) '{_PAIR}', separated by tabs"
            )
        return len(cells) - 1, not_empty(path, lines)

    def _ids(self, split: Split) -> Iterator[tuple[Row, object]]:
        """The ids in a split's list, where it has one."""
        if split in self.split_files:
            for row, entry in json_list(Path(self.split_files[split])):
                yield row, None if isinstance(entry, RepeatedKey) or not isinstance(entry, dict) else entry.get("id")

    def _verdict(self, row: Row, line: str, annotators: int, seen: Places[str]) -> tuple[str, Verdict]:
        """The id of a line of annotations and what they come to.

        Args:
            row: Where the line stands.
            line: The line.
            annotators: How many there are.
            seen: Where earlier ids stand; this one is added.

        Raises:
            RowError: The line is no annotation, or its id is not new.
        """
        number, *cells = line.split("\t")
        if len(cells) != annotators:
            remedy = f"write {annotators + 1} columns: {', '.join(['ID', *annotators * [_PAIR]])}"
            raise RowError(row, None, f"{len(cells) + 1} tab-separated columns", remedy)
        if not (number.isascii() and number.isdigit()):
            raise row.error(
                "ID", f"{shown(number)} is no number", "write the number that the post's files are named by"
            )
        pairs = [_pair(row, annotator, cell) for annotator, cell in enumerate(cells, 1)]
        check_new_id(seen, row, number, "ID", "annotate every post on one line")
        return number, merge_labels([text for text, _ in pairs], [image for _, image in pairs], self.merge)

    def _post(self, checks: PostChecks, row: Row, number: str, verdict: Verdict) -> Post:
        """A post that the annotations keep."""
        text = self._text(row, f"{number}.txt")
        slices = (("conflict", "no" if verdict.kind == EQUAL else "yes"),)
        return checks.post(row, id=number, text=text, image=f"{number}.jpg", label=verdict.label, slices=slices)

    def _text(self, row: Row, name: str) -> str:
        """The text in a file of the folder of posts."""
        outside = self._root.problem(name)
        if outside:
            raise row.error("text", f"{shown(name)} {outside}", "copy the text file into the folder of the pictures")
        path = self._root.folder / name
        try:
            with open_regular(path) as file:
                content = file.read()
        except FileNotFoundError as error:
            problem = f"there is no text file {shown(name)} in {one_line(self._root.folder)}"
            raise row.error("text", problem, "put the file there or take the post out") from error
        except OSError as error:
            raise row.error("text", f"{one_line(path)} cannot be read ({error.strerror})", "mend the file") from error
        for encoding in _ENCODINGS:
            try:
                return content.decode(encoding).rstrip("\r\n")
            except UnicodeDecodeError:
                continue
        raise row.error("text", f"{one_line(path)} is neither UTF-8 nor GB18030", "save the file as UTF-8")


def _pair(row: Row, annotator: int, cell: str) -> tuple[str, str]:
    """The label of the text and that of the picture, as one annotator wrote them."""
    words = cell.split(",")
    if len(words) != 2:
        problem = f"annotator {annotator} has {shown(cell)}, which is no pair of labels"
        raise row.error(_PAIR, problem, "write two labels, such as positive,neutral")
    for field, word in zip(("text", "image"), words, strict=True):
        if word not in WORDS:
            problem = f"annotator {annotator} has the unknown label {shown(word)}"
            raise row.error(field, problem, f"use one of {', '.join(WORDS)}")
    return words[0], words[1]


def _count(verdict: Verdict, log: RowLog) -> None:
    """Notes one annotated post."""
    log.counts["annotated posts"] += 1
    if verdict.kind is not None:
        log.counts[verdict.kind] += 1
    if verdict.label is not None:
        log.counts[f"merged {verdict.label}"] += 1


def _agree(row: Row, code: object, verdict: Verdict) -> None:
    """Refuses a listed post that the annotations drop, or give another label than the list does."""
    if verdict.label is None:
        remedy = "take the row out of the list" + (", or set merge: merged" if verdict.dropped == DIFFERENCE else "")
        raise row.error("id", f"the annotations drop this post ({verdict.dropped})", remedy)
    if isinstance(code, bool) or not isinstance(code, int) or not 0 <= code < len(WORDS):
        choices = ", ".join(f"{number} {word}" for number, word in enumerate(WORDS))
        raise row.error("emotion_label", f"unknown code {shown(code)}", f"use one of {choices}")
    if WORDS[code] != verdict.label:
        problem = f"{code} is {WORDS[code]}, and the annotations come to {verdict.label}"
        raise row.error("emotion_label", problem, "give the folder that the list belongs to, or correct the list")
