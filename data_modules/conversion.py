"""Converting posts to the common format: checked once, with the sizes that batches are planned by."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from data_modules.post_table import EMBEDDED_SCHEMA, IMAGE_BYTES, SCHEMA, SLICES, write_arrow
from data_modules.readers.base import Entries, Reader
from data_modules.readers.converted import (
    BUILDING,
    DESCRIPTION,
    TOKENS,
    Description,
    Shard,
    free_mark,
    remove_others,
)
from data_modules.readers.row_log import Row, RowError, RowLog, one_line
from mulcot.files import write_atomic
from mulcot.images import load_image
from mulcot.manifests import MANIFEST_NAME
from mulcot.shown_text import first_line
from mulcot.types import InputError, Post, Split

if TYPE_CHECKING:
    from mulcot.rows import RowEncoder

ROWS_PER_SHARD: Final = 8192
ROWS_PER_PICTURE_SHARD: Final = 512
"""Pictures are large: a shard is what a worker holds in memory."""

FileStatus = tuple[int, int] | None
"""Size in bytes and time in nanoseconds; None where there is no file."""


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
    mark: str = ""
    """What the names end in; `convert` chooses it."""

    @property
    def building(self) -> Path:
        """Where finished pieces lie."""
        return self.out / BUILDING

    def shard_name(self, split: Split, number: int) -> str:
        """The name of a Parquet file."""
        return f"{split}-{number:05d}{self.mark}.parquet"


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
    *,
    replaces: bool = False,
    declare: Callable[[Description], None] = lambda description: None,
) -> Description:
    """Writes every split of a source as Parquet and Arrow files, and with a model the tokens of all posts.

    A conversion that was interrupted goes on where it was: a shard is kept when its posts, their places, their
    pictures' sizes and times and the plan are the same. A data set that is to be replaced stays as it is until the new
    one is whole: both lie in the folder then, and the description, one file, says which of them counts.

    Args:
        reader: the source.
        plan: how.
        log: wrong rows and wrong pictures go there.
        workers: processes that decode and tokenise.
        progress: called with the number of posts of each shard that is done.
        replaces: whether a data set that the folder holds may be replaced.
        declare: called when the data set is whole, before the traces of its making are removed.

    Raises:
        InputError: the source is wrong, has no split or one without usable posts; or the folder is.
    """
    plan = _begun(plan, replaces)
    pieces: dict[Split, list[Piece]] = {}
    empty: dict[Split, Counter[str]] = {}
    tables = [_status(path) for path in reader.files()]
    with ExitStack() as stack:
        pool = _Pool(stack, plan, workers)
        for split in _splits(reader, log):
            before = Counter(log.left_out())
            made: list[Piece] = []
            for rows, piece in _pieces(split, reader.entries(split, log), plan, pool, tables):
                for bad in piece.bad:
                    row = Row(Path(bad["file"]), bad["number"], bad["unit"])
                    log.add(RowError(row, reader.image_field, *bad["why"]))
                made.append(piece)
                progress(rows)
            if any(piece.shard.rows for piece in made):
                pieces[split] = made
            elif split in reader.splits():  # a split that is dealt what others leave may be gone with the wrong rows
                empty[split] = Counter(log.left_out()) - before
    if empty:
        raise _no_posts(reader, empty)
    description = _describe(reader, plan, pieces)
    _finish(plan, description)
    declare(description)
    remove_others(plan.out, description)
    shutil.rmtree(plan.building)
    return description


def _begun(plan: Plan, replaces: bool) -> Plan:
    """The plan with the names of the new data set, after its folder was made."""
    try:
        if (plan.out / DESCRIPTION).exists() and not replaces:
            raise InputError(f"{one_line(plan.out)}: it holds a converted data set; give another --out, or --fresh")
        plan.building.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise no_folder(plan.out, error) from error
    return replace(plan, mark=free_mark(plan.out))


def no_folder(out: Path, error: OSError) -> InputError:
    """The error to raise when the folder to write cannot be had."""
    reason = error.strerror or first_line(error)
    return InputError(f"--out {one_line(out)}: there can be no folder ({reason}); name one that can be written to")


def _splits(reader: Reader, log: RowLog) -> tuple[Split, ...]:
    """The source's splits; one that cannot tell them says why, and what it left out, when it is asked for posts."""
    problem = InputError(f"{type(reader).__name__}: it has no split; give it one")
    try:
        if splits := reader.splits():
            return splits
    except InputError as error:
        problem = error
    next(iter(reader.entries("train", log)), None)
    raise problem


def _no_posts(reader: Reader, empty: dict[Split, Counter[str]]) -> InputError:
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in sum(empty.values(), Counter[str]()).items())
    why = f"left out were {left_out}; mend them" if left_out else "put some into it"
    return InputError(f"{type(reader).__name__}: no posts for {', '.join(empty)}: {why}, or name other splits")


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


