"""The rows of a table file, whatever its format: JSON Lines, a JSON list, CSV, TSV or Parquet.

A row comes as the values of the fields that are asked for, by field; what is wrong with one row alone comes in its
place as an error, so that the row can be left out. All formats but the JSON list are read piece by piece.
"""

import csv
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from data_modules.readers.json_files import as_object, json_line, json_list
from data_modules.readers.row_log import Row, RowError, one_line, shown
from data_modules.readers.text_files import opened, read_lines, text_lines, wrong_byte
from mulcot.types import InputError

if TYPE_CHECKING:
    import pyarrow as pa

Values: TypeAlias = dict[str, object]
"""What a row holds, by field; None where it holds nothing, and no key where the table has no such column."""
TableRows: TypeAlias = Iterator[tuple[Row, Values | RowError]]

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_BATCH = 1024
"""Rows of a Parquet file that are in memory at a time."""
_LONGEST_CELL = 1 << 24
"""Characters of a cell that CSV is read with, so that a text which is too long is one wrong row; in a file with a
quotation mark that nothing closes it bounds what is held in memory."""


def check_suffix(path: Path) -> None:
    """Refuse a file whose name does not say that it is a table.

    Raises:
        InputError: Its suffix is not one of `SUFFIXES`.
    """
    if path.suffix.lower() not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise InputError(f"{one_line(path)}: {path.suffix!r} is no suffix of a table; convert it to one of {known}")


def table_rows(
    path: Path,
    names: Mapping[str, str],
    needed: Collection[str],
    encoding: str = "utf-8",
    delimiter: str | None = None,
) -> TableRows:
    """The rows of a table, in its order.

    Args:
        path: The file; its suffix says which format it has.
        names: The fields to read and the column of each.
        needed: The fields whose column must be there. A key of JSON counts as there when some row has it.
        encoding: That of a text file.
        delimiter: What parts the cells of a CSV or TSV file; None for comma and tab.

    Raises:
        InputError: The file is missing or damaged, is not of its format or encoding, or lacks a column.
    """
    check_suffix(path)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet_rows(path, names, needed)
    if suffix in _DELIMITERS:
        return _delimited_rows(path, names, needed, encoding, delimiter or _DELIMITERS[suffix])
    objects = _json_list(path, encoding) if suffix == ".json" else _json_lines(path, encoding)
    return _object_rows(path, objects, names, needed)


def _object_rows(path: Path, objects: TableRows, names: Mapping[str, str], needed: Collection[str]) -> TableRows:
    """The fields of JSON objects. Keys differ from row to row, so only at the end is it known that one is nowhere."""
    nowhere = {field: column for field, column in names.items() if field in needed}
    keys: list[str] | None = None
    for row, values in objects:
        if isinstance(values, RowError):
            yield row, values
            continue
        keys = list(values) if keys is None else keys
        if nowhere:
            nowhere = {field: column for field, column in nowhere.items() if column not in values}
        yield row, {field: values.get(column) for field, column in names.items()}
    if keys is not None and nowhere:
        field, column = next(iter(nowhere.items()))
        raise _no_column(path, field, column, keys)


def _json_lines(path: Path, encoding: str) -> TableRows:
    for row, line in read_lines(path, encoding):
        try:
            yield row, _nul(row) if isinstance(line, str) and "\0" in line else json_line(row, line)
        except RowError as error:
            yield row, error


def _json_list(path: Path, encoding: str) -> TableRows:
    for row, entry in json_list(path, encoding):
        try:
            yield row, as_object(row, entry)
        except RowError as error:
            yield row, error


def _delimited_rows(
    path: Path, names: Mapping[str, str], needed: Collection[str], encoding: str, delimiter: str
) -> TableRows:
    """The rows under the header of a CSV or TSV file; there is nothing to read in an empty file."""
    records = _records(path, encoding, delimiter)
    for row, header in records:
        if isinstance(header, RowError):
            raise header
        if any("\0" in name for name in header):
            raise _nul(row)
        if len(header) == 1 and re.search(r"[;,\t|]", header[0]):
            problem = f"the header {shown(header[0])} is one cell"
            raise InputError(f'{row}: {problem}; name what parts the cells, such as delimiter: ";"')
        check_columns(path, header, names, needed)
        places = {field: header.index(column) for field, column in names.items() if column in header}
        for place, cells in records:
            yield place, _cells(place, cells, len(header), places, names)


def _cells(
    row: Row, cells: Sequence[str] | RowError, width: int, places: Mapping[str, int], names: Mapping[str, str]
) -> Values | RowError:
    """The fields of one record. CSV has no null: an empty label is one that is not known, an empty aspect a mistake."""
    if isinstance(cells, RowError):
        return cells
    if len(cells) != width:
        remedy = "write one cell a column, in quotation marks where it holds the delimiter or a line break"
        return RowError(row, None, f"{len(cells)} cells under a header of {width} columns", remedy)
    if any("\0" in cell for cell in cells):
        return _nul(row)
    values: Values = {field: cells[place] for field, place in places.items()}
    if values.get("label") == "":
        values["label"] = None
    if values.get("aspect") == "":
        remedy = "give it a text, or leave the column out when posts have no aspect (columns: {aspect: null})"
        return row.error(names["aspect"], "it is empty", remedy)
    return values


