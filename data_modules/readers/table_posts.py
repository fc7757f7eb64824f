"""How the rows of table files become posts."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from data_modules.readers.base import Entries, checked, not_empty
from data_modules.readers.post_columns import PostColumns, PostReading, id_of
from data_modules.readers.row_log import OnBadRow, Places, Row, RowLog
from data_modules.readers.table_files import TableRows, table_rows
from data_modules.readers.text_files import check_encoding
from mulcot.types import InputError, Split


class TablePosts:
    """What holds for all table files of a reader.

    Args:
        columns: What their columns are.
        encoding: That of a text file.
        delimiter: What parts the cells of a CSV or TSV file; None for comma and tab.

    Raises:
        InputError: An argument is wrong.
    """

    def __init__(self, columns: PostColumns, encoding: str, delimiter: str | None) -> None:
        """Check the arguments; nothing is read."""
        _check_delimiter(delimiter)
        check_encoding(encoding)
        self.columns = columns
        self.encoding = encoding
        self.delimiter = delimiter
        self._known: dict[OnBadRow, tuple[object, dict[Split, Places[str]]]] = {}

    def rows(self, path: Path, fields: Collection[str] | None = None) -> TableRows:
        """The rows of a table with these fields alone; None for those that posts are made of.

        Raises:
            InputError: See `table_rows`.
        """
        wanted = self.columns.fields if fields is None else fields
        names = {field: name for field, name in self.columns.names.items() if field in wanted}
        return table_rows(path, names, self.columns.needed & names.keys(), self.encoding, self.delimiter)

    def entries(self, split: Split, tables: Mapping[Split, Path], image_root: Path, log: RowLog) -> Entries:
        """The posts of one of several tables, none of which has an id that stands in another one.

        Raises:
            InputError: See `table_rows`; or a row is wrong.
        """

        def ids_of(other: Split) -> Iterator[tuple[Row, object]]:
            path = tables.get(other)
            if path is not None and path.is_file() and "id" in self.columns.names:
                for row, values in self.rows(path, ("id",)):
                    yield row, id_of(values)

        def kept(other: Split, log: RowLog) -> Entries:
            return self.entries(other, tables, image_root, log)

        reading = PostReading(self.columns, split, image_root, log)
        posts = checked(not_empty(tables[split], self.rows(tables[split])), reading.post, log)
        return reading.checks.across_splits(split, posts, ids_of, log, kept, self._known_ids(tables, log))

    def _known_ids(self, tables: Mapping[Split, Path], log: RowLog) -> dict[Split, Places[str]] | None:
        """The ids that earlier readings of these files have met; None where posts may be called by something else."""
        if "id" not in self.columns.needed:
            return None
        files = {split: (path, path.stat()) for split, path in tables.items() if path.is_file()}
        state = [(split, path, file.st_ino, file.st_size, file.st_mtime_ns) for split, (path, file) in files.items()]
        if log.on_bad_row not in self._known or self._known[log.on_bad_row][0] != state:
            self._known[log.on_bad_row] = (state, {})
        return self._known[log.on_bad_row][1]


def _check_delimiter(delimiter: str | None) -> None:
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n\0'):
        problem = f"delimiter: {delimiter!r} cannot part the cells of a table"
        raise InputError(f'{problem}; give one character, such as ";" or "\\t" in double quotes')
