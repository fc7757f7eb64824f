"""Hostile tables and files that are none: each is refused by name, within memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_modules.rationales import read_rationales
from data_modules.readers import ImageFolder, Mvsa, Table, TombertTsv, TwitterJson
from data_modules.readers.mvsa import ANNOTATIONS
from mulcot.teachers.recorded import RecordedTeacher
from mulcot.types import DEFAULT_LABELS, InputError

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


# -- what is no file ------------------------------------------------------------------------------------------------


def table(name: str) -> tuple[str, Callable[[Path], object]]:
    return name, lambda folder: Table({"train": folder / name}, folder).read("train")


SOURCES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "JSON Lines": table("train.jsonl"),
    "a JSON list": table("train.json"),
    "CSV": table("train.csv"),
    "Parquet": table("train.parquet"),
    "TwitterJson": ("posts.json", lambda folder: TwitterJson(folder / "posts.json", folder).read_all()),
    "TombertTsv": ("train.tsv", lambda folder: TombertTsv(folder, folder).read("train")),
    "Mvsa's labels": (ANNOTATIONS, lambda folder: Mvsa(folder).read_all()),
    "a text of Mvsa": ("data/1.txt", lambda folder: Mvsa(folder).read_all()),
    "a list of Mvsa": (
        "list.json", lambda folder: Mvsa(folder, split_files={"train": folder / "list.json"}).read("train")),
    "ImageFolder's table": ("metadata.csv", lambda folder: ImageFolder(folder).read("train")),
    "rationales": ("r.jsonl", lambda folder: read_rationales([folder / "r.jsonl"], {}, DEFAULT_LABELS)),
    "recorded replies": ("replies.json", lambda folder: RecordedTeacher(folder / "replies.json")),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["a pipe", "a device"])
@pytest.mark.parametrize("name", SOURCES)
def test_what_is_no_file_is_not_read(name: str, kind: str, tmp_path: Path, measured: Any) -> None:
    file, read = SOURCES[name]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "1.jpg").write_bytes(b"x")
    (tmp_path / ANNOTATIONS).write_text("ID\ttext,image\n1\tpositive,positive\n")
    (tmp_path / file).unlink(missing_ok=True)
    if kind == "a pipe":
        os.mkfifo(tmp_path / file)
    else:
        (tmp_path / file).symlink_to("/dev/zero")

    def refuse() -> int:
        with pytest.raises(InputError, match=r"no regular file|there is no |out of the image root") as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value)
        return 0

    outcome = measured(refuse)
    assert outcome.code == 0, outcome
    assert outcome.peak_mb < 100
