"""What `mulcot data check` found, as plain frozen values: `check_display` prints them, `to_dict` gives them as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from data_modules.readers.row_log import PictureError, PictureFault, RowError


@dataclass(frozen=True, slots=True)
class Spread:
    """How a number varies."""

    min: int
    median: float
    mean: float
    p95: float
    """95% of the values are at most this (linear between two of them)."""
    max: int

    @classmethod
    def of(cls, values: Sequence[int]) -> Spread | None:
        """The spread of some numbers; None when there are none."""
        if not len(values):
            return None
        numbers = np.asarray(values)
        median, most = np.percentile(numbers, [50, 95]).tolist()
        return cls(int(numbers.min()), median, float(numbers.mean()), most, int(numbers.max()))


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long texts are."""

    characters: Spread
    words: Spread
    """Words are what blanks part."""


@dataclass(frozen=True, slots=True)
class WrongRow:
    """A row that a reading leaves out, as a line of `bad_rows.jsonl` names it."""

    file: str
    unit: str
    """`row` for the entries of an array, `line` for the lines of a file."""
    number: int
    field: str | None
    """None when the row as a whole is wrong."""
    problem: str
    remedy: str

    @classmethod
    def of(cls, errors: Iterable[RowError]) -> tuple[WrongRow, ...]:
        """The errors of a log, by file and row."""
        rows = [
            cls(str(error.row.path), error.row.unit, error.row.number, error.field, error.problem, error.remedy)
            for error in errors
        ]
        return tuple(sorted(rows, key=lambda row: (row.file, row.number)))


@dataclass(frozen=True, slots=True)
class Groups:
    """Things that are equal though their names differ."""

    groups: int
    """How many things there are more than once."""
    posts: int
    """How many posts have one of them."""
    examples: tuple[tuple[str, ...], ...]
    """The names in each of the first ten groups."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """The readable pictures of a section."""

    distinct: int
    """Different files; pictures that lie in a table, and so have no file of their own, count by their bytes."""
    shared: int
    """How many of them several posts have."""
    width: Spread | None
    """Pixels, upright."""
    height: Spread | None
    """Pixels, upright."""
    narrowest: float | None
    """The smallest width divided by height."""
    widest: float | None
    """The largest width divided by height."""
    formats: dict[str, int]
    """Pictures by format, told by their content."""
    bytes: int
    """Of all pictures together, encoded."""
    duplicates: Groups | None
    """Different files with the same bytes; None when only headers were read."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Pictures that cannot be used, for one reason."""

    pictures: int
    """Different ones."""
    posts: int
    """How many posts have one of them; each is a wrong row."""


@dataclass(frozen=True, slots=True)
class LostPictures:
    """The pictures of a section that its posts are left out for."""

    missing: Lost
    """There is no such file, or it is a folder or a broken link."""
    unreadable: Lost
    """They are empty, no pictures, damaged or too large."""
    outside: Lost
    """Their paths lead out of the image root."""

    @classmethod
    def of(cls, errors: Iterable[RowError]) -> LostPictures:
        """Those among the errors of a log."""
        names: dict[PictureFault, list[str]] = {"missing": [], "unreadable": [], "outside": []}
        for error in errors:
            if isinstance(error, PictureError):
                names[error.fault].append(error.picture)
        return cls(**{fault: Lost(len(set(given)), len(given)) for fault, given in names.items()})


