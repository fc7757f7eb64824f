"""Posts written as JSON, with errors that say where a file or an entry is none."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_modules.readers.row_log import Row, RowError, one_line, shown
from data_modules.readers.text_files import read_text
from mulcot.types import InputError


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


def json_line(row: Row, line: str) -> dict[str, Any]:
    """A line of a JSON Lines file.

    Raises:
        RowError: It is no JSON object.
    """
    try:
        return as_object(row, parse_json(str(row), line))
    except RowError:
        raise
    except InputError as error:
        problem, _, remedy = str(error).removeprefix(f"{row}: ").rpartition("; ")
        raise RowError(row, None, problem, remedy) from error


def parse_json(where: str, text: str) -> Any:
    """Text as JSON; `where` opens the error when it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{where}: no valid JSON at {place} ({error.msg}); correct it there") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: JSON with a number or a nesting beyond reason; correct it") from error


def as_object(row: Row, value: object) -> dict[str, Any]:
    """An entry that must be a JSON object."""
    if not isinstance(value, dict):
        raise RowError(row, None, f"{shown(value)} is no JSON object", 'write {"id": ..., "text": ..., ...}')
    return value
