"""The common format: what `mulcot data convert` and `mulcot data split` write."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import ConfigDict, TypeAdapter, ValidationError

from data_modules.readers.base import Entries, PostChecks, Reader, checked, read_text
from data_modules.readers.json_files import parse_json
from data_modules.readers.row_log import Row, RowLog, one_line
from mulcot.types import SPLITS, InputError, Post, Split

DESCRIPTION: Final = "dataset.json"
BUILDING: Final = ".building"
"""Where the finished pieces of an unfinished conversion lie."""
TOKENS: Final = "tokens"
"""The folder of the tokens."""
SECOND: Final = "-b"
"""Ends the names of a data set that is made beside one whose names do not end so; the next one is without it again."""
FORMAT: Final = 1
_OWN: Final = re.compile(rf"({'|'.join(SPLITS)})(-\d{{5,}}({SECOND})?\.parquet|\.arrow)")
"""The files of a data set beside its description."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One Parquet file of a split."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    file: str
    """Its name in the folder."""
    rows: int
    """Posts in it."""
    bytes: int
    """Its size."""
    sha256: str
    """Of its content."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a converted data set says of itself, in `dataset.json`, which is written last."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    labels: list[str]
    """The label set, in order."""
    image_root: str | None
    """The folder of the pictures, relative to the data set's own or absolute; None when they are in the table."""
    splits: dict[Split, list[Shard]]
    """The files of each split, in order."""
    tokens: dict[str, str] = field(default_factory=dict)
    """Folders of token ids, by the fingerprint of the encoder that made them."""
    source: dict[str, Any] = field(default_factory=dict)
    """What it was made from."""
    format: int = FORMAT
    """The version of this layout."""

    def digest_of(self, split: Split) -> str:
        """What a split's files hold."""
        return "/".join(shard.sha256 for shard in self.splits[split])

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


_DESCRIPTION: Final = TypeAdapter(Description)


class Converted(Reader):
    """A folder that `mulcot data convert` or `mulcot data split` wrote.

    Posts are read out of memory-mapped Arrow files one by one when they are asked for, so a million of them are open
    at once. Everything that other readers check at every start was checked by the conversion; that pictures lie
    inside their root is checked whenever one is named.

    Args:
        folder: The folder.
        pictures: The folder of the pictures, where they are not where they were; None takes the noted one.
    """

    def __init__(self, folder: Path, pictures: Path | None = None) -> None:
        """Keep the arguments; nothing is read before a split is asked for."""
        self.folder = Path(folder)
        self._pictures = pictures
        self._description: Description | None = None

    @property
    def description(self) -> Description:
        """The data set's description.

        Raises:
            InputError: There is none, or it is damaged.
        """
        if self._description is None:
            self._description = read_description(self.folder)
        return self._description

    @property
    def labels(self) -> tuple[str, ...]:  # type: ignore[override]
        """The label set that was converted."""
        return tuple(self.description.labels)

    @property
    def image_root(self) -> Path | None:  # type: ignore[override]
        """The folder of the pictures; None where they are in the table."""
        return None if self.description.image_root is None else self._root()

    def read(self, split: Split, log: RowLog | None = None) -> Sequence[Post]:
        """The posts of a split.

        Raises:
            InputError: There is no such split, or a file of it is not what the conversion wrote.
        """
        from data_modules.post_table import PostTable, arrow_digest, write_arrow

        shards = self._shards(split)
        path = self.folder / f"{split}.arrow"
        if arrow_digest(path) != self.description.digest_of(split):
            write_arrow(shards, path, self.description.digest_of(split))
        return PostTable(path, self._root())

    def entries(self, split: Split, log: RowLog) -> Entries:
        """See the base class; here every row is checked as if it came from anywhere."""
        from data_modules.post_table import PostTable

        embedded = self.description.image_root is None
        checks = PostChecks(self.description.labels, self._root(), not embedded, aspect_in_text=False)
        table = self.read(split)
        assert isinstance(table, PostTable)

        def post(row: Row, number: int) -> Post:
            values = table.values(number)
            if embedded:
                values["image"] = table.picture(number)
            return checks.post(row, **values)

        return checked(self._rows(split), post, log)

    def splits(self) -> tuple[Split, ...]:
        """Those that were converted."""
        return tuple(split for split in SPLITS if split in self.description.splits)

    def files(self) -> list[Path]:
        """The description, which names the digests of all other files."""
        path = self.folder / DESCRIPTION
        return [path] if path.is_file() else []

    def tokens(self, split: Split, fingerprint: str) -> Path | None:
        """See the base class."""
        folder = self.description.tokens.get(fingerprint)
        return None if folder is None else self.folder / folder / split

    def _rows(self, split: Split) -> Iterator[tuple[Row, int]]:
        """Where each post stands in its Parquet file, and in the whole split."""
        start = 0
        for shard in self.description.splits[split]:
            for number in range(shard.rows):
                yield Row(self.folder / shard.file, number + 1), start + number
            start += shard.rows

    def _root(self) -> Path:
        """The folder of the pictures."""
        if self._pictures is not None:
            return self._pictures
        return Path(os.path.normpath(self.folder / (self.description.image_root or "")))

    def _shards(self, split: Split) -> list[Path]:
        """A split's Parquet files, which must be those that the conversion wrote."""
        if split not in self.description.splits:
            known = ", ".join(self.description.splits)
            raise InputError(f"{one_line(self.folder)}: it has no split {split!r}, only {known}; convert it too")
        shards = self.description.splits[split]
        for shard in shards:
            path = self.folder / shard.file
            if not path.is_file() or path.stat().st_size != shard.bytes:
                problem = "it was changed after the conversion" if path.is_file() else "it is missing"
                raise InputError(f"{one_line(path)}: {problem}; run `mulcot data convert` again")
        return [self.folder / shard.file for shard in shards]


