"""A folder of pictures with a table that says which post each belongs to, as Hugging Face's imagefolder has it."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Final

from data_modules.readers.base import Entries, Reader, checked, filled, not_empty
from data_modules.readers.post_columns import FIELDS, PICTURE_SUFFIXES, PostColumns, PostReading, id_of, image_column
from data_modules.readers.row_log import Row, RowError, RowLog, one_line, shown
from data_modules.readers.table_files import Values
from data_modules.readers.table_posts import TablePosts
from mulcot.types import DEFAULT_LABELS, SPLITS, InputError, Post, Split

SPLIT_NAMES: Final[dict[str, Split]] = {
    "train": "train",
    "val": "val",
    "validation": "val",
    "valid": "val",
    "dev": "val",
    "test": "test",
}
TABLE_NAMES: Final = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "metadata.parquet")
UNNAMED: Final = "pictures that no row names"
_FILE_NAME: Final = "file_name"


class ImageFolder(Reader):
    """Pictures beside a table `metadata.jsonl`, `.csv`, `.tsv` or `.parquet`, in one of two forms.

    Either each split has a folder of its own, called `train`, `val` (or `validation`, `valid`, `dev`) or `test`, with
    a table in it; or there is one table in the folder itself, whose column `split` holds one of these names. The
    column `file_name` has the picture's path relative to the folder of the table. The other columns are those of
    `Table`, and so are the rules for them.

    A row without an id is called `<split>/<file_name>`, the split as mulcot calls it: that stays the same when rows
    are added or moved. Where several posts share a picture the table needs ids. Pictures that no row names are no
    error; `RowLog.counts` has their number.

    Args:
        folder: The folder.
        columns: The table's names of fields, see `Table`; here `split` is one too.
        labels: The labels that posts may have.
        label_names: What the table writes and which label that is, see `Table`.
        encoding: That of a text table.
        delimiter: What parts the cells of CSV and TSV tables, by default comma and tab.
        aspect_in_text: Whether the text must hold the aspect; false where aspects are categories.
        check_images: Whether every picture must exist.
        slices: Columns that say which groups a post belongs to, for tables of results: texts, whole numbers, or true
            and false, which become yes and no. No model sees them. An empty cell names no group.
    """

    def __init__(
        self,
        folder: Path,
        columns: dict[str, str | None] | None = None,
        labels: Sequence[str] = DEFAULT_LABELS,
        label_names: dict[str, str] | None = None,
        encoding: str = "utf-8",
        delimiter: str | None = None,
        aspect_in_text: bool = True,
        check_images: bool = True,
        slices: Sequence[str] = (),
    ) -> None:
        """Keep the arguments; a wrong one is an error when a split is asked for."""
        self.folder = Path(folder)
        self.image_root = self.folder
        self.image_field = image_column(columns, _FILE_NAME)
        self.labels = tuple(labels)
        self._columns = (columns, labels, label_names, aspect_in_text, check_images)
        self._format = (encoding, delimiter)
        self._slices = tuple(slices) if not isinstance(slices, str) else slices

    def entries(self, split: Split, log: RowLog) -> Entries:
        """See the base class.

        Raises:
            InputError: An argument is wrong; there is no table, or not one alone; the source has no such split; or
                as with `Table`.
        """
        root, tables = self._layout()
        splits = self.splits()
        if split not in splits:
            column = self._posts.columns.names["split"]
            where = f"a row with it in the column {column!r}" if root else f"{split}/metadata.jsonl"
            raise InputError(
                f"{one_line(root or self.folder)}: no split {split!r}, only {', '.join(splits) or 'none'}; add {where}"
            )
        if root is None:
            path = tables[split]
            yield from self._posts.entries(split, tables, path.parent, log)
        else:
            path = root
            yield from self._of_one_table(split, splits[0], path, log)
        if root is None or split == splits[0]:  # once for the pictures of all splits
            unnamed = self._unnamed(path)
            if unnamed:
                log.counts[UNNAMED] += unnamed

    def splits(self) -> tuple[Split, ...]:
        """Those that have a table of their own, or that the one table names.

        Raises:
            InputError: See `entries`.
        """
        root, tables = self._layout()
        if root is None:
            return tuple(split for split in SPLITS if split in tables)
        found = {str(values.get("split")) for _, values in self._rows(root, "split")}
        return tuple(split for split in SPLITS if any(SPLIT_NAMES.get(name) == split for name in found))

    @cached_property
    def _posts(self) -> TablePosts:
        """How the tables' rows become posts; a wrong argument shows here."""
        names = {field: field for field in (*FIELDS, "split")} | {"image": _FILE_NAME}
        needed = ("text", "image", "split")
        columns = PostColumns(*self._columns, names, needed, named_by_picture=True, slices=self._slices)
        return TablePosts(columns, *self._format)

    def files(self) -> list[Path]:
        """The tables."""
        folders = [self.folder, *(self.folder / name for name in SPLIT_NAMES)]
        return [path for folder in folders for path in _tables_in(folder)]

    def _layout(self) -> tuple[Path | None, dict[Split, Path]]:
        """The one table of the folder, or the tables of its splits."""
        if not self.folder.is_dir():
            raise InputError(f"folder: there is no folder {one_line(self.folder)}; give the folder of the pictures")
        root = _table_in(self.folder)
        tables: dict[Split, Path] = {}
        for name, split in SPLIT_NAMES.items():
            table = _table_in(self.folder / name)
            if table is None:
                continue
            if split in tables or root is not None:
                raise _two_tables(root or tables[split], table)
            tables[split] = table
        if root is None and not tables:
            names = "metadata.jsonl, .csv, .tsv or .parquet"
            raise InputError(
                f"{one_line(self.folder)}: there is no table; put {names} into it, or into its folders train, val, test"
            )
        return root, tables

    def _of_one_table(self, split: Split, first: Split, path: Path, log: RowLog) -> Entries:
        """The posts of a split in a table of all splits. A row that does not say its split is listed with the first."""
        reading = PostReading(self._posts.columns, split, path.parent, log)

        def post(row: Row, values: Values | RowError) -> Post | None:
            try:
                of_row = self._split_of(row, values)
            except RowError:
                if split == first or log.on_bad_row == "error":
                    raise
                return None
            if of_row == split:
                return reading.post(row, values)
            if log.on_bad_row == "error" or id_of(values) is None:
                reading.checks.note_id(of_row, row, id_of(values), log)
            else:
                with suppress(RowError):  # a wrong row takes no id, and is listed when its own split is read
                    reading.post(row, values)
            return None

        rows = self._posts.rows(path, (*self._posts.columns.fields, "split"))
        return checked(not_empty(path, rows), post, log)

    def _split_of(self, row: Row, values: Values | RowError) -> Split:
        if isinstance(values, RowError):
            raise values
        column = self._posts.columns.names["split"]
        name = filled(row, column, values.get("split"))
        if name not in SPLIT_NAMES:
            raise row.error(column, f"unknown split {shown(name)}", f"use one of {', '.join(SPLIT_NAMES)}")
        return SPLIT_NAMES[name]

    def _rows(self, path: Path, field: str) -> Iterator[tuple[Row, Values]]:
        """One column of a table; rows that cannot be read have none."""
        for row, values in self._posts.rows(path, (field,)):
            if not isinstance(values, RowError):
                yield row, values

    def _unnamed(self, table: Path) -> int:
        """How many pictures beside a table and below it no row of it names."""
        left = set(_pictures_below(table.parent))
        for _, values in self._rows(table, "image"):
            image = values.get("image")
            for name in image if isinstance(image, list) else [image]:
                left.discard(PurePosixPath(name).as_posix() if isinstance(name, str) else "")
        return len(left)


def _tables_in(folder: Path) -> list[Path]:
    return [folder / name for name in TABLE_NAMES if (folder / name).is_file()]


def _table_in(folder: Path) -> Path | None:
    """The table of a folder, which may have one at most."""
    tables = _tables_in(folder)
    if len(tables) > 1:
        raise _two_tables(*tables[:2])
    return tables[0] if tables else None


def _two_tables(one: Path, other: Path) -> InputError:
    return InputError(f"{one_line(other)}: {one_line(one)} is there as well; keep the table that counts")


def _pictures_below(folder: Path) -> Iterator[str]:
    """The paths of all pictures in a folder and below it, relative to it; hidden files are none."""
    for where, _, names in os.walk(folder):
        below = PurePosixPath(Path(where).relative_to(folder).as_posix())
        for name in names:
            if name.lower().endswith(PICTURE_SUFFIXES) and not name.startswith("."):
                yield (below / name).as_posix()
