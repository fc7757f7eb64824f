"""Pictures that lie in the Arrow files of a Hugging Face data set, read when they are needed."""

from __future__ import annotations

import os
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_modules.readers.row_log import one_line, shown
from mulcot.types import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

_TEXT = ("string", "large_string")
_BYTES = ("binary", "large_binary")


@dataclass(frozen=True, slots=True)
class PictureColumn:
    """The column of a data set's Arrow files that its pictures are in; every process maps the files for itself."""

    files: tuple[Path, ...]
    """The files, in order."""
    first_rows: tuple[int, ...]
    """The row of the data set that each file begins with, counted from 0."""
    column: str
    """The column's name."""

    @classmethod
    def of(cls, dataset: Dataset, place: Path, column: str) -> PictureColumn:
        """The column of a split that was loaded.

        Raises:
            InputError: The rows of the split are not those of its files one by one.
        """
        files = tuple(Path(file["filename"]) for file in dataset.cache_files)
        lengths = [_open(file).num_rows for file in files]
        if sum(lengths) != len(dataset):
            raise InputError(f"{one_line(place)}: its rows are not those of its files; save it again with save_to_disk")
        return cls(files, tuple(accumulate(lengths, initial=0))[:-1], column)

    def read(self, row: int) -> bytes:
        """The bytes in one row of the data set, counted from 0."""
        at = bisect_right(self.first_rows, row) - 1
        column = _open(self.files[at]).column(self.column)
        cell = column[row - self.first_rows[at]]
        return bytes((cell if str(column.type) in _BYTES else cell["bytes"]).as_buffer())


@dataclass(frozen=True, slots=True)
class DatasetPicture:
    """A picture inside a data set. Two are equal when place and row are."""

    place: str
    """The data set and its split, as errors name them."""
    row: int
    """The row, counted from 0."""
    source: PictureColumn = field(compare=False, repr=False)
    """Where the bytes are."""

    def read_bytes(self) -> bytes:
        """The encoded picture.

        Raises:
            InputError: The file that it is in cannot be read any more.
        """
        try:
            return self.source.read(self.row)
        except OSError as error:
            raise InputError(f"{self}: the data set's file cannot be read ({error.strerror}); put it back") from error

    def __str__(self) -> str:
        """The place as an error names it, the row counted from 1."""
        return f"{self.place}, row {self.row + 1}"


def pictures(column: pa.ChunkedArray, place: str, start: int, source: PictureColumn) -> list[Any]:
    """For each row a `DatasetPicture`, a path, or None; of the bytes only their being there is looked at.

    Args:
        column: A piece of the column.
        place: What errors call the split.
        start: The split's row that the piece begins with, counted from 0.
        source: The column as a whole.
    """
    import pyarrow.compute as pc

    if str(column.type) in _TEXT:
        return column.to_pylist()
    paths: list[str | None] = [None] * len(column)
    if str(column.type) not in _BYTES:
        paths = pc.struct_field(column, "path").to_pylist()
        column = pc.struct_field(column, "bytes")
    inside = column.is_valid().to_pylist()
    rows = enumerate(zip(inside, paths, strict=True), start)
    return [DatasetPicture(place, row, source) if within else path for row, (within, path) in rows]


def check_picture_type(kind: pa.DataType, where: str, has_root: bool) -> None:
    """Refuses a column that does not hold one picture a post.

    Args:
        kind: The column's type in the table.
        where: What errors call the column.
        has_root: Whether there is a folder that paths are relative to.

    Raises:
        InputError: It holds lists, paths to nowhere, or something else.
    """
    import pyarrow.types as types

    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        raise InputError(f"{where}: it holds several pictures a post; name a column with one picture")
    if str(kind) in _TEXT:
        if not has_root:
            raise InputError(f"{where}: it holds paths; give the folder that they are relative to as image_root")
        return
    encoded = types.is_struct(kind) and {kind.field(at).name for at in range(kind.num_fields)} == {"bytes", "path"}
    if not encoded and str(kind) not in _BYTES:
        raise InputError(f"{where}: it holds {shown(str(kind))}; use datasets.Image, bytes or paths")


def _open(path: Path) -> pa.Table:
    """The mapped file, opened once in a process as long as it stays the same."""
    status = os.stat(path)
    return _mapped(path, status.st_ino, status.st_mtime_ns)


@cache
def _mapped(path: Path, inode: int, changed: int) -> pa.Table:
    import pyarrow as pa

    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
