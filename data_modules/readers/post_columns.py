"""Which column of a table holds which field of a post, and what the values in it mean; for tables of every kind."""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from data_modules.readers.base import PostChecks, as_digits, filled
from data_modules.readers.row_log import Row, RowError, RowLog, shown
from data_modules.readers.table_files import Values
from mulcot.types import InputError, Post, Split, StoredPicture

FIELDS: Final = ("id", "text", "image", "aspect", "label")
SLICE: Final = "slices."
"""What the name of a field begins with that holds a slice; the column's name follows."""
PICTURE_SUFFIXES: Final = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""By which a file name looks like one of a picture."""
_BETWEEN: Final = re.compile(r"[;|,\n]")
"""What parts the pictures where a cell names several."""


class PostColumns:
    """What holds for all tables of a reader.

    Args:
        columns: The user's names of columns, by field; None for a field that is not to be read.
        labels: The labels that posts may have.
        label_names: What the table's spellings or codes stand for; None or none when it has the labels themselves.
        aspect_in_text: Whether the text must hold the aspect.
        check_images: Whether every picture must exist.
        defaults: The fields that the reader knows, and the column of each where the user names none.
        needed: The fields whose column must be there even so.
        named_by_picture: Whether a post without an id is called by its picture unless the user says where ids are.
        slices: The columns that say which groups a post belongs to.

    Raises:
        InputError: An argument is wrong.
    """

    def __init__(
        self,
        columns: Mapping[str, str | None] | None,
        labels: Sequence[str],
        label_names: Mapping[str, str] | None,
        aspect_in_text: bool,
        check_images: bool,
        defaults: Mapping[str, str],
        needed: Collection[str],
        named_by_picture: bool = False,
        slices: Sequence[str] = (),
    ) -> None:
        """Check the arguments."""
        given = dict(columns or {})
        _check_fields(given, defaults)
        _check_slices(slices)
        self.slices = {SLICE + column: column for column in slices}
        """The fields of slices and their columns."""
        self.fields = (*FIELDS, *self.slices)
        """The fields that posts are made of."""
        named = {field: name for field, name in {**defaults, **given}.items() if name is not None}
        self.names = named | self.slices
        """The column of every field that is read."""
        self.needed = ({*needed} | {*given} | {*self.slices}) & {*self.names}
        """The fields whose column must be there."""
        self.labels = tuple(labels)
        self.label_names = _label_names(label_names, self.labels) if label_names else None
        self.aspect_in_text = aspect_in_text
        self.check_images = check_images
        self.named_by_picture = named_by_picture and "id" not in given


class PostReading:
    """One pass over the tables of a reader. Where rows have no id at all, a post is called by its split and row.

    Args:
        columns: What holds for all of them.
        split: The split whose posts are asked for.
        image_root: The folder that their pictures are relative to.
        log: See `PostChecks`.

    Raises:
        InputError: See `PostChecks`.
    """

    def __init__(self, columns: PostColumns, split: Split, image_root: Path, log: RowLog | None = None) -> None:
        """No id was met yet."""
        self.columns = columns
        self.split = split
        self.root = image_root
        names = {field: name for field, name in columns.names.items() if field in FIELDS}
        self.checks = PostChecks(columns.labels, image_root, columns.check_images, columns.aspect_in_text, names, log)

    def post(self, row: Row, values: Values | RowError) -> Post:
        """A row's post.

        Raises:
            RowError: The row is wrong.
        """
        if isinstance(values, RowError):
            raise values
        image = self._image(row, values.get("image"))
        id_ = values.get("id")
        if id_ is None and self.columns.named_by_picture:
            id_ = f"{self.split}/{PurePosixPath(str(image))}"
        elif "id" not in values:
            id_ = f"{self.split}-{row.number}"
        return self.checks.post(
            row,
            id=id_,
            text=values.get("text"),
            image=image,
            aspect=values.get("aspect"),
            label=self._label(row, values.get("label")),
            slices=self._slices(row, values),
        )

    def _slices(self, row: Row, values: Values) -> tuple[tuple[str, str], ...]:
        """The groups that a row names; an empty cell names none."""
        given = ((column, values.get(field)) for field, column in self.columns.slices.items())
        return tuple((column, _group(row, column, value)) for column, value in given if value not in (None, ""))

    def _image(self, row: Row, value: object) -> str | StoredPicture:
        """A row's picture: one that was found already, or the path of the only one."""
        column = self.columns.names["image"]
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, list):
            raise _pictures(row, column, len(value))
        if not isinstance(value, str) and isinstance(value, StoredPicture):
            return value
        name = filled(row, column, value)
        if not _BETWEEN.search(name):
            return name
        parts = [part.strip(" \t\r\"'[]") for part in _BETWEEN.split(name)]
        alike = all(part.lower().endswith(PICTURE_SUFFIXES) for part in parts)
        if alike and not os.path.isfile(os.path.join(self.root, name)):
            raise _pictures(row, column, len(parts))
        return name

    def _label(self, row: Row, value: object) -> object:
        """The label that a spelling or code of the table stands for; whole numbers count as their digits."""
        if value is None or isinstance(value, bool):
            return value
        names, column = self.columns.label_names, self.columns.names["label"]
        if isinstance(value, float):
            right = f"write {value:.0f}" if value.is_integer() else "write a whole number or a text"
            raise row.error(column, f"{value} is a decimal number", right)
        code = as_digits(value)
        if names is None:
            if isinstance(value, int) and code not in self.columns.labels:
                remedy = f"say what such codes stand for (label_names: {{{code!r}: {self.columns.labels[0]}, ...}})"
                raise row.error(column, f"{value} is a number", remedy)
            return code
        code = filled(row, column, code)
        if code not in names:
            choices = ", ".join(f"{name!r} ({label})" for name, label in names.items())
            problem = f"{shown(code)} is not in label_names"
            raise row.error(column, problem, f"use one of {choices}, or name it in `label_names`")
        return names[code]