def _pieces(
    split: Split, entries: Entries, plan: Plan, pool: _Pool, tables: Sequence[FileStatus]
) -> Iterator[tuple[int, Piece]]:
    """The shards of a split in order, each with the number of posts that went into it."""
    size = ROWS_PER_SHARD if plan.image_root is not None else ROWS_PER_PICTURE_SHARD
    waiting: list[tuple[int, Future[Piece]]] = []
    number = 0
    while chunk := list(islice(entries, size)):
        key = _key(plan, chunk, tables)
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


def _status(path: Path) -> FileStatus:
    """Size and time of a file, which stand for its content."""
    try:
        found = os.stat(path)
    except OSError:
        return None  # a picture is missing, which making the shard will say
    return found.st_size, found.st_mtime_ns


def _key(plan: Plan, chunk: Sequence[tuple[Row, Post]], tables: Sequence[FileStatus]) -> str:
    """A hash of what a shard is made from; for pictures inside tables it is the source's files that count."""
    whole = hashlib.sha256(repr((plan.image_root, plan.fingerprint, EMBEDDED_SCHEMA.names)).encode())
    for row, post in chunk:
        status = _status(post.image) if isinstance(post.image, Path) else tables
        whole.update(repr((row, post, status)).encode("utf-8", "backslashreplace"))
    return whole.hexdigest()


def _made(plan: Plan, split: Split, number: int, key: str) -> Piece | None:
    """A shard that an earlier conversion finished; None when it is to be made."""
    note = plan.building / f"{split}-{number:05d}.json"
    try:
        values = json.loads(note.read_text(encoding="utf-8"))
        piece = Piece(values["key"], Shard(**values["shard"]), values["bad"])
        size = (plan.out / piece.shard.file).stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return None
    whole = piece.key == key and piece.shard.file == plan.shard_name(split, number) and piece.shard.bytes == size
    has_tokens = plan.model is None or not piece.shard.rows or note.with_suffix(".npz").is_file()
    return piece if whole and has_tokens else None


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
    (plan.building / f"{name}.json").unlink(missing_ok=True)
    path = plan.out / plan.shard_name(split, number)
    temporary = plan.building / f".{path.name}"
    pq.write_table(_table(plan, posts, known), temporary, compression="zstd")
    os.replace(temporary, path)
    if plan.model is not None and posts:
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
        SLICES: [post.slices or None for post in posts],
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
    # One folder may be written in two ways; links stay as they are, for they may lead out of it.
    try:
        return Path(os.path.abspath(post.image)).relative_to(os.path.abspath(plan.image_root)).as_posix()
    except ValueError as error:
        raise InputError(
            f"post {post.id}: its picture {one_line(post.image)} is not in {one_line(plan.image_root)}; give "
            "--image_root, or --embed_images"
        ) from error


_encoders: dict[tuple[str, tuple[str, ...], tuple[int, int] | None], RowEncoder] = {}


def load_encoder(plan: Plan) -> RowEncoder:
    """The encoder of the plan's model, loaded once in a process."""
    from mulcot.models import load_processor
    from mulcot.rows import RowEncoder

    assert plan.model is not None
    key = (plan.model, plan.labels, plan.image_size)
    if key not in _encoders:
        _encoders[key] = RowEncoder(load_processor(plan.model), plan.labels, plan.image_size)
    return _encoders[key]


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
        splits={split: [piece.shard for piece in made if piece.shard.rows] for split, made in pieces.items()},
        tokens={} if plan.fingerprint is None else {plan.fingerprint: TOKENS + plan.mark},
        source=source,
    )


def _finish(plan: Plan, description: Description) -> None:
    """Makes what is mapped into memory, then the description: from then on it is the new data set that counts."""
    tokens = plan.building / TOKENS
    shutil.rmtree(tokens, ignore_errors=True)
    for split, shards in description.splits.items():
        numbers = [int(shard.file.removeprefix(f"{split}-")[:5]) for shard in shards]
        files = [plan.out / shard.file for shard in shards]
        write_arrow(files, plan.building / f"{split}.arrow", description.digest_of(split))
        if plan.fingerprint is not None:
            from data_modules.encoded import write_encoded

            (tokens / split).mkdir(parents=True)
            write_encoded(tokens / split, [plan.building / f"{split}-{number:05d}.npz" for number in numbers])
    for name in description.tokens.values():
        shutil.rmtree(plan.out / name, ignore_errors=True)
        os.replace(tokens, plan.out / name)
    (plan.out / MANIFEST_NAME).unlink(missing_ok=True)  # it declares the data set that is replaced now
    write_atomic(plan.out / DESCRIPTION, description.to_json())
    for split in description.splits:  # a reader that comes before makes the file from Parquet, for its digest tells
        os.replace(plan.building / f"{split}.arrow", plan.out / f"{split}.arrow")