def read_description(folder: Path) -> Description:
    """The description of a converted data set.

    Raises:
        InputError: There is none, or it is damaged.
    """
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        raise InputError(
            f"{one_line(path)}: there is no such file, so {one_line(Path(folder))} is no converted data set; make one "
            "with `mulcot data convert`"
        )
    values = parse_json(one_line(path), read_text(path))
    try:
        if values["format"] != FORMAT:
            raise InputError(
                f"{one_line(path)}: format {values['format']!r}, and this mulcot reads {FORMAT}; convert again"
            )
        description = _DESCRIPTION.validate_python(values)
    except (KeyError, TypeError) as error:
        raise InputError(f"{one_line(path)}: it is damaged ({error}); convert again") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{one_line(path)}: it is damaged ({place}: {first['msg']}); convert again") from error
    names = [shard.file for shards in description.splits.values() for shard in shards] + list(
        description.tokens.values()
    )
    for name in names:
        if Path(name).name != name:
            raise InputError(f"{one_line(path)}: {name!r} is no name of a file in this folder; convert again")
    return description


def free_mark(folder: Path) -> str:
    """What the names of a new data set end in, so that none is a name of the data set that lies in the folder.

    Raises:
        InputError: What lies there cannot be read, so its names are not known.
    """
    if not (folder / DESCRIPTION).is_file():
        return ""
    try:
        old = read_description(folder)
    except InputError as error:
        raise InputError(f"{error}, into another folder") from error
    names = [Path(shard.file).stem for shards in old.splits.values() for shard in shards]
    return "" if all(name.endswith(SECOND) for name in (*names, *old.tokens.values())) else SECOND


def remove_others(folder: Path, description: Description) -> None:
    """Removes the files of a data set that are not of this one: of the one that it replaced, or of a longer source."""
    kept = {shard.file for shards in description.splits.values() for shard in shards}
    kept |= {f"{split}.arrow" for split in description.splits}
    for path in folder.iterdir():
        if _OWN.fullmatch(path.name) and path.name not in kept:
            path.unlink()
    for name in {TOKENS, TOKENS + SECOND} - set(description.tokens.values()):
        shutil.rmtree(folder / name, ignore_errors=True)
