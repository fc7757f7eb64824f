"""Text files, read line by line and in any encoding, with errors that say where a byte is wrong."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from data_modules.readers.row_log import Row, RowError, one_line
from mulcot.regular_files import open_regular
from mulcot.types import InputError

_MARK = "\ufeff"
"""The byte order mark as text; some programs begin a file with it in every encoding that has it."""
_REMEDY: Final = "save the file as UTF-8, or name its `encoding` where the reader takes one"
LONGEST_LINE: Final = 64 << 20
"""Bytes; a line is held in memory."""
_LOOKED_AT: Final = 100
"""Lines at the beginning of a file that tell one wrong line from a file of another encoding."""


class TextLine(NamedTuple):
    """A line of a file."""

    text: str
    """With its end, and with U+FFFD where a byte is wrong."""
    wrong_byte: int | None
    """The first byte that is not of the encoding, counted from 1; None when all are."""


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """A file's text, without a byte order mark.

    Raises:
        InputError: There is no such file, it cannot be opened, or it is not of the encoding.
    """
    check_encoding(encoding)
    with opened(path) as file:
        raw = file.read()
    try:
        return raw.decode(encoding).removeprefix(_MARK)
    except UnicodeError as error:
        raise _not_of(encoding, one_line(path), error) from error


def read_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[Row, str | RowError]]:
    """The lines of a file that hold something, each with its place. Only LF and CRLF end a line: posts hold others.

    A line that holds a byte of another encoding comes as an error, so that it can be left out.

    Raises:
        InputError: See `text_lines`.
    """
    for number, (line, wrong) in enumerate(text_lines(path, encoding), 1):
        row = Row(path, number, "line")
        if wrong is not None:
            yield row, wrong_byte(row, number, wrong, encoding)
        elif line.strip():
            yield row, line.removesuffix("\n").removesuffix("\r")


def wrong_byte(row: Row, line: int, byte: int, encoding: str) -> RowError:
    """The error for a row that holds a byte of another encoding.

    Args:
        row: The row.
        line: The line of the file that the byte is in, which is another than the row's where rows span several.
        byte: Which byte of that line, counted from 1.
        encoding: What the file should be.
    """
    place = f"byte {byte}" if line == row.number else f"byte {byte} of line {line}"
    return RowError(row, None, f"{place} is not {encoding.upper()}", _REMEDY)


def text_lines(path: Path, encoding: str = "utf-8") -> Iterator[TextLine]:
    """All lines of a file, one by one; only LF ends a line.

    A file of an encoding that writes LF in another way than ASCII, such as UTF-16, is held in memory whole.

    Raises:
        InputError: There is no such file, or it cannot be opened; or it is of another encoding, as a file is when most
            lines at its beginning are.
    """
    check_encoding(encoding)
    if "a\n".encode(encoding) != b"a\n":
        yield from (TextLine(line, None) for line in StringIO(read_text(path, encoding), newline="\n"))
        return
    wrong = False
    with opened(path) as file:
        for number, raw in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), 1):
            if len(raw) > LONGEST_LINE:
                row = Row(path, number, "line")
                raise InputError(f"{row}: more than {LONGEST_LINE} bytes; end every row with a line break")
            byte = None
            try:
                line = raw.decode(encoding)
            except UnicodeError as error:
                if not wrong and _is_of_another(path, encoding):
                    raise _not_of(encoding, str(Row(path, number, "line")), error) from error
                wrong = True
                line, byte = raw.decode(encoding, "replace"), _byte_of(error)
            yield TextLine(line.removeprefix(_MARK) if number == 1 else line, byte)


def _is_of_another(path: Path, encoding: str) -> bool:
    """Whether most of a file's first lines cannot be read; NUL bytes tell of UTF-16."""
    seen = wrong = 0
    with opened(path) as file:
        for raw in iter(lambda: file.readline(LONGEST_LINE), b""):
            if seen == _LOOKED_AT:
                break
            if raw.strip():
                seen += 1
                wrong += b"\0" in raw or not _is_of(encoding, raw)
    return 2 * wrong > seen


def _is_of(encoding: str, raw: bytes) -> bool:
    try:
        raw.decode(encoding)
    except UnicodeError:
        return False
    return True


def check_encoding(encoding: str) -> None:
    """Refuse a name that is no text encoding.

    Raises:
        InputError: It is none.
    """
    try:
        "a\n".encode(encoding)
    except (LookupError, ValueError) as error:
        raise InputError(
            f"encoding: there is no text encoding {encoding!r}; give one such as utf-8, utf-16 or gb18030"
        ) from error


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes.

    Raises:
        InputError: There is no such file, it is a pipe or a device, or it cannot be opened or read.
    """
    try:
        with open_regular(path) as file:
            yield file
    except FileNotFoundError as error:
        raise InputError(
            f"{one_line(path)}: there is no such file; check the path in the reader's arguments"
        ) from error
    except OSError as error:
        raise InputError(f"{one_line(path)}: it cannot be read ({error.strerror}); give a readable file") from error


def _not_of(encoding: str, where: str, error: UnicodeError) -> InputError:
    return InputError(f"{where}: byte {_byte_of(error)} is not {encoding.upper()}; {_REMEDY}")


def _byte_of(error: UnicodeError) -> int:
    """The first byte that is wrong, counted from 1."""
    return error.start + 1 if isinstance(error, UnicodeDecodeError) else 1
