"""The data set of a run whose pictures lie in tables, opened although somebody else may have made the run.

A run's configuration is data here. Nothing of it is handed to a parser that imports what it names: the reader is one
of three, told by exact names, and its arguments are plain values of the types that its constructor declares.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, get_type_hints

from pydantic import TypeAdapter, ValidationError

from data_modules.readers import Converted, GroupedSplit, HuggingFace, Reader
from data_modules.readers.row_log import RowLog
from mulcot.config_files import MAX_BYTES
from mulcot.regular_files import open_regular, read_regular
from mulcot.types import InputError, StoredPicture

_SOURCES: Final[Mapping[str, type[Reader]]] = {
    f"{module}{kind.__name__}": kind
    for kind in (Converted, GroupedSplit, HuggingFace)
    for module in ("", "data_modules.readers.", f"{kind.__module__}.")
}
"""The readers whose pictures can lie in tables; of all others they are files, which predictions name."""


def stored_pictures(posts: Any) -> tuple[Path, dict[str, StoredPicture]]:
    """The pictures of the test posts that lie in a table.

    Args:
        posts: what a configuration says of the reader.

    Returns:
        The folder of the data set, and its pictures by post id.

    Raises:
        InputError: it is no reader of pictures in tables, its data set is not on this machine, or it is damaged.
    """
    reader = _reader(posts)
    source = reader.reader if isinstance(reader, GroupedSplit) else reader
    try:
        folder = _open_folder(source)
        found = {post.id: post.image for post in reader.read("test", RowLog(on_bad_row="skip"))}
    except InputError:
        raise
    except Exception as error:  # whatever the libraries below make of a table that somebody else wrote
        raise InputError(f"its data set cannot be read ({' '.join(str(error).split())})") from error
    # A path would be one that the run gives, as a prediction could have given it.
    return folder, {name: picture for name, picture in found.items() if not isinstance(picture, Path)}


def _reader(posts: Any, inside: bool = False) -> Reader:
    """The reader that a configuration spells; nothing is read yet.

    Args:
        posts: what it says.
        inside: whether another reader has it.
    """
    if not isinstance(posts, Mapping) or not isinstance(posts.get("class_path"), str):
        raise InputError("its reader is not spelt as class_path and init_args, so it is not opened")
    name, given = posts["class_path"], posts.get("init_args") or {}
    kind = _SOURCES.get(name)
    if kind is None or (inside and kind is GroupedSplit):
        raise InputError(f"its reader {name!r} is none of mulcot's for pictures in tables, so it is not opened")
    if not isinstance(given, Mapping) or posts.keys() - {"class_path", "init_args"}:
        raise InputError(f"its reader {name!r} has other keys than class_path and init_args, so it is not opened")
    known = inspect.signature(kind).parameters
    hints = get_type_hints(inspect.getattr_static(kind, "__init__"), include_extras=True)
    values = {}
    for argument, value in given.items():
        if argument not in known:
            raise InputError(f"its reader {name!r} has no argument {argument!r}, so it is not opened")
        values[argument] = (
            _reader(value, inside=True)
            if hints[argument] is Reader
            else _plain(hints[argument], value, f"{argument} of its reader {name!r}")
        )
    try:
        return kind(**values)
    except TypeError as error:
        raise InputError(f"its reader {name!r} lacks arguments ({error})") from error


def _plain(hint: Any, value: Any, place: str) -> Any:
    """A value of the declared type, made of plain ones alone."""
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InputError(f"{place}: {' '.join(first['msg'].split())}") from error


def _open_folder(reader: Reader) -> Path:
    """The folder of a data set, after a look at whether it can be read without waiting, writing or asking anybody."""
    if isinstance(reader, Converted):
        _check_converted(reader)
        return reader.folder
    assert isinstance(reader, HuggingFace)
    folder = Path(os.path.abspath(reader.path))
    # The library takes `scheme://` and `::` in any name for one of another file system.
    if not os.path.isdir(folder) or ":" in str(folder):
        raise InputError(
            f"{reader.path}: it is no folder of this machine, and a report asks no hub; save the data set with "
            "datasets.save_to_disk"
        )
    reader.path = str(folder)
    _check_saved(folder)
    return folder


def _check_converted(reader: Converted) -> None:
    """Refuses a conversion whose tables would have to be made first, which a report does not."""
    from data_modules.post_table import arrow_digest

    for split in reader.splits():
        path = reader.folder / f"{split}.arrow"
        try:
            open_regular(path).close()
        except OSError as error:
            raise InputError(f"{path}: it cannot be read ({error.strerror}); run `mulcot test` again") from error
        if arrow_digest(path) != reader.description.digest_of(split):
            raise InputError(f"{path}: it is not that of the conversion; run `mulcot test` again")


def _check_saved(folder: Path) -> None:
    """Refuses a saved data set that names files elsewhere, or has pipes and devices among its own."""
    for path in (*folder.glob("*"), *folder.glob("*/*")):
        if not path.is_file() and not path.is_dir():
            raise InputError(f"{path}: it is no regular file")
    whole = folder / "dataset_dict.json"
    parts = _names(_json(whole), "splits", whole) if whole.exists() else ["."]
    for state in (folder / part / "state.json" for part in parts):
        values = _json(state)
        files = values.get("_data_files")
        if not isinstance(files, list) or not all(isinstance(file, dict) for file in files):
            raise InputError(f"{state}: it is damaged")
        _names({"files": [file.get("filename") for file in files]}, "files", state)


def _names(values: Mapping[str, Any], key: str, path: Path) -> list[str]:
    names = values.get(key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: it is damaged")
    for name in names:
        if Path(name).name != name or name == "..":
            raise InputError(f"{path}: {name!r} is no name of a file in this folder")
    return names


def _json(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(read_regular(path, MAX_BYTES))
    except OSError as error:
        raise InputError(f"{path}: it cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: it is not JSON") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: it is damaged")
    return values
