"""Converting posts to the common format: checked once, with the sizes that batches are planned by."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from data_modules.post_table import EMBEDDED_SCHEMA, IMAGE_BYTES, SCHEMA, write_arrow
from data_modules.readers.base import Entries, Reader
from data_modules.readers.converted import BUILDING, DESCRIPTION, Description, Shard
from data_modules.readers.row_log import Row, RowError, RowLog, one_line
from mulcot.files import write_atomic
from mulcot.images import load_image
from mulcot.types import InputError, Post, Split

if TYPE_CHECKING:
    from mulcot.rows import RowEncoder

ROWS_PER_SHARD: Final = 8192
ROWS_PER_PICTURE_SHARD: Final = 512
"""Pictures are large: a shard is what a worker holds in memory."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What every shard is made by."""

    out: Path
    """The data set's folder."""
    image_root: Path | None
    """The folder that picture paths are written relative to; None puts the pictures into the table."""
    model: str | None
    """The model whose tokens are stored; None stores none."""
    labels: tuple[str, ...]
    """The label set."""
    image_size: tuple[int, int] | None
    """What the model's stage squeezes pictures to."""
    fingerprint: str | None = None
    """Of the model's encoder."""

    @property
    def building(self) -> Path:
        """Where finished pieces lie."""
        return self.out / BUILDING


@dataclass(frozen=True, slots=True)
class Piece:
    """One finished shard."""

    key: str
    """A hash of the posts and of how they are converted."""
    shard: Shard
    """The Parquet file."""
    bad: list[dict[str, Any]] = field(default_factory=list)
    """Posts of it that were left out because of their pictures."""


def convert(
    reader: Reader,
    plan: Plan,
    log: RowLog,
    workers: int = 1,
    progress: Callable[[int], None] = lambda posts: None,
) -> Description:
    """Writes every split of a source as Parquet and Arrow files, and with a model the tokens of all posts.

    A conversion that was interrupted goes on where it was: a shard is kept when its posts, their pictures' sizes and
    times and the plan are the same.

    Args:
        reader: the source.
        plan: how.
        log: wrong rows and wrong pictures go there.
        workers: processes that decode and tokenise.
        progress: called with the number of posts of each shard that is done.

    Raises:
        InputError: the source is wrong, or the folder holds a data set already.
    """
    if (plan.out / DESCRIPTION).exists():
        raise InputError(f"{one_line(plan.out)}: it holds a converted data set; give another --out, or --fresh")
    plan.building.mkdir(parents=True, exist_ok=True)
    pieces: dict[Split, list[Piece]] = {}
    with ExitStack() as stack:
        pool = _Pool(stack, plan, workers)
        for split in reader.splits():
            pieces[split] = []
            for rows, piece in _pieces(split, reader.entries(split, log), plan, pool):
                for bad in piece.bad:
                    log.add(RowError(Row(Path(bad["file"]), bad["number"], bad["unit"]), "image", *bad["why"]))
                pieces[split].append(piece)
                progress(rows)
    description = _describe(reader, plan, pieces)
    _finish(plan, description)
    return description


class _Pool:
    """Worker processes that start when there is more than one shard to make."""

    def __init__(self, stack: ExitStack, plan: Plan, workers: int) -> None:
        self._stack = stack
        self._plan = plan
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, split: Split, number: int, key: str, entries: list[tuple[Row, Post]], last: bool) -> Future[Piece]:
        if self._pool is None and (last or self._workers <= 1):
            done: Future[Piece] = Future()
            done.set_result(_make(self._plan, split, number, key, entries))
            return done
        if self._pool is None:
            pool = ProcessPoolExecutor(self._workers, mp_context=get_context("spawn"))
            self._pool = self._stack.enter_context(pool)
            self._stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        return self._pool.submit(_make, self._plan, split, number, key, entries)

    @property
    def ahead(self) -> int:
        """How many shards may wait for a worker: enough to keep all busy, few enough to fit into memory."""
        return 2 * self._workers if self._pool is not None else 0


def _pieces(split: Split, entries: Entries, plan: Plan, pool: _Pool) -> Iterator[tuple[int, Piece]]:
    """The shards of a split in order, each with the number of posts that went into it."""
    size = ROWS_PER_SHARD if plan.image_root is not None else ROWS_PER_PICTURE_SHARD
    waiting: list[tuple[int, Future[Piece]]] = []
    number = 0
    while chunk := list(islice(entries, size)):
        key = _key(plan, chunk)
        made = _made(plan, split, number, key)
        if made is None:
            waiting.append((len(chunk), pool.submit(split, number, key, chunk, last=len(chunk) < size)))
        else:
            done: Future[Piece] = Future()
            done.set_result(made)
            waiting.append((len(chunk), done))
        number += 1
        while len(waiting) > pool.ahead:
            rows, future = waiting.pop(0)
            yield rows, future.result()
    for rows, future in waiting:
        yield rows, future.result()


def _key(plan: Plan, chunk: Sequence[tuple[Row, Post]]) -> str:
    """A hash of what a shard is made from; of a picture's file its size and time stand for its content."""
    whole = hashlib.sha256(repr((plan.image_root, plan.fingerprint, EMBEDDED_SCHEMA.names)).encode())
    for _, post in chunk:
        status: tuple[int, int] | None = None
        if isinstance(post.image, Path):
            try:
                found = os.stat(post.image)
                status = (found.st_size, found.st_mtime_ns)
            except OSError:
                status = None  # the picture is missing, which making the shard will say
        whole.update(repr((post, status)).encode("utf-8", "backslashreplace"))
    return whole.hexdigest()


