"""Posts as a memory-mapped Arrow table: a million of them are open at once and take no memory to speak of."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_modules.readers.image_root import ImageRoot
from mulcot.ablations import Part, without
from mulcot.types import InputError, Post

IMAGE: Final = "image"
IMAGE_BYTES: Final = "image_bytes"
SLICES: Final = "slices"
"""Null where a post has none; older conversions lack the column."""
SCHEMA: Final = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field(IMAGE, pa.string(), nullable=False),
        pa.field("aspect", pa.string()),
        pa.field("label", pa.string()),
        pa.field("image_width", pa.int32(), nullable=False),
        pa.field("image_height", pa.int32(), nullable=False),
        pa.field(SLICES, pa.map_(pa.string(), pa.string())),
    ]
)
"""A row of the common format. `image` is a path relative to the image root, or the picture's former name where its
bytes are in the table; the sizes are those of the upright picture, in pixels."""
EMBEDDED_SCHEMA: Final = SCHEMA.append(pa.field(IMAGE_BYTES, pa.large_binary(), nullable=False))
"""The same with every picture inside, encoded as its file was."""
_ROWS_PER_BATCH: Final = 8192
_ROWS_PER_PICTURE_BATCH: Final = 64
"""Pictures are large: a batch is what is held in memory while a table is written."""


@dataclass(frozen=True, slots=True)
class TablePicture:
    """A picture inside a table."""

    table: Path
    """The Arrow file."""
    row: int
    """The row, counted from 0."""

    def read_bytes(self) -> bytes:
        """The encoded picture."""
        return bytes(_open(self.table).column(IMAGE_BYTES)[self.row].as_buffer())

    def __str__(self) -> str:
        """The place as an error names it."""
        return f"{self.table}, row {self.row + 1}"


class PostTable(Sequence[Post]):
    """The posts of an Arrow file, made one by one when they are asked for.

    Args:
        path: A file that `write_arrow` wrote.
        image_root: The folder that `image` is relative to; not used where the pictures are in the table.
        limit: Only the first so many posts; None for all.
    """

    def __init__(self, path: Path, image_root: Path, limit: int | None = None) -> None:
        """Maps the file; no row is read."""
        self.path = path
        self.image_root = image_root
        self.limit = limit
        self._table = _open(path).slice(0, limit)
        self._columns = {name: self._table.column(name) for name in ("id", "text", IMAGE, "aspect", "label")}
        self._root = ImageRoot(image_root)
        self._embedded = IMAGE_BYTES in self._table.column_names
        if SLICES in self._table.column_names and self._table.column(SLICES).null_count < len(self._table):
            self._columns[SLICES] = self._table.column(SLICES)

    def __len__(self) -> int:
        return self._table.num_rows

    @overload
    def __getitem__(self, index: int) -> Post: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Post]: ...

    def __getitem__(self, index: int | slice) -> Post | Sequence[Post]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        row = index + len(self) if index < 0 else index
        if not 0 <= row < len(self):
            raise IndexError(f"{self.path} has {len(self)} posts, and post {index} was asked for")
        values = self.values(row)
        if self._embedded:
            values[IMAGE] = self.picture(row)
        elif problem := self._root.problem(values[IMAGE]):
            raise InputError(
                f"{self.path}, row {row + 1}, field 'image': {values[IMAGE]!r} {problem}; convert the data again"
            )
        else:
            values[IMAGE] = self.image_root / values[IMAGE]
        return Post(**values)

    def values(self, row: int) -> dict[str, Any]:
        """The fields of a post as they lie in the table."""
        values = {name: column[row].as_py() for name, column in self._columns.items()}
        if SLICES in values:
            values[SLICES] = tuple(values[SLICES] or ())
        return values

    def picture(self, row: int) -> TablePicture:
        """The picture of a post, of a table that holds its pictures."""
        return TablePicture(self.path, row)

    def picture_sizes(self) -> list[tuple[int, int]]:
        """Width and height of every post's upright picture, in pixels, as the conversion found them."""
        columns = (self._table.column(name).to_pylist() for name in ("image_width", "image_height"))
        return list(zip(*columns, strict=True))

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker process maps the file itself."""
        return PostTable, (self.path, self.image_root, self.limit)

    def column(self, name: str) -> pa.ChunkedArray:
        """A column as it lies in the file."""
        return self._table.column(name)


class AlteredPosts(Sequence[Post]):
    """Posts with a part taken out when they are asked for.

    Args:
        posts: The whole posts.
        part: See `without`.
    """

    def __init__(self, posts: Sequence[Post], part: Part) -> None:
        """Nothing is altered yet."""
        self.posts = posts
        self.part: Part = part

    def __len__(self) -> int:
        return len(self.posts)

    @overload
    def __getitem__(self, index: int) -> Post: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Post]: ...

    def __getitem__(self, index: int | slice) -> Post | Sequence[Post]:
        if isinstance(index, slice):
            return AlteredPosts(self.posts[index], self.part)
        return without(self.posts[index], self.part)


def unaltered(posts: Sequence[Post]) -> Sequence[Post]:
    """The posts as they were read; altered ones have their ids, labels and sizes of pictures, and as many aspects."""
    return posts.posts if isinstance(posts, AlteredPosts) else posts


def table_of(posts: Sequence[Post]) -> PostTable | None:
    """The table that the posts lie in; None where they are in none."""
    whole = unaltered(posts)
    return whole if isinstance(whole, PostTable) else None


def ids_of(posts: Sequence[Post]) -> list[str]:
    """The posts' ids, in order."""
    table = table_of(posts)
    return table.column("id").to_pylist() if table else [post.id for post in posts]


