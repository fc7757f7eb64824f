"""What a user may bring: odd input that loads like the plain form, and wrong input with the error that it must meet.

Both tables are `name: builder`. A builder writes files into a folder and returns a function that reads them. A new case
is one line in a table.
"""

import io
import json
import re
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, disable_progress_bars, enable_progress_bars
from PIL import Image, ImageFile, WebPImagePlugin

from data_modules.rationales import read_rationales
from data_modules.readers import (
    GroupedSplit,
    HuggingFace,
    ImageFolder,
    Mvsa,
    Reader,
    SingleFileReader,
    Table,
    TombertTsv,
    TwitterJson,
)
from data_modules.readers.row_log import RowLog
from mulcot.images import load_image, upright_size
from mulcot.models import load_processor
from mulcot.models.tiny import build_processor
from mulcot.prompts import get_prompt
from mulcot.rows import RowEncoder
from mulcot.rows.encoder import within_ratio
from mulcot.types import DEFAULT_LABELS, InputError, Post, Rationale, RationaleRecord

Read = Callable[[RowLog], list[Any]]

# Files, written without the code that reads them.


def posts_of(reader: Reader, log: RowLog) -> list[Post]:
    return list(reader.read_all(log) if isinstance(reader, SingleFileReader) else reader.read("val", log))


def save(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: Iterable[bytes]) -> bytes:
    """A PNG put together from its specification: bits a channel, colour type, and rows that begin with a 0."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj()
    body = b"".join([packer.compress(row) for row in rows]) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


SQUARE = Image.fromarray(np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3))
GOOD_PICTURE = encoded(SQUARE, "PNG")
TEXTS = ("one in May", "two in May", "three in May")
LABELS = ("negative", "neutral", "positive")
ABSENT = object()
HEADER = "id,text,image,aspect,label"


def rows(**changes: Any) -> list[dict[str, Any]]:
    """Three posts, the one in the middle changed."""
    made = [
        {"id": str(at), "text": text, "image": "good.png", "aspect": "May", "label": label}
        for at, (text, label) in enumerate(zip(TEXTS, LABELS, strict=True), 1)
    ]
    made[1] = {key: value for key, value in (made[1] | changes).items() if value is not ABSENT}
    return made


def dumped(entries: list[dict[str, Any]], ascii_only: bool = True) -> str:
    return "".join(json.dumps(entry, ensure_ascii=ascii_only) + "\n" for entry in entries)


def table(folder: Path, content: str | bytes, suffix: str = ".jsonl", **options: Any) -> Table:
    save(folder / "good.png", GOOD_PICTURE)
    return Table({"val": save(folder / f"posts{suffix}", content)}, folder, **options)


# Odd, and right.


@dataclass(frozen=True)
class Odd:
    """What is to be read from odd input: one post with an odd text or an odd picture."""

    reader: Reader
    text: str = TEXTS[0]
    pixels: np.ndarray = field(default_factory=lambda: np.asarray(SQUARE))
    """The plain picture, as another library has it: height, width, RGB."""
    tolerance: int = 0
    """How far pixels may be off, where the odd format loses some."""


def tombert(folder: Path, text: str) -> TombertTsv:
    save(folder / "dev.tsv", f"index\tlabel\timage\ttext\taspect\n1\t0\tgood.png\t{text.replace('May', '$T$')}\tMay\n")
    return TombertTsv(folder, folder)


def twitter(folder: Path, text: str) -> TwitterJson:
    entry = {"id": 1, "text": text, "image_path": "good.png", "aspect": "May", "label": "negative"}
    return TwitterJson(save(folder / "posts.json", json.dumps([entry], ensure_ascii=False)), folder)


def mvsa(folder: Path, content: bytes) -> Mvsa:
    (folder / "data").mkdir()
    save(folder / "labelResultAll.txt", "ID\ttext,image\r\n1\tnegative,neutral\r\n")
    save(folder / "data" / "1.txt", content)
    save(folder / "data" / "1.jpg", GOOD_PICTURE)
    return Mvsa(folder)


def image_folder(folder: Path, text: str) -> ImageFolder:
    save(folder / "good.png", GOOD_PICTURE)
    columns = f'id,text,file_name,aspect,label,split\n1,"{text}",good.png,May,negative,val\n'
    save(folder / "metadata.csv", columns)
    return ImageFolder(folder)


def parquet(folder: Path, entries: list[dict[str, Any]], **options: Any) -> Table:
    sink = io.BytesIO()
    schema = None if entries else pa.schema([(name, pa.string()) for name in HEADER.split(",")])
    pq.write_table(pa.Table.from_pylist(entries, schema), sink)
    return table(folder, sink.getvalue(), ".parquet", **options)


def first(**changes: Any) -> dict[str, Any]:
    return rows()[0] | changes


FORMATS: dict[str, Callable[[Path, str], Reader]] = {
    "JSON Lines": lambda folder, text: table(folder, dumped([first(text=text)], ascii_only=False)),
    "JSON Lines in ASCII": lambda folder, text: table(folder, dumped([first(text=text)])),
    "CSV": lambda folder, text: table(folder, f'{HEADER}\n1,"{text}",good.png,May,negative\n', ".csv"),
    "Parquet": lambda folder, text: parquet(folder, [first(text=text)]),
    "TomBERT TSV": tombert,
    "Twitter JSON": twitter,
    "MVSA": lambda folder, text: mvsa(folder, text.encode()),
    "folder of images": image_folder,
}
ODD_TEXTS = {
    "emoji": "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f \U0001f1ea\U0001f1fa in May",
    "right-to-left text": "\u202b\u05e9\u05dc\u05d5\u05dd\u202c \u200f\u0645\u0631\u062d\u0628\u0627 \u2066May\u2069",
    "NFC": "caf\u00e9 \ud55c in May",
    "NFD": "cafe\u0301 \u1112\u1161\u11ab in May",
    "other line ends": "a\u2028b\u2029c\x85d\x0ce in May",
}
CHINESE = "\u7b49\u4e00\u4e0b\uff0cMay\U0001f600"
MARKED = "\ufeff" + f"{HEADER}\n1,{TEXTS[0]},good.png,May,negative\n"


def pictured(content: bytes, pixels: Any = SQUARE, tolerance: int = 0) -> Callable[[Path], Odd]:
    """A picture called .jpg, and what it shows."""

    def build(folder: Path) -> Odd:
        save(folder / "odd.jpg", content)
        return Odd(table(folder, dumped([first(image="odd.jpg")])), TEXTS[0], np.asarray(pixels), tolerance)

    return build


def turned(kind: str) -> Callable[[Path], Odd]:
    """A picture that the EXIF data of a camera held upright turns by 90 degrees clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = Image.open(io.BytesIO(encoded(SQUARE, kind)))
    return pictured(encoded(SQUARE, kind, exif=exif), np.rot90(np.asarray(plain), -1))


