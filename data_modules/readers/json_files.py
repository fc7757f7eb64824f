"""Posts written as JSON, with errors that say where a file or an entry is none."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from data_modules.readers.row_log import Row, RowError, one_line, shown
from data_modules.readers.text_files import read_text
from mulcot.types import InputError


class RepeatedKey(dict[str, Any]):
    """A JSON object that has a key twice, so that it cannot be told which of the two values is meant."""

    key: str
    """The first such key."""


def json_list(path: Path, encoding: str = "utf-8") -> Iterator[tuple[Row, object]]:
    """The entries of a file that holds one JSON list, each with its place; none where the file is empty.

    Raises:
        InputError: The file cannot be read, or holds no JSON list.
    """
    text = read_text(path, encoding)
    if not text.strip():
        return
    entries = parse_json(one_line(path), text)
    if not isinstance(entries, list):
        raise InputError(f"{one_line(path)}: it holds no JSON list; write [{{...}}, {{...}}], one object a post")
    for number, entry in enumerate(entries, 1):
        yield Row(path, number), entry


def json_line(row: Row, line: str | RowError) -> dict[str, Any]:
    """A line of a JSON Lines file, as `read_lines` gives it.

    Raises:
        RowError: It could not be read, or is no JSON object, or one that has a key twice.
    """
    if isinstance(line, RowError):
        raise line
    try:
        return as_object(row, parse_json(row, line))
    except RowError:
        raise
    except InputError as error:
        problem, _, remedy = str(error).removeprefix(f"{row}: ").rpartition("; ")
        raise RowError(row, None, problem, remedy) from error


def parse_json(where: object, text: str) -> Any:
    """Text as JSON; `where` opens the error when it is none."""
    try:
        return json.loads(text) if text.startswith(_MARK) else _DECODER.decode(text)  # which does not name a mark
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{where}: no valid JSON at {place} ({error.msg}); correct it there") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: JSON with a number or a nesting beyond reason; correct it") from error


def as_object(row: Row, value: object) -> dict[str, Any]:
    """An entry that must be a JSON object with every key once; what is nested in it is not looked at.

    Raises:
        RowError: It is none.
    """
    if isinstance(value, RepeatedKey):
        raise RowError(row, None, f"the key {shown(value.key)} stands twice", "write every key once")
    if not isinstance(value, dict):
        raise RowError(row, None, f"{shown(value)} is no JSON object", 'write {"id": ..., "text": ..., ...}')
    return value


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The object; one with a key twice is kept apart, for it is its row that is wrong, not the whole file."""
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    repeated = RepeatedKey(values)
    times = Counter(name for name, _ in pairs)
    repeated.key = next(name for name, number in times.items() if number > 1)
    return repeated


_MARK: Final = "\ufeff"
_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object)
"""One for all lines: `json.loads` would make one for each."""
