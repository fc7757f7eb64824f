"""Text files, read line by line and in any encoding, with errors that say where a byte is wrong."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import BinaryIO

from data_modules.readers.row_log import Row, one_line
from mulcot.types import InputError

_MARK = "\ufeff"
"""The byte order mark as text; some programs begin a file with it in every encoding that has it."""


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


def read_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[Row, str]]:
    """The lines of a file that hold something, each with its place. Only LF and CRLF end a line: posts hold others.

    Raises:
        InputError: See `read_text`.
    """
    for number, line in enumerate(text_lines(path, encoding), 1):
        if line.strip():
            yield Row(path, number, "line"), line.removesuffix("\n").removesuffix("\r")


def text_lines(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    """All lines of a file with their ends, one by one; only LF ends a line.

    A file of an encoding that writes LF in another way than ASCII, such as UTF-16, is held in memory whole.

    Raises:
        InputError: See `read_text`.
    """
    check_encoding(encoding)
    if "a\n".encode(encoding) != b"a\n":
        yield from StringIO(read_text(path, encoding), newline="\n")
        return
    with opened(path) as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode(encoding)
            except UnicodeError as error:
                raise _not_of(encoding, str(Row(path, number, "line")), error) from error
            yield line.removeprefix(_MARK) if number == 1 else line


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
        InputError: There is no such file, or it cannot be opened or read.
    """
    try:
        with open(path, "rb") as file:
            yield file
    except FileNotFoundError as error:
        raise InputError(
            f"{one_line(path)}: there is no such file; check the path in the reader's arguments"
        ) from error
    except OSError as error:
        raise InputError(f"{one_line(path)}: it cannot be read ({error.strerror}); give a readable file") from error


def _not_of(encoding: str, where: str, error: UnicodeError) -> InputError:
    byte = error.start + 1 if isinstance(error, UnicodeDecodeError) else 1
    remedy = "save the file as UTF-8, or name its `encoding` where the reader takes one"
    return InputError(f"{where}: byte {byte} is not {encoding.upper()}; {remedy}")
