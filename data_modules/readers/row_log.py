"""What a reading leaves out: nothing without a word."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, Literal, TypeVar

from mulcot.files import write_atomic
from mulcot.types import InputError

OnBadRow = Literal["error", "skip"]
PictureFault = Literal["missing", "unreadable", "outside"]
"""What is wrong with a picture: there is none, it cannot be decoded, or it lies outside of the image root."""
Key = TypeVar("Key")
_NUMBERS: Final = 1 << 40
"""More than the rows of any file."""


@dataclass(frozen=True, slots=True)
class Row:
    """Where something stands: a file, and an entry or a line of it."""

    path: Path
    number: int
    """Counted from 1; header and empty lines count."""
    unit: str = "row"
    """`row` for the entries of an array, `line` for the lines of a file."""

    def __str__(self) -> str:
        """The place as an error names it."""
        return f"{one_line(self.path)}, {self.unit} {self.number}"

    def error(self, field: str, problem: str, remedy: str) -> RowError:
        """The error to raise when `field` of this row is wrong."""
        return RowError(self, field, problem, remedy)

    def picture_error(
        self, field: str, picture: object, fault: PictureFault, problem: str, remedy: str
    ) -> PictureError:
        """The error to raise when this row's picture is wrong; `field` is what the source calls it."""
        return PictureError(self, field, picture, fault, problem, remedy)


class RowError(InputError):
    """A row is wrong; the message names file, row and field, and what would be right.

    Args:
        row: Which row.
        field: The field that is wrong; None when the row as a whole is.
        problem: What is wrong.
        remedy: What would be right.
    """

    def __init__(self, row: Row, field: str | None, problem: str, remedy: str) -> None:
        """Put the message together."""
        place = str(row) if field is None else f"{row}, field {field!r}"
        super().__init__(f"{place}: {problem}; {remedy}")
        self.row = row
        self.field = field
        self.problem = problem
        self.remedy = remedy

    def to_json(self) -> str:
        """The error as one line of `bad_rows.jsonl`."""
        values = {
            "file": str(self.row.path),
            self.row.unit: self.row.number,
            "field": self.field,
            "problem": self.problem,
            "remedy": self.remedy,
        }
        return json.dumps(values, ensure_ascii=False)


class PictureError(RowError):
    """A row's picture is wrong.

    Args:
        row: Which row.
        field: What the source calls the field of the picture.
        picture: The picture's name or place.
        fault: What kind of mistake it is.
        problem: What is wrong.
        remedy: What would be right.
    """

    def __init__(self, row: Row, field: str, picture: object, fault: PictureFault, problem: str, remedy: str) -> None:
        """Put the message together."""
        super().__init__(row, field, problem, remedy)
        self.picture = str(picture)
        self.fault: PictureFault = fault


class Places(Generic[Key]):
    """Where each of many things stands first, such as every id of a data set.

    A million of them take one whole number each, less than half of what their `Row`s would.
    """

    def __init__(self) -> None:
        """Nothing stands anywhere yet."""
        self._places: dict[Key, int] = {}
        self._files: dict[tuple[Path, str], int] = {}

    def note(self, key: Key, row: Row) -> Row | None:
        """The row that a key stands at already; where there is none, it stands at this one from now on."""
        earlier = self.of(key)
        if earlier is None:
            self.put(key, row)
        return earlier

    def put(self, key: Key, row: Row) -> None:
        """A key stands at this row from now on."""
        file = self._files.setdefault((row.path, row.unit), len(self._files))
        self._places[key] = file * _NUMBERS + row.number

    def of(self, key: Key) -> Row | None:
        """The row that a key stands at."""
        place = self._places.get(key)
        if place is None:
            return None
        file, number = divmod(place, _NUMBERS)
        path, unit = list(self._files)[file]
        return Row(path, number, unit)

    def meets(self, others: Places[Key]) -> bool:
        """Whether a key stands in both."""
        return not self._places.keys().isdisjoint(others._places.keys())


class RowLog:
    """What one reading met: wrong rows, rows that a rule of the source drops, and counts that the source is known by.

    Args:
        on_bad_row: `error` stops at the first wrong row; `skip` leaves wrong rows out and lists them.
        decode: Whether every picture is decoded while posts are read. A picture that turns out to be broken later
            cannot be left out any more without changing the planned steps, so `skip` is of use with it alone.
    """

    def __init__(self, on_bad_row: OnBadRow = "error", decode: bool = False) -> None:
        """Nothing was met yet."""
        self.on_bad_row = on_bad_row
        self.decode = decode
        self.bad: list[RowError] = []
        """The wrong rows, in the order in which they were met."""
        self.dropped: Counter[str] = Counter()
        """Rows that a rule of the source drops, such as contradicting annotations, by reason."""
        self.counts: Counter[str] = Counter()
        """What the source is known by, such as how its annotations came together."""
        self.broken: set[Row] = set()
        """The rows of posts whose pictures turned out to be broken after the row itself was found to be right."""
        self.settle: Callable[[], Iterable[Row]] = tuple
        """Waits for the pictures that are being looked at, and gives the rows whose picture is broken."""

    def add(self, error: RowError) -> None:
        """Lists a wrong row, or raises it where wrong rows stop the reading."""
        if self.on_bad_row == "error":
            raise error
        self.bad.append(error)

    def is_broken(self, row: Row) -> bool:
        """Whether the picture of an earlier row turned out to be broken, or is just about to."""
        if row not in self.broken:
            self.broken.update(self.settle())
        return row in self.broken

    def left_out(self) -> dict[str, int]:
        """How many rows were left out, wrong ones and those that a rule of the source drops; empty when none was."""
        return ({"wrong rows": len(self.bad)} if self.bad else {}) | dict(self.dropped)

    def write(self, path: Path) -> None:
        """Writes the wrong rows as JSON Lines: `file`, `row` or `line`, `field`, `problem`, `remedy`."""
        write_atomic(path, "".join(error.to_json() + "\n" for error in self.bad))


def summarise(errors: Sequence[RowError]) -> str:
    """How many wrong rows there are, by field, in words."""
    fields = Counter(error.field or "the row itself" for error in errors)
    return ", ".join(f"{field} {count}" for field, count in fields.most_common())


def shown(value: object, limit: int = 80) -> str:
    """A value as an error quotes it: on one line, and cut when it is long."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def one_line(path: Path) -> str:
    """A path as an error names it: on one line whatever characters it holds."""
    return str(path) if str(path).isprintable() else repr(str(path))


def filled(row: Row, field: str, value: object) -> str:
    """A field that must be text with something in it; None stands for a key that is missing."""
    if value is None:
        raise row.error(field, "it is missing", "give it a text")
    if not isinstance(value, str):
        raise row.error(field, f"{shown(value)} is no text", "put it into quotes as a text")
    if not value.strip():
        raise row.error(field, "it is empty", "give it a text")
    if "\0" in value or not _is_unicode(value):
        raise row.error(field, f"{shown(value)} holds a NUL or half a surrogate pair", "take that character out")
    return value


def _is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8; JSON escapes can spell text that cannot."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