def _made(plan: Plan, split: Split, number: int, key: str) -> Piece | None:
    """A shard that an earlier conversion finished; None when it is to be made."""
    path = plan.building / f"{split}-{number:05d}.json"
    if not path.is_file():
        return None
    values = json.loads(path.read_text(encoding="utf-8"))
    return Piece(key, Shard(**values["shard"]), values["bad"]) if values["key"] == key else None


def _make(plan: Plan, split: Split, number: int, key: str, entries: Sequence[tuple[Row, Post]]) -> Piece:
    """Decodes, tokenises and writes one shard; the note that it is finished comes last."""
    sizes: dict[Any, tuple[int, int] | str] = {}
    posts: list[Post] = []
    bad: list[dict[str, Any]] = []
    for row, post in entries:
        if post.image not in sizes:
            sizes[post.image] = _size(post)
        size = sizes[post.image]
        if isinstance(size, str):
            problem, _, remedy = size.rpartition("; ")
            bad.append({"file": str(row.path), "number": row.number, "unit": row.unit, "why": [problem, remedy]})
        else:
            posts.append(post)
    known: dict[Any, tuple[int, int]] = {image: size for image, size in sizes.items() if not isinstance(size, str)}
    name = f"{split}-{number:05d}"
    path = plan.out / f"{name}.parquet"
    _write(path, _table(plan, posts, known))
    if plan.model is not None:
        _write_tokens(plan, name, posts, known)
    content = path.read_bytes()
    shard = Shard(path.name, len(posts), len(content), hashlib.sha256(content).hexdigest())
    piece = Piece(key, shard, bad)
    write_atomic(plan.building / f"{name}.json", json.dumps(asdict(piece), ensure_ascii=False))
    return piece


def _size(post: Post) -> tuple[int, int] | str:
    """Width and height of a post's picture, or what is wrong with it."""
    try:
        return load_image(post.image).size
    except InputError as error:
        return str(error)


def _table(plan: Plan, posts: Sequence[Post], sizes: dict[Any, tuple[int, int]]) -> pa.Table:
    columns: dict[str, list[Any]] = {
        "id": [post.id for post in posts],
        "text": [post.text for post in posts],
        "image": [_picture_name(plan, post) for post in posts],
        "aspect": [post.aspect for post in posts],
        "label": [post.label for post in posts],
        "image_width": [sizes[post.image][0] for post in posts],
        "image_height": [sizes[post.image][1] for post in posts],
    }
    if plan.image_root is not None:
        return pa.table(columns, schema=SCHEMA)
    columns[IMAGE_BYTES] = [post.image.read_bytes() for post in posts]
    return pa.table(columns, schema=EMBEDDED_SCHEMA)


def _picture_name(plan: Plan, post: Post) -> str:
    if plan.image_root is None:
        return post.image.name if isinstance(post.image, Path) else str(post.image)
    if not isinstance(post.image, Path):
        raise InputError(f"post {post.id}: its picture lies in a table, not in a file; give --embed_images")
    try:
        return post.image.relative_to(plan.image_root).as_posix()
    except ValueError as error:
        raise InputError(
            f"post {post.id}: its picture {one_line(post.image)} is not in {one_line(plan.image_root)}; give "
            "--image_root, or --embed_images"
        ) from error


def _write(path: Path, table: pa.Table) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, temporary, compression="zstd")
    os.replace(temporary, path)


_encoders: dict[Plan, RowEncoder] = {}


def load_encoder(plan: Plan) -> RowEncoder:
    """The encoder of the plan's model, loaded once in a process."""
    from mulcot.models import load_processor
    from mulcot.rows import RowEncoder

    if plan not in _encoders:
        assert plan.model is not None
        _encoders[plan] = RowEncoder(load_processor(plan.model), plan.labels, plan.image_size)
    return _encoders[plan]


def _write_tokens(plan: Plan, name: str, posts: Sequence[Post], sizes: dict[Any, tuple[int, int]]) -> None:
    from data_modules.encoded import EncodedPosts, write_shard
    from mulcot.types import TASKS

    encoder = load_encoder(plan)
    encoded = EncodedPosts.encode(posts, encoder, TASKS, [sizes[post.image] for post in posts])
    temporary = plan.building / f".{name}.npz"
    write_shard(temporary, encoded)
    os.replace(temporary, plan.building / f"{name}.npz")


def _describe(reader: Reader, plan: Plan, pieces: dict[Split, list[Piece]]) -> Description:
    root = None if plan.image_root is None else os.path.relpath(plan.image_root, plan.out)
    source = {"reader": type(reader).__name__, "files": [str(path) for path in reader.files()]}
    return Description(
        labels=list(plan.labels),
        image_root=root,
        splits={split: [piece.shard for piece in made] for split, made in pieces.items() if made},
        tokens={} if plan.fingerprint is None else {plan.fingerprint: "tokens"},
        source=source,
    )


def _finish(plan: Plan, description: Description) -> None:
    """Makes what is mapped into memory, then the description, whose presence means that the data set is whole."""
    for split, shards in description.splits.items():
        files = [plan.out / shard.file for shard in shards]
        write_arrow(files, plan.out / f"{split}.arrow", description.digest_of(split))
        if plan.fingerprint is not None:
            from data_modules.encoded import write_encoded

            folder = plan.out / "tokens" / split
            folder.mkdir(parents=True, exist_ok=True)
            write_encoded(folder, [plan.building / f"{path.stem}.npz" for path in files])
    write_atomic(plan.out / DESCRIPTION, description.to_json())
    shutil.rmtree(plan.building)