def animated(kind: str, **options: Any) -> Callable[[Path], Odd]:
    frames = [Image.new("RGB", (6, 8), colour) for colour in ("blue", "red", "lime")]
    return pictured(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options), frames[0])


GREYS = np.arange(48, dtype=np.uint8).reshape(8, 6)
THREE_GREYS = np.repeat(GREYS[..., None], 3, axis=2)
ON_WHITE = np.array([[[10, 20, 30], [255, 255, 255], [157, 161, 165]]])
"""(10, 20, 30) on a white page: opaque, transparent, and 40% of it, which is 0.4 x 10 + 0.6 x 255 = 157."""

LOADS: dict[str, Callable[[Path], Odd]] = {
    f"{name} in {form}": lambda folder, text=text, write=write: Odd(
        write(save(folder / "good.png", GOOD_PICTURE).parent, text), text
    )
    for name, text in ODD_TEXTS.items()
    for form, write in FORMATS.items()
} | {
    "byte-order mark in JSON Lines": lambda folder: Odd(table(folder, "\ufeff" + dumped([first()]))),
    "byte-order mark in CSV": lambda folder: Odd(table(folder, MARKED, ".csv")),
    "byte-order mark in UTF-16": lambda folder: Odd(
        table(folder, MARKED[1:].encode("utf-16"), ".csv", encoding="utf-16")
    ),
    "byte-order mark in MVSA": lambda folder: Odd(mvsa(folder, b"\xef\xbb\xbf" + TEXTS[0].encode())),
    "CRLF in JSON Lines": lambda folder: Odd(table(folder, dumped([first()]).replace("\n", "\r\n\r\n"))),
    "CRLF in CSV": lambda folder: Odd(table(folder, MARKED[1:].replace("\n", "\r\n"), ".csv")),
    "CRLF in MVSA": lambda folder: Odd(mvsa(folder, TEXTS[0].encode() + b"\r\n")),
    "GB18030 in MVSA": lambda folder: Odd(mvsa(folder, CHINESE.encode("gb18030")), CHINESE),
    "GB18030 in JSON Lines": lambda folder: Odd(
        table(folder, dumped([first(text=CHINESE)], ascii_only=False).encode("gb18030"), encoding="gb18030"), CHINESE
    ),
    "GB18030 in CSV": lambda folder: Odd(
        table(folder, MARKED[1:].replace(TEXTS[0], CHINESE).encode("gb18030"), ".csv", encoding="gb18030"), CHINESE
    ),
    "a column that is not looked at": lambda folder: Odd(table(folder, dumped([first(mood=[1, {}], split="test")]))),
    "a whole number as id": lambda folder: Odd(table(folder, dumped([first(id=1)]))),
    "PNG data called .jpg": pictured(GOOD_PICTURE),
    "WEBP data called .jpg": pictured(encoded(SQUARE, "WEBP", lossless=True)),
    "palette": pictured(encoded(SQUARE.quantize(48), "PNG"), SQUARE.quantize(48).convert("RGB")),
    "grayscale": pictured(encoded(Image.fromarray(GREYS), "PNG"), THREE_GREYS),
    "16-bit grayscale": pictured(
        png(6, 8, 16, 0, [b"\0" + b"".join(bytes([grey, 99]) for grey in row) for row in GREYS.tolist()]), THREE_GREYS
    ),
    "16-bit colours": pictured(
        png(2, 1, 16, 2, [b"\0" + bytes([1, 99, 2, 99, 3, 99, 9, 0, 8, 0, 7, 0])]), [[[1, 2, 3], [9, 8, 7]]], 1
    ),
    "transparent colours": pictured(
        png(3, 1, 8, 6, [b"\0" + bytes([10, 20, 30, 255, 10, 20, 30, 0, 10, 20, 30, 102])]), ON_WHITE
    ),
    "transparent greys": pictured(
        png(3, 1, 8, 4, [b"\0" + bytes([10, 255, 10, 0, 10, 102])]), ON_WHITE[:, :, [0, 0, 0]]
    ),
    "CMYK": pictured(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), [[[255, 0, 0]] * 8] * 8, 8),
    "EXIF orientation in JPEG": turned("JPEG"),
    "EXIF orientation in PNG": turned("PNG"),
    "animated GIF": animated("GIF"),
    "animated PNG": animated("PNG"),
    "animated WEBP": animated("WEBP", lossless=True),
    "1 x 1": pictured(encoded(Image.new("RGB", (1, 1), "blue"), "PNG"), [[[0, 0, 255]]]),
    "1 x 2000": pictured(encoded(Image.new("RGB", (1, 2000), "blue"), "PNG"), [[[0, 0, 255]]] * 2000),
}  # fmt: skip


@pytest.mark.parametrize("name", LOADS)
def test_loads_identically(name: str, tmp_path: Path) -> None:
    odd = LOADS[name](tmp_path)
    log = RowLog("skip", decode=True)
    (post,) = posts_of(odd.reader, log)
    assert log.bad == []
    assert (post.id.removeprefix("val-"), post.text, post.label) == ("1", odd.text, "negative")
    assert post.aspect == (None if isinstance(odd.reader, Mvsa) else "May")
    picture = load_image(post.image)
    assert (picture.mode, picture.size) == ("RGB", (odd.pixels.shape[1], odd.pixels.shape[0]))
    assert np.abs(np.asarray(picture, dtype=int) - odd.pixels).max() <= odd.tolerance


# Wrong. In a message FOLDER stands for the folder's path and * for anything. Every row that is wrong stands between two
# that are right.


def reading(reader: Reader) -> Read:
    return lambda log: [(post.text, post.label) for post in posts_of(reader, log)]


def jsonl(**changes: Any) -> Callable[[Path], Read]:
    return lambda folder: reading(table(folder, dumped(rows(**changes))))