def image_column(columns: Mapping[str, str | None] | None, default: str) -> str:
    """The column that holds the picture, from the user's names of columns; a wrong name is said when posts are read."""
    return (columns or {}).get("image") or default


def id_of(values: Values | RowError) -> object:
    """The id in a row, for `PostChecks.note_id`; None where it has none or cannot be read."""
    return None if isinstance(values, RowError) else values.get("id")


def _group(row: Row, column: str, value: object) -> str:
    """The name of a group: a text, a whole number as its digits, yes or no."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    name = as_digits(value)
    if not isinstance(name, str):
        problem = f"{shown(str(value))} is no text, whole number or truth value"
        raise row.error(column, problem, "write the name of the group, or take the column out of `slices`")
    return filled(row, column, name).strip()


def _pictures(row: Row, column: str, count: int) -> RowError:
    remedy = "a post has one: split it into several posts or name the one that counts"
    return row.error(column, f"{count} pictures", remedy)


def _check_fields(given: Mapping[str, str | None], defaults: Mapping[str, str]) -> None:
    for field, column in given.items():
        if field not in defaults:
            raise InputError(f"columns: there is no field {field!r}; the fields are {', '.join(defaults)}")
        if column is None and field not in ("id", "aspect", "label"):
            raise InputError(f"columns: {field} cannot be null; name the column that holds it")
        if column is not None and not (isinstance(column, str) and column):
            raise InputError(f"columns: {field}: {column!r} is no name of a column; give it as a text")


def _check_slices(slices: Sequence[str]) -> None:
    named = isinstance(slices, str) or not all(isinstance(column, str) and column for column in slices)
    if named or len(set(slices)) < len(slices):
        raise InputError(f"slices: {slices!r} is no list of columns, each named once; give one, such as [conflict]")


def _label_names(names: Mapping[str, str], labels: Sequence[str]) -> dict[str, str]:
    """The user's names of labels, whose keys YAML may have made numbers."""
    for name, label in names.items():
        if label not in labels:
            raise InputError(f"label_names: {name!r} stands for {label!r}, which is no label; use {', '.join(labels)}")
    return {str(name): label for name, label in names.items()}