@dataclass(frozen=True, slots=True)
class Section:
    """One split, or all posts of a source without splits. Every number is over the posts that can be used."""

    name: str
    """`train`, `val`, `test`, or `all`."""
    error: str | None
    """Why the split could not be read to its end; None when it could."""
    posts: int
    without_label: int
    labels: dict[str, int]
    """Posts by gold label, in the order of the label set."""
    settings: dict[str, int]
    """Posts by setting, `msc` and `masc`."""
    text: Lengths | None
    aspect: Lengths | None
    aspects: int
    """Different aspects."""
    pictures: Pictures
    lost_pictures: LostPictures
    dropped: dict[str, int]
    """Rows that a rule of the source drops, by reason."""
    counts: dict[str, int]
    """What else the reader counted."""
    wrong_rows: tuple[WrongRow, ...]
    conflicts: tuple[dict[str, str], ...]
    """Posts with equal text, picture and aspect but different labels: id and label, one dictionary a group."""
    duplicates: Groups
    """Posts in which all but the id is equal."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """What stands in more than one split."""

    number: int
    """How many ids, pictures or texts do; for near-copies, how many pairs of texts."""
    posts: dict[str, int]
    """Posts of every other split that have a counterpart in `train`."""
    examples: tuple[dict[str, str], ...]
    """The first ten: split and id of the first post there."""


@dataclass(frozen=True, slots=True)
class Across:
    """What the splits have in common."""

    ids: Overlap
    pictures: Overlap
    texts: Overlap
    """Equal texts."""
    near_copies: Overlap | None
    """Texts that are nearly equal, without those that are equal; None when they were not looked for."""


@dataclass(frozen=True, slots=True)
class Replies:
    """The teacher's replies that come with the posts."""

    given: int
    parsed: int
    """How many hold all five fields."""
    refused: dict[str, str]
    """Post id and reason of those that do not."""
    contradicting: dict[str, dict[str, str]]
    """Post id, then `label` and `prediction`, where the two differ."""
    without_post: int
    """Replies to posts that were left out; they are not looked at."""
    fields: dict[str, Lengths]
    """Lengths of the five fields, and under `whole` of the rationale as a student writes it."""


@dataclass(frozen=True, slots=True)
class RationaleFiles:
    """The rationale files that were given."""

    errors: tuple[str, ...]
    """Files that could not be read to their end."""
    records: int
    """Rationales that training would use."""
    sources: dict[str, int]
    """Rationales by source."""
    posts: dict[str, int]
    """Posts with a rationale, by split."""
    per_post: Spread | None
    """Rationales of a post that has any."""
    fields: dict[str, Lengths]
    """As for replies."""
    wrong_rows: tuple[WrongRow, ...]


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a data set holds and what is wrong with it."""

    sections: tuple[Section, ...]
    across: Across | None
    """None when there is only one section."""
    replies: Replies | None
    """None when the source has none."""
    rationales: RationaleFiles | None
    """None when no file was given."""

    @property
    def posts(self) -> int:
        """Posts that can be used."""
        return sum(section.posts for section in self.sections)

    @property
    def problem_counts(self) -> dict[str, int]:
        """What training would drop, or what would stop it, by kind.

        Duplicates, conflicting labels and whatever stands in two splits are for the user to judge: nothing drops
        them, and they are not counted here.
        """
        replies, rationales = self.replies, self.rationales
        return {
            "unreadable files": sum(section.error is not None for section in self.sections)
            + (len(rationales.errors) if rationales else 0),
            "wrong rows": sum(len(section.wrong_rows) for section in self.sections),
            "rows left out by a rule": sum(sum(section.dropped.values()) for section in self.sections),
            "refused replies": len(replies.refused) if replies else 0,
            "contradicting replies": len(replies.contradicting) if replies else 0,
            "wrong rationales": len(rationales.wrong_rows) if rationales else 0,
        }

    @property
    def problems(self) -> int:
        """The sum of `problem_counts`; the verb leaves with 1 unless it is 0."""
        return sum(self.problem_counts.values())

    def to_dict(self) -> dict[str, Any]:
        """Everything, in values that `json.dumps` takes."""
        return {"posts": self.posts, "problems": self.problems, "problem_counts": self.problem_counts, **_plain(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, WrongRow):
        texts = {"field": value.field, "problem": value.problem, "remedy": value.remedy}
        return {"file": value.file, value.unit: value.number, **texts}
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