def line(content: str | bytes) -> Callable[[Path], Read]:
    """A line between two others."""
    before, _, after = dumped(rows()).encode().splitlines(keepends=True)
    middle = content.encode() if isinstance(content, str) else content
    return lambda folder: reading(table(folder, before + middle + b"\n" + after))


def record(content: str | bytes, **options: Any) -> Callable[[Path], Read]:
    """A record of CSV between two others."""
    before = f"{HEADER}\n1,{TEXTS[0]},good.png,May,negative\n".encode()
    middle = content.encode() if isinstance(content, str) else content
    after = f"\n3,{TEXTS[2]},good.png,May,positive\n".encode()
    return lambda folder: reading(table(folder, before + middle + after, ".csv", **options))


def whole(content: str | bytes, suffix: str = ".jsonl", **options: Any) -> Callable[[Path], Read]:
    return lambda folder: reading(table(folder, content, suffix, **options))


def tsv(content: str | bytes) -> Callable[[Path], Read]:
    def build(folder: Path) -> Read:
        save(folder / "good.png", GOOD_PICTURE)
        around = [f"{at}\t{at - 1}\tgood.png\t{TEXTS[at - 1].replace('May', '$T$')}\tMay" for at in (1, 3)]
        lines = ["index\tlabel\timage\ttext\taspect", around[0], content, around[1]]
        save(folder / "dev.tsv", b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
        return reading(TombertTsv(folder, folder))

    return build


def mvsa_post(damage: Callable[[Path], object]) -> Callable[[Path], Read]:
    """Three posts of MVSA, the second damaged in the folder of texts and pictures."""

    def build(folder: Path) -> Read:
        reader = mvsa(folder, TEXTS[0].encode())
        lines = [f"{at}\t{label},{label}" for at, label in enumerate(LABELS, 1)]
        save(folder / "labelResultAll.txt", "\r\n".join(["ID\ttext,image", *lines]))
        for at, text in enumerate(TEXTS, 1):
            save(folder / "data" / f"{at}.txt", text)
            save(folder / "data" / f"{at}.jpg", GOOD_PICTURE)
        damage(folder / "data")
        return reading(reader)

    return build


def mvsa_line(content: bytes) -> Callable[[Path], Read]:
    """A line of annotations between two others."""

    def build(folder: Path) -> Read:
        read = mvsa_post(lambda _: None)(folder)
        path = folder / "labelResultAll.txt"
        lines = path.read_bytes().split(b"\r\n")
        save(path, b"\r\n".join([*lines[:2], content, *lines[3:]]))
        return read

    return build


def twitter_list(changed: Callable[[str], str]) -> Callable[[Path], Read]:
    """Three entries of Twitter JSON, whose text is changed."""

    def build(folder: Path) -> Read:
        save(folder / "good.png", GOOD_PICTURE)
        save(folder / "broken.jpg", GOOD_PICTURE[:-30])
        entries = [{"image_path" if key == "image" else key: it for key, it in row.items()} for row in rows()]
        return twitter_file(changed(json.dumps(entries)))(folder)

    return build


def folder_table(**changes: Any) -> Callable[[Path], Read]:
    """A folder of images whose table has three rows, the one in the middle changed."""

    def build(folder: Path) -> Read:
        save(folder / "good.png", GOOD_PICTURE)
        save(folder / "broken.jpg", GOOD_PICTURE[:-30])
        entries = [{"file_name" if key == "image" else key: it for key, it in row.items()} for row in rows(**changes)]
        save(folder / "metadata.jsonl", dumped([entry | {"split": "val"} for entry in entries]))
        return reading(ImageFolder(folder))

    return build


def hugging_face(**changes: Any) -> Callable[[Path], Read]:
    """A saved `Dataset` of three rows, the one in the middle changed; its column of pictures is `photo`."""

    def build(folder: Path) -> Read:
        entries = [row | {"image": GOOD_PICTURE} | (changes if at == 1 else {}) for at, row in enumerate(rows())]
        columns = {"photo" if key == "image" else key: [row[key] for row in entries] for key in entries[0]}
        disable_progress_bars()
        DatasetDict({"validation": Dataset.from_dict(columns)}).save_to_disk(folder / "saved")
        enable_progress_bars()
        return reading(HuggingFace(str(folder / "saved"), columns={"image": "photo"}))

    return build


def grouped(**changes: Any) -> Callable[[Path], Read]:
    """A table of three rows, the one in the middle changed, all for one split."""

    def build(folder: Path) -> Read:
        save(folder / "broken.jpg", GOOD_PICTURE[:-30])
        split = GroupedSplit(table(folder, dumped(rows(**changes))), train=1.0, val=0.0)
        return lambda log: [(post.text, post.label) for post in split.read("train", log)]

    return build


def picture(make: Callable[[Path], object], name: str = "wrong.jpg") -> Callable[[Path], Read]:
    """A picture that is wrong; `make` gets its path."""

    def build(folder: Path) -> Read:
        make(folder / name)
        return jsonl(image=name)(folder)

    return build


def content(wrong: bytes) -> Callable[[Path], Read]:
    return picture(lambda path: save(path, wrong))


def outside(path: Path) -> Path:
    """A good picture beside the image root."""
    (path.parent.parent / "elsewhere").mkdir()
    return save(path.parent.parent / "elsewhere" / "good.png", GOOD_PICTURE)


def linked_folder(folder: Path) -> Read:
    (folder / "album").symlink_to(outside(folder / "x").parent, target_is_directory=True)
    return jsonl(image="album/good.png")(folder)


def second_split(folder: Path) -> Read:
    save(folder / "train.jsonl", dumped([first(id="2")]))
    table(folder, dumped(rows()))
    return reading(Table({"train": folder / "train.jsonl", "val": folder / "posts.jsonl"}, folder))


def tsv_file(written: str | bytes) -> Callable[[Path], Read]:
    return lambda folder: reading(TombertTsv(save(folder / "dev.tsv", written).parent, folder))


def twitter_file(written: str) -> Callable[[Path], Read]:
    return lambda folder: reading(TwitterJson(save(folder / "posts.json", written), folder))


def parquet_file(entries: list[dict[str, Any]], **options: Any) -> Callable[[Path], Read]:
    return lambda folder: reading(parquet(folder, entries, **options))


def mvsa_header(folder: Path) -> Read:
    return reading(Mvsa(save(folder / "labelResultAll.txt", "ID\ttext,image\r\n").parent))


def link_to(target: str) -> Callable[[Path], Read]:
    return picture(lambda path: path.symlink_to(target))


RATIONALE = Rationale(TEXTS[0], "a beach", "none", "glad", LABELS[0])
RECORD = RationaleRecord("1", RATIONALE, "teacher-predicted", "big", get_prompt("masc", "teacher_predict").hash)


def rationale(prediction: str = LABELS[1], **changes: Any) -> Callable[[Path], Read]:
    """A rationale between two others."""

    def build(folder: Path) -> Read:
        written = [
            replace(RATIONALE, text_analysis=text, prediction=label) for text, label in zip(TEXTS, LABELS, strict=True)
        ]
        records = [replace(RECORD, post_id=str(at), rationale=it) for at, it in enumerate(written, 1)]
        records[1] = replace(records[1], rationale=replace(written[1], prediction=prediction), **changes)
        path = save(folder / "r.jsonl", "".join(record.to_json() + "\n" for record in records))
        posts = {it["id"]: Post(it["id"], it["text"], folder, it["aspect"], it["label"]) for it in rows()}

        def read(log: RowLog) -> list[Any]:
            found = read_rationales([path], posts, DEFAULT_LABELS, log)
            return [
                (it.rationale.text_analysis, it.rationale.prediction) for of_post in found.values() for it in of_post
            ]

        return read

    return build


def rationale_line(content: bytes) -> Callable[[Path], Read]:
    """A line of a rationale file between two others."""

    def build(folder: Path) -> Read:
        read = rationale()(folder)
        lines = (folder / "r.jsonl").read_bytes().splitlines()
        save(folder / "r.jsonl", b"\n".join([lines[0], content, lines[2]]))
        return read

    return build


def huge(kind: str, marker: bytes, at: int, size: bytes) -> bytes:
    """A small picture whose header says that it is huge."""
    frames = {"save_all": True, "append_images": [Image.new("RGB", (6, 8))]} if kind == "WEBP" else {}
    made = bytearray(encoded(SQUARE, kind, **frames))
    start = made.index(marker) + at
    made[start : start + len(size)] = size
    return bytes(made)


HUGE_PNG = png(20_000, 20_000, 1, 0, (b"\0" * 2501 for _ in range(20_000)))
"""20,000 x 20,000 black pixels, whole and valid, in 50 kB."""
HUGE = {
    "20,000 x 20,000 PNG": HUGE_PNG,
    "GIF that says that it is huge": huge("GIF", b"GIF8", 6, b"\xff" * 4),
    "JPEG that says that it is huge": huge("JPEG", b"\xff\xc0", 5, b"\xff\x00" * 2),
    "WEBP that says that it is huge": huge("WEBP", b"VP8X", 12, b"\xfe\x3f\x00" * 2),
}

# fmt: off
LINE = "FOLDER/posts.jsonl, line 2"
RECORD_LINE = "FOLDER/posts.csv, line 3"
TSV_LINE = "FOLDER/dev.tsv, line 3"
MVSA_LINE = "FOLDER/labelResultAll.txt, line 3"
RATIONALE_LINE = "FOLDER/r.jsonl, line 2"
FOLDER_LINE = "FOLDER/metadata.jsonl, line 2"
DATASET_ROW = "FOLDER/saved/validation, row 2"
IMAGE = f"{LINE}, field 'image':"
WRONG = f"{IMAGE} FOLDER/wrong.jpg:"
DAMAGED = "the picture cannot be decoded (*); fetch it again or save it anew"
INSIDE = "give a path inside the image root, relative to it"
OUT = "is a symbolic link that leads out of the image root; copy the picture into it, relative to it"
PUT = "in FOLDER; put the picture there or take the post out"
SEVERAL = "2 pictures; a post has one: split it into several posts or name the one that counts"
HALF = "holds a NUL or half a surrogate pair; take that character out"
NUL = "it holds a NUL byte; take it out, or name the file's encoding (encoding: utf-16)"
EMPTY = "it is empty; give it a text"
MISSING = "it is missing; give it a text"
TOO_LONG = (
    "100000 characters are more than 20000; shorten it, or mend the file where a quotation mark is not closed"
)
SPELT = "differs from a label in capitals or blanks; write 'neutral'"
OWN_ID = "give every post an id of its own"
LABEL_SET = "use one of 'positive', 'neutral', 'negative', or name it in `labels`"
CELLS = (
    "cells under a header of 5 columns; "
    "write one cell a column, in quotation marks where it holds the delimiter or a line break"
)
BEYOND = "JSON with a number or a nesting beyond reason; correct it"
LONG = f"{'x' * 99_996} May"
LONGER = f"{'x' * 199_996} May"
NOT_UTF8 = "is not UTF-8; save the file as UTF-8, or name its `encoding` where the reader takes one"
TWICE = "write every key once"

Refusal = tuple[Callable[[Path], Read], str]
WRONG_ROWS: dict[str, Refusal] = {
    # Pictures.
    "truncated JPEG": (content(encoded(SQUARE, "JPEG")[:-60]), f"{WRONG} {DAMAGED}"),
    "truncated PNG": (content(GOOD_PICTURE[:-30]), f"{WRONG} {DAMAGED}"),
    "truncated JPEG in MVSA": (
        mvsa_post(lambda folder: save(folder / "2.jpg", encoded(SQUARE, "JPEG")[:-60])),
        f"{MVSA_LINE}, field 'image': FOLDER/data/2.jpg: {DAMAGED}"),
    "zero-byte image": (content(b""), f"{WRONG} the picture file is empty; fetch it again"),
    "text called .jpg": (
        content(b"<!DOCTYPE html><title>404</title>"),
        f"{WRONG} it holds no JPEG, PNG, WEBP or GIF data; convert it to one of these"),
    **{
        name: (content(wrong), f"{WRONG} it has far more than 50000000 pixels; make the picture smaller")
        for name, wrong in HUGE.items()
    },
    "missing image": (jsonl(image="gone.jpg"), f"{IMAGE} there is no picture 'gone.jpg' {PUT}"),
    "directory in place of an image": (
        picture(Path.mkdir), f"{IMAGE} there is a folder, not a picture, 'wrong.jpg' {PUT}"),
    "broken symlink": (link_to("gone.jpg"), f"{IMAGE} there is a broken link, not a picture, 'wrong.jpg' {PUT}"),
    "symlink to itself": (link_to("wrong.jpg"), f"{IMAGE} there is a broken link, not a picture, 'wrong.jpg' {PUT}"),
    "broken symlink out of the root": (link_to("../../gone.jpg"), f"{IMAGE} 'wrong.jpg' {OUT}"),
    "symlink out of the root": (
        picture(lambda path: path.symlink_to(outside(path))), f"{IMAGE} 'wrong.jpg' {OUT}"),
    "symlinked folder out of the root": (linked_folder, f"{IMAGE} 'album/good.png' {OUT}"),
    "image path with ..": (jsonl(image="a/../../b.png"), f"{IMAGE} 'a/../../b.png' goes up with '..'; {INSIDE}"),
    "image path with ..\\": (jsonl(image="..\\b.png"), f"{IMAGE} '..\\\\b.png' goes up with '..'; {INSIDE}"),
    "image path with .. in TSV": (
        tsv("2\t1\t../b.png\ttwo in $T$\tMay"), f"{TSV_LINE}, field 'image': '../b.png' goes up with '..'; {INSIDE}"),
    "absolute image path": (jsonl(image="/etc/passwd"), f"{IMAGE} '/etc/passwd' is an absolute path; {INSIDE}"),
    "Windows image path": (jsonl(image="C:\\b.png"), f"{IMAGE} 'C:\\\\b.png' is an absolute path; {INSIDE}"),
    "image URL": (jsonl(image="https://a.org/b.jpg"), f"{IMAGE} 'https://a.org/b.jpg' is a URL; {INSIDE}"),
    "image data: URL": (jsonl(image="data:image/png,iV"), f"{IMAGE} 'data:image/png,iV' is a URL; {INSIDE}"),
    "image path of 100,000 characters": (jsonl(image="a" * 100_000), f"{IMAGE} there is no picture 'aaa*... {PUT}"),
    "missing image in a folder of images": (
        folder_table(image="gone.jpg"), f"{FOLDER_LINE}, field 'file_name': there is no picture 'gone.jpg' {PUT}"),
    "truncated PNG in a folder of images": (
        folder_table(image="broken.jpg"), f"{FOLDER_LINE}, field 'file_name': FOLDER/broken.jpg: {DAMAGED}"),
    "truncated PNG in Twitter JSON": (
        twitter_list(lambda text: text.replace("good.png", "broken.jpg", 2).replace("broken.jpg", "good.png", 1)),
        f"FOLDER/posts.json, row 2, field 'image_path': FOLDER/broken.jpg: {DAMAGED}"),
    "truncated PNG in a Hugging Face data set": (
        hugging_face(image=GOOD_PICTURE[:-30]), f"{DATASET_ROW}, field 'photo': {DATASET_ROW}: {DAMAGED}"),
    "no picture in a Hugging Face data set": (
        hugging_face(image=None), f"{DATASET_ROW}, field 'photo': {MISSING}"),
    "missing image in a grouped split": (
        grouped(image="gone.jpg"), f"{IMAGE} there is no picture 'gone.jpg' {PUT}"),
    "truncated PNG in a grouped split": (grouped(image="broken.jpg"), f"{IMAGE} FOLDER/broken.jpg: {DAMAGED}"),
    "list of several images": (jsonl(image=["good.png", "b.png"]), f"{IMAGE} {SEVERAL}"),
    "several images in one text": (
        record('2,two in May,"a.png;b.png",May,neutral'), f"{RECORD_LINE}, field 'image': {SEVERAL}"),
    # Texts and aspects.
    "NUL in a text": (jsonl(text="two\0 in May"), f"{LINE}, field 'text': 'two\\x00 in May' {HALF}"),
    "NUL in an image path": (jsonl(image="good.png\0.jpg"), f"{IMAGE} 'good.png\\x00.jpg' {HALF}"),
    "NUL byte in JSON Lines": (line(dumped(rows()[1:2]).strip().replace("two", "\0")), f"{LINE}: {NUL}"),
    "NUL byte in CSV": (record("2,two\0 in May,good.png,May,neutral"), f"{RECORD_LINE}: {NUL}"),
    "NUL byte in TSV": (
        tsv("2\t1\tgood.png\ttwo\0 in $T$\tMay"), f"{TSV_LINE}, field 'text': 'two\\x00 in May' {HALF}"),
    "half a surrogate pair": (jsonl(text="\ud83d in May"), f"{LINE}, field 'text': '\\ud83d in May' {HALF}"),
    "half a surrogate pair in an image path": (jsonl(image="\ud83d.png"), f"{IMAGE} '\\ud83d.png' {HALF}"),
    "half a surrogate pair in an id": (jsonl(id="\udc00"), f"{LINE}, field 'id': '\\udc00' {HALF}"),
    "empty text": (jsonl(text=""), f"{LINE}, field 'text': {EMPTY}"),
    "empty text in MVSA": (
        mvsa_post(lambda folder: save(folder / "2.txt", "\r\n")), f"{MVSA_LINE}, field 'text': {EMPTY}"),
    "text of blanks": (jsonl(text=" \t\u3000\n"), f"{LINE}, field 'text': {EMPTY}"),
    "text that is a number": (
        jsonl(text=7), f"{LINE}, field 'text': 7 is no text; put it into quotes as a text"),
    "text of 100,000 characters": (jsonl(text=LONG), f"{LINE}, field 'text': {TOO_LONG}"),
    "text of 100,000 characters in CSV": (
        record(f"2,{LONG},good.png,May,neutral"), f"{RECORD_LINE}, field 'text': {TOO_LONG}"),
    "text of 200,000 characters in CSV": (
        record(f"2,{LONGER},good.png,May,neutral"),
        f"{RECORD_LINE}, field 'text': {TOO_LONG.replace('100000', '200000')}"),
    "text of 100,000 characters in a Hugging Face data set": (
        hugging_face(text=LONG), f"{DATASET_ROW}, field 'text': {TOO_LONG}"),
    "invalid UTF-8 in JSON Lines": (line(b'{"id": "\xff"}'), f"{LINE}: byte 9 {NOT_UTF8}"),
    "invalid UTF-8 in CSV": (record(b"2,\xc3(,good.png,May,neutral"), f"{RECORD_LINE}: byte 3 {NOT_UTF8}"),
    "invalid UTF-8 in the second line of a record": (
        record(b'2,"two\nin \xff May",good.png,May,neutral'), f"{RECORD_LINE}: byte 4 of line 4 {NOT_UTF8}"),
    "invalid UTF-8 in TSV": (tsv(b"2\t1\tgood.png\t\x80 in $T$\tMay"), f"{TSV_LINE}: byte 14 {NOT_UTF8}"),
    "invalid UTF-8 in annotations of MVSA": (
        mvsa_line(b"2\tneutral,neutral\xff"), f"{MVSA_LINE}: byte 18 {NOT_UTF8}"),
    "invalid UTF-8 in a rationale": (rationale_line(b'{"post_id": "\xff"}'), f"{RATIONALE_LINE}: byte 14 {NOT_UTF8}"),
    "invalid UTF-8 in MVSA": (
        mvsa_post(lambda folder: save(folder / "2.txt", b"two\xff\xff")),
        f"{MVSA_LINE}, field 'text': FOLDER/data/2.txt is neither UTF-8 nor GB18030; save the file as UTF-8"),
    "empty aspect": (jsonl(aspect=""), f"{LINE}, field 'aspect': {EMPTY}"),
    "empty aspect in CSV": (
        record("2,two in May,good.png,,neutral"),
        f"{RECORD_LINE}, field 'aspect': {EMPTY}, or leave the column out when posts have no aspect "
        "(columns: {aspect: null})"),
    "aspect not in the text": (
        jsonl(aspect="June"),
        f"{LINE}, field 'aspect': 'June' does not stand in the text; "
        "write it as the text does, or set aspect_in_text: false where aspects are categories"),
    "empty text in a folder of images": (folder_table(text=""), f"{FOLDER_LINE}, field 'text': {EMPTY}"),
    "empty text in a Hugging Face data set": (hugging_face(text=""), f"{DATASET_ROW}, field 'text': {EMPTY}"),
    "empty aspect in a Hugging Face data set": (hugging_face(aspect=""), f"{DATASET_ROW}, field 'aspect': {EMPTY}"),
    "empty text in a grouped split": (grouped(text=""), f"{LINE}, field 'text': {EMPTY}"),
    "no place for the aspect in TSV": (
        tsv("2\t1\tgood.png\ttwo in May\tMay"),
        f"{TSV_LINE}, field 'text': $T$ stands 0 times in it; put $T$ once, where the aspect belongs"),
    # Ids and labels.
    "id that stands twice": (
        jsonl(id="1"),
        f"{LINE}, field 'id': the id '1' already stands at FOLDER/posts.jsonl, line 1; {OWN_ID}"),
    "id that stands in another split": (
        second_split,
        f"{LINE}, field 'id': the id '2' already stands at FOLDER/train.jsonl, line 1; {OWN_ID}"),
    "id that stands twice in a folder of images": (
        folder_table(id="1"),
        f"{FOLDER_LINE}, field 'id': the id '1' already stands at FOLDER/metadata.jsonl, line 1; {OWN_ID}"),
    "id that stands twice in a Hugging Face data set": (
        hugging_face(id="1"),
        f"{DATASET_ROW}, field 'id': the id '1' already stands at FOLDER/saved/validation, row 1; {OWN_ID}"),
    "id that stands twice in a grouped split": (
        grouped(id="1"),
        f"{LINE}, field 'id': the id '1' already stands at FOLDER/posts.jsonl, line 1; {OWN_ID}"),
    "unknown label in a folder of images": (
        folder_table(label="happy"), f"{FOLDER_LINE}, field 'label': unknown label 'happy'; {LABEL_SET}"),
    "unknown label in a Hugging Face data set": (
        hugging_face(label="happy"), f"{DATASET_ROW}, field 'label': unknown label 'happy'; {LABEL_SET}"),
    "label with capitals in a Hugging Face data set": (
        hugging_face(label="Neutral"), f"{DATASET_ROW}, field 'label': 'Neutral' {SPELT}"),
    "float label in a folder of images": (
        folder_table(label=1.0), f"{FOLDER_LINE}, field 'label': 1.0 is a decimal number; write 1"),
    "float label in a grouped split": (grouped(label=1.0), f"{LINE}, field 'label': 1.0 is a decimal number; write 1"),
    "unknown label": (jsonl(label="happy"), f"{LINE}, field 'label': unknown label 'happy'; {LABEL_SET}"),
    "label with blanks": (
        jsonl(label=" neutral"), f"{LINE}, field 'label': ' neutral' {SPELT}"),
    "label with capitals": (
        jsonl(label="Neutral"), f"{LINE}, field 'label': 'Neutral' {SPELT}"),
    "float label": (jsonl(label=1.0), f"{LINE}, field 'label': 1.0 is a decimal number; write 1"),
    "float label in CSV": (
        record("2,two in May,good.png,May,1.0"), f"{RECORD_LINE}, field 'label': unknown label '1.0'; {LABEL_SET}"),
    "float label in TSV": (
        tsv("2\t1.0\tgood.png\ttwo in $T$\tMay"),
        f"{TSV_LINE}, field 'label': unknown code '1.0'; use one of 0 negative, 1 neutral, 2 positive"),
    # Rows.
    "missing key": (jsonl(text=ABSENT), f"{LINE}, field 'text': {MISSING}"),
    "missing id": (jsonl(id=ABSENT), f"{LINE}, field 'id': {MISSING}"),
    "null in Parquet": (parquet_file(rows(text=None)), f"FOLDER/posts.parquet, row 2, field 'text': {MISSING}"),
    "extra cell in CSV": (record("2,two, in May,good.png,May,neutral"), f"{RECORD_LINE}: 6 {CELLS}"),
    "missing cell in CSV": (record("2,two in May,good.png,May"), f"{RECORD_LINE}: 4 {CELLS}"),
    "extra column in TSV": (
        tsv("2\t1\tgood.png\ttwo in $T$\tMay\tx"),
        f"{TSV_LINE}: 6 tab-separated columns; write 5 columns: index, label, image, text, aspect"),
    "key that stands twice in JSON Lines": (
        line(dumped(rows()[1:2]).strip().replace("{", '{"label": "positive", ')),
        f"{LINE}: the key 'label' stands twice; {TWICE}"),
    "key that stands twice in Twitter JSON": (
        twitter_list(lambda text: text.replace('{"id": "2"', '{"text": "May", "id": "2"')),
        f"FOLDER/posts.json, row 2: the key 'text' stands twice; {TWICE}"),
    "key that stands twice in a rationale": (
        rationale_line(RECORD.to_json().replace('"Prediction"', '"Text_analysis"').encode()),
        f"{RATIONALE_LINE}: the key 'Text_analysis' stands twice; {TWICE}"),
    "JSON line cut off": (
        line('{"id": "2", "text": "two in'),
        f"{LINE}: no valid JSON at column 21 (Unterminated string starting at); correct it there"),
    "deeply nested JSON": (line('{"id": ' + "[" * 100_000), f"{LINE}: {BEYOND}"),
    "huge whole number": (line('{"id": ' + "9" * 10_000 + "}"), f"{LINE}: {BEYOND}"),
    "no JSON object": (line("[]"), f'{LINE}: [] is no JSON object; write {{"id": ..., "text": ..., ...}}'),
    # Rationales.
    "rationale for an unknown post": (
        rationale(post_id="9"),
        f"{RATIONALE_LINE}, field 'post_id': there is no post '9' in the data; "
        "use the data that the rationale file was made from"),
    "rationale of another prompt version": (
        rationale(prompt_hash="0123456789abcdef"),
        f"{RATIONALE_LINE}, field 'prompt_hash': '0123456789abcdef' is another version of the prompt than * or *; "
        "write the rationales again, or accept them with data.init_args.other_prompts=true"),
    "rationale against gold": (
        rationale(prediction="positive"),
        f"{RATIONALE_LINE}, field 'Prediction': 'positive' contradicts the gold label 'neutral' of post '2'; "
        "take the line out, or label the data again"),
}

NAMED = {"columns": {"label": "sentiment"}}
NO_LABEL = (
    "there is no column 'sentiment', the columns are 'id', 'text', 'image', 'aspect', 'label'; "
    "say in the reader's arguments which one holds the label, as columns: {label: NAME}"
)
NO_POSTS = "it holds no posts; give a file with at least one"
NOT_CLOSED = (
    "the quotation mark that opens a field here is not closed, or text follows the one that closes it; "
    'close it, and write a quotation mark inside of quotes as ""'
)

WRONG_FILES: dict[str, Refusal] = {
    "missing file": (
        lambda folder: reading(TwitterJson(folder / "gone.json", folder)),
        "FOLDER/gone.json: there is no such file; check the path in the reader's arguments"),
    "missing column in CSV": (record("2,two in May,good.png,May,neutral", **NAMED), f"FOLDER/posts.csv: {NO_LABEL}"),
    "missing column in Parquet": (parquet_file(rows(), **NAMED), f"FOLDER/posts.parquet: {NO_LABEL}"),
    "missing column in JSON Lines": (whole(dumped(rows()), **NAMED), f"FOLDER/posts.jsonl: {NO_LABEL}"),
    "unbalanced quotes": (record('2,"two in May,good.png,May,neutral'), f"{RECORD_LINE}: {NOT_CLOSED}"),
    "text behind closed quotes": (record('2,"two" in May,good.png,May,neutral'), f"{RECORD_LINE}: {NOT_CLOSED}"),
    "NUL byte in a header": (whole(f"id\0,{HEADER}\n", ".csv"), f"FOLDER/posts.csv, line 1: {NUL}"),
    "empty JSON Lines": (whole(""), f"FOLDER/posts.jsonl: {NO_POSTS}"),
    "empty CSV": (whole("\ufeff\r\n", ".csv"), f"FOLDER/posts.csv: {NO_POSTS}"),
    "empty Parquet": (whole("", ".parquet"), "FOLDER/posts.parquet: no whole Parquet file (*); write it again"),
    "empty TSV": (
        tsv_file(""), "FOLDER/dev.tsv, line 1: the header is missing; begin the file with a line 'index<TAB>...'"),
    "empty Twitter JSON": (twitter_file("\n"), f"FOLDER/posts.json: {NO_POSTS}"),
    "CSV of headers only": (whole(f"{HEADER}\n\n", ".csv"), f"FOLDER/posts.csv: {NO_POSTS}"),
    "TSV of headers only": (tsv_file("index\tlabel\timage\ttext\taspect\n"), f"FOLDER/dev.tsv: {NO_POSTS}"),
    "Parquet of headers only": (parquet_file([]), f"FOLDER/posts.parquet: {NO_POSTS}"),
    "MVSA of headers only": (mvsa_header, f"FOLDER/labelResultAll.txt: {NO_POSTS}"),
    "invalid UTF-8 in a header of CSV": (
        whole(HEADER.encode() + b"\xff\n1,May,good.png,May,\n2,May,good.png,May,", ".csv"),
        f"FOLDER/posts.csv, line 1: byte 27 {NOT_UTF8}"),
    "GB18030 in JSON Lines called UTF-8": (
        whole(dumped([first(id=str(at), text=CHINESE) for at in range(9)], ascii_only=False).encode("gb18030")),
        f"FOLDER/posts.jsonl, line 1: byte 22 {NOT_UTF8}"),
    "GB18030 in CSV called UTF-8": (
        whole(f"{HEADER}\n{CHINESE},{CHINESE},good.png,May,\n{CHINESE},,,,\n".encode("gb18030"), ".csv"),
        f"FOLDER/posts.csv, line 2: byte 1 {NOT_UTF8}"),
    "UTF-16 without a mark": (
        whole(dumped([first(text=CHINESE + "\u00e9")] * 3, ascii_only=False).encode("utf-16-le")),
        f"FOLDER/posts.jsonl, line 1: byte * {NOT_UTF8}"),
    "invalid UTF-8 in a header of TSV": (tsv_file(b"index\t\x80\n"), f"FOLDER/dev.tsv, line 1: byte 7 {NOT_UTF8}"),
    "Twitter JSON cut off": (
        twitter_file('[{"id": 1'),
        "FOLDER/posts.json: no valid JSON at column 10 (Expecting ',' delimiter); correct it there"),
    "deeply nested Twitter JSON": (twitter_file("[" * 100_000), f"FOLDER/posts.json: {BEYOND}"),
}
# fmt: on
REFUSED = WRONG_ROWS | WRONG_FILES
GOOD = [(TEXTS[0], LABELS[0]), (TEXTS[2], LABELS[2])]


def refusal(read: Read, log: RowLog) -> str:
    with pytest.raises(InputError) as caught:
        read(log)
    return str(caught.value)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_this_message(name: str, tmp_path: Path) -> None:
    build, message = REFUSED[name]
    folder = tmp_path / "posts"
    folder.mkdir()
    read = build(folder)
    found = refusal(read, RowLog("error", decode=True))
    assert found.isprintable()
    assert message.startswith("FOLDER/")
    assert re.fullmatch(".*".join(map(re.escape, message.split("*"))), found.replace(str(folder), "FOLDER")), found
    log = RowLog("skip", decode=True)
    if name in WRONG_FILES:
        assert refusal(read, log) == found  # what is wrong is no row, so nothing can be left out
        return
    assert read(log) == GOOD
    assert [str(error) for error in log.bad] == [found]
    listed = json.loads(log.bad[0].to_json())
    unit = log.bad[0].row.unit
    assert message.startswith(f"FOLDER{listed['file'].removeprefix(str(folder))}, {unit} {listed[unit]}")
    assert f"{listed['problem']}; {listed['remedy']}" in found


def test_float_labels_in_a_column_of_parquet(tmp_path: Path) -> None:
    """Such a column holds numbers alone, so every row with a label is wrong; null becomes NaN on the way of pandas."""
    entries = [row | {"label": label} for row, label in zip(rows(), (1.0, None, float("nan")), strict=True)]
    read = parquet_file(entries)(tmp_path)
    log = RowLog("skip")
    assert read(log) == [(TEXTS[1], None)]
    place = f"{tmp_path / 'posts.parquet'}, row"
    assert [str(error) for error in log.bad] == [
        f"{place} 1, field 'label': 1.0 is a decimal number; write 1",
        f"{place} 3, field 'label': nan is a decimal number; write a whole number or a text",
    ]
    assert refusal(read, RowLog("error")) == str(log.bad[0])


@pytest.mark.parametrize("name", HUGE)
@pytest.mark.parametrize("open_picture", [load_image, upright_size])
def test_a_huge_picture_is_not_decoded(
    name: str, open_picture: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("the picture is decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", forbidden)
    monkeypatch.setattr(WebPImagePlugin.WebPImageFile, "load", forbidden)
    path = save(tmp_path / "huge.jpg", HUGE[name])
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises(InputError, match=r"huge\.jpg: it has far more than 50000000 pixels; make the picture smaller"):
        open_picture(path)
    assert time.perf_counter() - started < 5
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_the_size_in_a_header_is_checked_as_that_of_a_whole_picture(tmp_path: Path) -> None:
    # More than is taken, and less than Pillow itself refuses.
    path = save(tmp_path / "large.png", png(8_000, 8_000, 1, 0, [b"\0" * 1001]))
    for open_picture in (load_image, upright_size):
        with pytest.raises(InputError, match="8000 x 8000 pixels are more than 50000000; make the picture smaller"):
            open_picture(path)


# Pictures of any shape become rows.

SHAPES = [(1, 1), (1, 2000), (2000, 1), (830, 100), (90, 300), (3000, 10), (10, 3000), (40, 8000), (600, 92), (27, 29)]


@pytest.fixture(scope="module")
def student(embedded: Path) -> Any:
    return load_processor(str(embedded / "models" / "student"))


def picture_tokens(encoder: RowEncoder, path: Path, size: tuple[int, int]) -> int:
    """How many tokens a picture takes in a row, counted in the row and as planned from its size alone."""
    Image.new("RGB", size, "navy").save(path)
    head = encoder.head(encoder.row(Post("1", "hail", path), "classification"))
    pad = encoder.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    ids = head.per_token["input_ids"].tolist()
    assert len(ids) == encoder.head_tokens("msc", *size)
    assert head.vision["image_grid_thw"].prod() == 4 * ids.count(pad)
    return ids.count(pad)


@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_a_picture_of_any_shape_stays_within_the_budget(student: Any, size: tuple[int, int], tmp_path: Path) -> None:
    budget = student.image_processor.size["longest_edge"] // 28**2
    assert 1 <= picture_tokens(RowEncoder(student, DEFAULT_LABELS), tmp_path / "a.png", size) <= budget == 4


@pytest.mark.parametrize("pixels", [28 * 28, 100 * 28 * 28, 16384 * 28 * 28])
@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_other_budgets_are_kept_too(student: Any, pixels: int, size: tuple[int, int], tmp_path: Path) -> None:
    processor = build_processor(student.tokenizer, pixels)
    assert 1 <= picture_tokens(RowEncoder(processor, DEFAULT_LABELS), tmp_path / "a.png", size) <= pixels // 28**2


@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_a_picture_of_any_shape_is_squeezed_as_published(student: Any, size: tuple[int, int], tmp_path: Path) -> None:
    before = student.image_processor.to_dict()
    encoder = RowEncoder(student, DEFAULT_LABELS, image_size=(280, 280))
    assert picture_tokens(encoder, tmp_path / "a.png", size) == 100  # (280 / 28) squared
    assert encoder.processor is student  # what is saved with the model keeps its own budget
    assert student.image_processor.to_dict() == before


def test_usual_pictures_are_given_to_the_processor_as_they_are(student: Any) -> None:
    assert within_ratio(600, 92, 200) == (600, 92)
    assert within_ratio(2000, 10, 200) == (2000, 10)
    assert within_ratio(2001, 10, 200) == (1819, 11)
    assert within_ratio(1, 2000, 200) == (4, 500)
    assert within_ratio(50_000_000, 1, 200) == (100_000, 500)
    assert within_ratio(3, 1, 1) == (2, 2)


def test_limits_of_shape_hold_for_every_size() -> None:
    for long in range(1, 400, 7):
        for short in range(1, long + 1, 3):
            for limit in (1, 2, 4, 100):
                width, height = within_ratio(short, long, limit)
                assert width <= height <= limit * width
                assert (width, height) == (short, long) or width * height <= max(long * short, width * width)