def label_numbers(posts: Sequence[Post], labels: Sequence[str]) -> NDArray[np.int64]:
    """The number of each post's gold label in `labels`, `[posts]`, int64.

    Raises:
        ValueError: A post has none of these labels.
    """
    if table := table_of(posts):
        numbers = pc.index_in(table.column("label"), value_set=pa.array(labels, pa.string()))
        if numbers.null_count:
            raise ValueError(f"{numbers.null_count} posts have none of the labels {labels}")
        return numbers.to_numpy().astype(np.int64)
    return np.array([labels.index(cast(str, post.label)) for post in posts], dtype=np.int64)


def label_counts(posts: Sequence[Post]) -> Counter[str | None]:
    """How often each gold label stands; None counts the posts without one."""
    if table := table_of(posts):
        counted = pc.value_counts(table.column("label")).to_pylist()
        return Counter({item["values"]: item["counts"] for item in counted})
    return Counter(post.label for post in posts)


def has_aspects(posts: Sequence[Post]) -> bool:
    """Whether any post has an aspect."""
    if table := table_of(posts):
        return table.column("aspect").null_count < len(table)
    return any(post.aspect is not None for post in posts)


def check_gold(posts: Sequence[Post], labels: Sequence[str]) -> None:
    """Training needs a gold label of the stage's label set for every post.

    Raises:
        InputError: A post has none of them; the message names it.
    """
    for label in label_counts(posts):
        if label in labels:
            continue
        post = next(post for post in posts if post.label == label)
        if label is None:
            raise InputError(f"post {post.id} has no gold label: training needs one; give it a label or leave it out")
        raise InputError(
            f"post {post.id} has the label {label!r}, which is none of the stage's labels ({', '.join(labels)}): name "
            "it in model.init_args.labels"
        )


def write_arrow(shards: Sequence[Path], path: Path, digest: str) -> None:
    """Puts Parquet shards together as one Arrow file that can be mapped into memory.

    Args:
        shards: The Parquet files, in order.
        path: The file to make; it appears whole or not at all.
        digest: What the shards hold, to be asked for by `arrow_digest`.
    """
    schema = pq.read_schema(shards[0]).with_metadata({b"mulcot": digest.encode()})
    rows = _ROWS_PER_PICTURE_BATCH if IMAGE_BYTES in schema.names else _ROWS_PER_BATCH
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in _batches(shards, rows):
                writer.write_batch(batch.cast(schema))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def arrow_digest(path: Path) -> str | None:
    """What `write_arrow` noted of the shards; None when there is no such file or it is damaged."""
    try:
        with pa.memory_map(str(path)) as source:
            return (pa.ipc.open_file(source).schema.metadata or {}).get(b"mulcot", b"").decode()
    except (OSError, pa.ArrowInvalid):
        return None


def _batches(shards: Sequence[Path], rows: int) -> Iterator[pa.RecordBatch]:
    for shard in shards:
        with pq.ParquetFile(shard) as file:
            yield from file.iter_batches(batch_size=rows)


_OPEN: dict[tuple[Path, int, int], pa.Table] = {}


def _open(path: Path) -> pa.Table:
    """The mapped file, opened once in a process as long as it stays the same."""
    status = os.stat(path)
    key = (path, status.st_ino, status.st_mtime_ns)
    if key not in _OPEN:
        _OPEN[key] = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    return _OPEN[key]