def _records(path: Path, encoding: str, delimiter: str) -> Iterator[tuple[Row, list[str] | RowError]]:
    """The records of a CSV file, each with the line that it begins in; empty lines are none.

    A byte of another encoding is wrong in its record alone: the quotation marks around it are read as they are.
    """
    taken: list[str] = []
    """The lines of the record so far, to find the place of a mistake in it."""
    wrong: list[tuple[int, int]] = []
    """Line and byte of what is not of the encoding in these lines."""

    def lines() -> Iterator[str]:
        for number, (line, byte) in enumerate(text_lines(path, encoding), 1):
            taken.append(line)
            if byte is not None:
                wrong.append((number, byte))
            yield line

    # The limit belongs to the process; whoever set a higher one keeps it.
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    while True:
        row = Row(path, reader.line_num + 1, "line")
        taken.clear()
        wrong.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _no_csv(row, "".join(taken), delimiter, error) from error
        if wrong:
            yield row, wrong_byte(row, *wrong[0], encoding)
        elif len(cells) > 1 or "".join(cells).strip():
            yield row, cells


def _no_csv(row: Row, text: str, delimiter: str, error: csv.Error) -> InputError:
    """Why the lines of a record are no CSV, with the line in which the field opens that is not closed.

    What follows cannot be told from the inside of that field, so it is the file that is wrong, not one row.
    """
    cut = re.escape(delimiter)
    field = re.compile(rf'(?:"(?:[^"]|"")*+"|(?!")[^{cut}\n]*)(?:{cut}|\r?\n|\Z)')
    at = 0
    while at < len(text) and (found := field.match(text, at)):
        at = found.end()
    place = Row(row.path, row.number + text.count("\n", 0, at), row.unit)
    if text[at : at + 1] == '"':
        problem = "the quotation mark that opens a field here is not closed, or text follows the one that closes it"
        return InputError(f'{place}: {problem}; close it, and write a quotation mark inside of quotes as ""')
    if "new-line" in str(error):
        remedy = "end lines with LF or CRLF, and put a cell with a line break into quotation marks"
        return InputError(f"{row}: a carriage return alone stands outside of quotation marks; {remedy}")
    return InputError(f"{row}: no valid CSV ({error}); correct it there")


def _parquet_rows(path: Path, names: Mapping[str, str], needed: Collection[str]) -> TableRows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with opened(path):
        pass
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            check_columns(path, schema.names, names, needed)
            found = {field: column for field, column in names.items() if column in schema.names}
            for column in found.values():
                _check_type(path, schema.field(column))
            for batch in file.iter_batches(_BATCH, columns=sorted(set(found.values()))) if found else ():
                for values in batch.to_pylist():
                    number += 1
                    yield Row(path, number), {field: values[column] for field, column in found.items()}
    except UnicodeDecodeError as error:
        raise InputError(f"{one_line(path)}: a text after row {number} is not UTF-8; write the table again") from error
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{one_line(path)}: no whole Parquet file ({reason}); write it again") from error


def _check_type(path: Path, column: "pa.Field") -> None:
    """Refuse a column that holds no texts; what is wrong with a number or a list is said row by row."""
    from pyarrow import types

    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    texts = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    others = (types.is_integer, types.is_floating, types.is_boolean, types.is_list, types.is_large_list)
    if not any(holds(kind) for holds in (*texts, *others, types.is_fixed_size_list)):
        remedy = "make it a column of texts, a picture as its path; HuggingFace reads tables with pictures inside"
        raise InputError(f"{one_line(path)}, column {column.name!r}: it is of the type {shown(str(kind))}; {remedy}")


def check_columns(path: Path, there: Sequence[str], names: Mapping[str, str], needed: Collection[str]) -> None:
    """Refuse a table whose columns have one name twice, or that lacks one; nameless ones come from spreadsheets.

    Args:
        path: What errors call the table.
        there: The columns that it has.
        names: The fields to read and the column of each.
        needed: The fields whose column must be there.

    Raises:
        InputError: A column is missing, or stands twice.
    """
    for name, count in Counter(there).items():
        if count > 1 and name.strip():
            raise InputError(f"{one_line(path)}: the column {shown(name)} stands {count} times; name every column once")
    for field, column in names.items():
        if field in needed and column not in there:
            raise _no_column(path, field, column, there)


def _no_column(path: Path, field: str, column: str, there: Sequence[str]) -> InputError:
    remedy = f"say in the reader's arguments which one holds the {field}, as columns: {{{field}: NAME}}"
    if field not in ("id", "text", "image", "aspect", "label", "split"):  # of a slice
        remedy = f"take {column!r} out of the reader's argument slices, or write the column"
    listed = ", ".join(shown(name) for name in there[:30]) + (", ..." if len(there) > 30 else "")
    return InputError(f"{one_line(path)}: there is no column {column!r}, the columns are {listed}; {remedy}")


def _nul(row: Row) -> RowError:
    return RowError(row, None, "it holds a NUL byte", "take it out, or name the file's encoding (encoding: utf-16)")
