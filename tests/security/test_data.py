"""Hostile tables: each is refused by name, within memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

ROW = {"id": "1", "text": "hail", "image": "good.png", "label": "neutral"}


def lines(*rows: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "train.jsonl").write_text("".join(row + "\n" for row in rows))
        return folder / "train.jsonl"

    return write


def chunks(name: str, pieces: Callable[[], Iterator[bytes]]) -> Callable[[Path], Path]:
    """A large file, written piece by piece."""

    def write(folder: Path) -> Path:
        with (folder / name).open("wb") as file:
            for piece in pieces():
                file.write(piece)
        return folder / name

    return write


def sparse(name: str, size: int) -> Callable[[Path], Path]:
    """A file of so many NUL bytes that takes no place on the disk."""

    def write(folder: Path) -> Path:
        with (folder / name).open("wb") as file:
            file.truncate(size)
        return folder / name

    return write


def parquet(table: pa.Table) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        pq.write_table(table, folder / "train.parquet")
        return folder / "train.parquet"

    return write


MEGABYTE = b"x" * (1 << 20)
COLUMNS = {key: [value] for key, value in ROW.items()}
TABLES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "100,000 levels of JSON": (lines('{"id": ' + "[" * 100_000), "nesting beyond reason"),
    "100,000 levels of closed JSON": (lines("[" * 100_000 + "]" * 100_000), "nesting beyond reason"),
    "a number of 100,000 digits": (lines('{"id": ' + "9" * 100_000 + "}"), "a number or a nesting beyond reason"),
    "a line of 1 GB": (sparse("train.jsonl", 1 << 30), "line 1: more than 67108864 bytes"),
    "a line of 1 GB in CSV": (sparse("train.csv", 1 << 30), "line 1: more than 67108864 bytes"),
    "a cell of 100 MB that nothing closes": (
        chunks("train.csv", lambda: (b'id,text,image,label\n1,"', *[MEGABYTE[:-1] + b"\n"] * 100)),
        "train.csv, line 2",
    ),
    "NUL": (lines(json.dumps(ROW | {"text": "a\0b"})), "holds a NUL"),
    "half a surrogate pair": (lines(json.dumps(ROW | {"text": "a\ud800b"})), "half a surrogate pair"),
    "a key twice": (lines(json.dumps(ROW).replace("{", '{"label": "positive", ')), "stands twice"),
    "Parquet without a column": (parquet(pa.table({"id": ["1"]})), "there is no column"),
    "Parquet of dates": (parquet(pa.table(COLUMNS | {"text": pa.array([0], pa.date32())})), "of the type"),
    "Parquet of bytes": (parquet(pa.table(COLUMNS | {"image": pa.array([b"a"], pa.binary())})), "of the type"),
    "Parquet of lists": (parquet(pa.table(COLUMNS | {"text": [["a", "b"]]})), "is no text"),
    "Parquet with a column twice": (
        parquet(pa.table([["1"], ["2"], ["a"], ["b"]], names=["id", "id", "text", "image"])),
        "stands 2 times",
    ),
    "no Parquet": (sparse("train.parquet", 1 << 20), "no whole Parquet file"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_hostile_table_is_refused(name: str, tmp_path: Path, refused: Any) -> None:
    write, words = TABLES[name]
    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    table = write(tmp_path)
    reader = ["--posts", "Table", "--posts.files", json.dumps({"train": str(table)}), "--posts.image_root", tmp_path]
    error = refused("data", "convert", *reader, "--out", tmp_path / "out", name=str(table), limit_mb=300)
    assert words in error
    assert len(error) < 2_000
