"""Hostile pictures and paths: each is refused by name, no file is made, and memory stays bounded."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mulcot.images import FORMATS, MAX_BYTES, MAX_PIXELS, load_image, upright_size
from mulcot.types import InputError

SQUARE = Image.fromarray(np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3))
ROWS = zlib.compress((b"\0" + bytes(6 * 3)) * 8)
ZEROS = zlib.compress(bytes(200_000_000), 9)
"""200 MB in 200 kB."""


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(*chunks: tuple[bytes, bytes], size: tuple[int, int] = (6, 8), pixels: bytes = ROWS) -> bytes:
    """A PNG put together from its specification: colours of 8 bits, and chunks before the pixels."""
    header = (b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    parts = [header, *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    made = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def gif(width: int, height: int) -> bytes:
    """A GIF whose first frame says that it is so large, and holds next to nothing."""
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00;"
    return b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0x80, 0, 0) + bytes(6) + frame


def webp(width: int, height: int) -> bytes:
    """An animated WEBP whose canvas says that it is so large."""
    made = bytearray(encoded(SQUARE, "WEBP", save_all=True, append_images=[Image.new("RGB", (6, 8))]))
    at = made.index(b"VP8X") + 12
    made[at : at + 6] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(made)


def text_chunks() -> bytes:
    """Comments that together come to 450 MB."""
    return png(*[(b"zTXt", b"a%d\0\0" % at + zlib.compress(bytes(900_000))) for at in range(500)])


SVG = b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY a SYSTEM "file:///etc/passwd">]><svg>&a;</svg>'
NO_PICTURE = "it holds no JPEG, PNG, WEBP or GIF data"
BOMB = "pixels; make the picture smaller"
CUT = "the picture cannot be decoded"

HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "PNG of 10**9 pixels": (lambda: png(size=(31_623, 31_623), pixels=ZEROS), BOMB),
    "PNG of 2**31 - 1 pixels a side": (lambda: png(size=(2**31 - 1, 2**31 - 1)), BOMB),
    "GIF frame beyond its canvas": (lambda: gif(65_535, 65_535), BOMB),
    "WEBP of 2**28 pixels": (lambda: webp(16_384, 16_384), BOMB),
    "truncated": (lambda: encoded(SQUARE, "JPEG")[:-60], CUT),
    "compressed comment of 200 MB": (lambda: png((b"zTXt", b"a\0\0" + ZEROS)), CUT),
    "international comment of 200 MB": (lambda: png((b"iTXt", b"a\0\1\0\0\0" + ZEROS)), CUT),
    "500 comments of 900 kB": (text_chunks, CUT),
    "colour profile of 200 MB": (lambda: png((b"iCCP", b"a\0\0" + ZEROS)), CUT),
    "TIFF called .jpg": (lambda: encoded(SQUARE, "TIFF"), NO_PICTURE),
    "BMP called .jpg": (lambda: encoded(SQUARE, "BMP"), NO_PICTURE),
    "PSD called .jpg": (lambda: b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 8, 6, 8, 3) + bytes(999), NO_PICTURE),
    "EPS called .jpg": (lambda: encoded(SQUARE, "EPS"), NO_PICTURE),
    "PDF called .jpg": (lambda: encoded(SQUARE, "PDF"), NO_PICTURE),
    "ICNS called .jpg": (lambda: encoded(SQUARE.resize((16, 16)), "ICNS"), NO_PICTURE),
    "SVG with an entity of the disk": (lambda: SVG, NO_PICTURE),
    "zip archive before a picture": (lambda: b"PK\x03\x04" + encoded(SQUARE, "PNG"), NO_PICTURE),
    "page with a picture behind it": (lambda: b"<script>alert(1)</script>" + encoded(SQUARE, "JPEG"), NO_PICTURE),
    "0 bytes": (lambda: b"", "the picture file is empty"),
    "65 MB of comment": (lambda: png((b"tEXt", b"a\0" + b"x" * MAX_BYTES)), "bytes are more than"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_picture_is_refused(name: str, tmp_path: Path, measured: Any) -> None:
    make, words = HOSTILE[name]
    path = tmp_path / "wrong.jpg"
    path.write_bytes(make())

    def look() -> int:
        for open_picture in (upright_size, load_image):
            if open_picture is upright_size and words == CUT and name == "truncated":
                continue  # its header is whole
            with pytest.raises(InputError, match=r"wrong\.jpg: ") as caught:
                open_picture(path)
            assert words in str(caught.value)
            assert "\n" not in str(caught.value)
        return 0

    outcome = measured(look)
    assert (outcome.code, outcome.errors) == (0, [])
    assert outcome.peak_mb < 100
    assert list(tmp_path.iterdir()) == [path]


ODD: dict[str, Callable[[], bytes]] = {
    "GIF of 5,000 frames": lambda: encoded(
        Image.new("P", (6, 8)), "GIF", save_all=True,
        append_images=[Image.new("P", (6, 8), at % 200 + 1) for at in range(5_000)]),
    "WEBP of 300 frames": lambda: encoded(
        Image.new("RGB", (6, 8)), "WEBP", save_all=True,
        append_images=[Image.new("RGB", (6, 8), (at % 200, 9, 9)) for at in range(300)]),
    "JPEG with a page behind it": lambda: encoded(SQUARE, "JPEG") + b"PK\x03\x04<script>alert(1)</script>",
    "pixels of 200 MB for 48": lambda: png(pixels=ZEROS),
    "EXIF of 65,535 entries": lambda: png(
        (b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\x07\xff\xff\xff\xff\0\0\0\0" * 5_000)),
    "EXIF that ends in itself": lambda: encoded(SQUARE, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\x08"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_what_is_read_of_an_odd_picture_is_its_first_frame_alone(name: str, tmp_path: Path, measured: Any) -> None:
    path = tmp_path / "odd.jpg"
    path.write_bytes(ODD[name]())

    def look() -> int:
        picture = load_image(path)
        assert (picture.mode, picture.size, picture.info) == ("RGB", (6, 8), {})
        return 0

    outcome = measured(look)
    assert (outcome.code, outcome.errors) == (0, [])
    assert outcome.peak_mb < 50


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "P", "I;16"])
def test_the_largest_picture_takes_a_bounded_amount(mode: str, tmp_path: Path, measured: Any) -> None:
    side = int(MAX_PIXELS**0.5)
    path = tmp_path / "largest"
    Image.new(mode, (side, side)).save(path, "JPEG" if mode == "CMYK" else "PNG")
    outcome = measured(lambda: int(load_image(path).size != (side, side)))
    assert (outcome.code, outcome.errors) == (0, [])
    assert outcome.peak_mb < 1_200  # 24 bytes a pixel


def test_no_other_decoder_is_ever_asked() -> None:
    assert set(FORMATS) == {"JPEG", "PNG", "WEBP", "GIF"}


# -- paths ----------------------------------------------------------------------------------------------------------


def outside(root: Path) -> Path:
    """A good picture beside the image root."""
    folder = root.parent / "elsewhere"
    folder.mkdir()
    SQUARE.save(folder / "secret.png")
    return folder / "secret.png"


def link(name: str, target: Callable[[Path], Any]) -> Callable[[Path], str]:
    def make(root: Path) -> str:
        (root / name).symlink_to(target(root))
        return name

    return make


def chain_of_links(root: Path) -> str:
    target = outside(root)
    for at in range(5):
        (root / f"link{at}").symlink_to(target)
        target = Path(f"link{at}")
    return "link4"


def linked_folder(root: Path) -> str:
    (root / "album").symlink_to(outside(root).parent, target_is_directory=True)
    return "album/secret.png"


def fifo(root: Path) -> str:
    os.mkfifo(root / "pipe.png")
    return "pipe.png"


def named(name: str) -> Callable[[Path], str]:
    def make(root: Path) -> str:
        outside(root)
        return name

    return make


PATHS: dict[str, tuple[Callable[[Path], str], str]] = {
    "..": (named("../elsewhere/secret.png"), "goes up with '..'"),
    ".. in the middle": (named("a/../../elsewhere/secret.png"), "goes up with '..'"),
    "absolute": (named("/etc/passwd"), "is an absolute path"),
    "a link out of the root": (link("link.png", outside), "a symbolic link that leads out"),
    "a chain of links": (chain_of_links, "a symbolic link that leads out"),
    "a linked folder": (linked_folder, "a symbolic link that leads out"),
    "a link to a device": (link("zero.png", lambda root: "/dev/zero"), "a symbolic link that leads out"),
    "a link of the process": (link("self.png", lambda root: "/proc/self/environ"), "a symbolic link that leads out"),
    "NUL": (named("good.png\0.jpg"), "holds a NUL"),
    "half a surrogate pair": (named("\ud800.png"), "half a surrogate pair"),
    "a home": (named("~/secret.png"), "there is no picture"),
    "a home of root": (named("~root/secret.png"), "there is no picture"),
    "a variable": (named("$HOME/secret.png"), "there is no picture"),
    "a URL": (named("https://example.org/a.png"), "is a URL"),
    "a file: URL": (named("file:///etc/passwd"), "is a URL"),
    "a data: URL": (named("data:image/png;base64,iVBORw0KGgo="), "is a URL"),
    "Windows separators": (named("..\\elsewhere\\secret.png"), "goes up with '..'"),
    "a Windows drive": (named("C:\\secret.png"), "is an absolute path"),
    "a Windows share": (named("\\\\host\\share\\a.png"), "is an absolute path"),
    "dots of another script": (named("\uff0e\uff0e/elsewhere/secret.png"), "there is no picture"),
    "a slash of another script": (named("..\u2215elsewhere\u2215secret.png"), "there is no picture"),
    "an encoded slash": (named("..%2felsewhere%2fsecret.png"), "there is no picture"),
    "another case": (named("GOOD.PNG"), "there is no picture"),
    "a blank behind it": (named("good.png "), "there is no picture"),
    "a pipe": (fifo, "there is no picture"),
    "a folder": (lambda root: (root / "folder.png").mkdir() or "folder.png", "there is a folder, not a picture"),
    "the root": (named("."), "there is a folder, not a picture"),
}


@pytest.mark.parametrize("name", PATHS)
def test_a_hostile_path_is_refused_by_every_way_in(name: str, tmp_path: Path, refused: Any) -> None:
    make, words = PATHS[name]
    root = tmp_path / "images"
    root.mkdir()
    SQUARE.save(root / "good.png")
    given = make(root)
    table = tmp_path / "train.jsonl"
    row = {"id": "1", "text": "hail", "label": "neutral"}
    table.write_text("".join(json.dumps(row | {"id": str(at), "image": it}) + "\n"
                             for at, it in enumerate(["good.png", given])))  # fmt: skip
    reader = ["--posts", "Table", "--posts.files", json.dumps({"train": str(table)}), "--posts.image_root", root]
    error = refused("data", "convert", *reader, "--out", tmp_path / "out", name=f"{table}, line 2, field 'image'")
    assert words in error


@pytest.mark.parametrize("target", ["/dev/zero", "/dev/stdin", "/proc/self/mem", "PIPE", "FOLDER"])
def test_infer_opens_nothing_but_a_file(target: str, embedded: Path, tmp_path: Path, refused: Any) -> None:
    path = tmp_path / "picture.png"
    if target == "PIPE":
        os.mkfifo(path)
    elif target == "FOLDER":
        path.mkdir()
    else:
        path.symlink_to(target)
    refused("infer", "--model", embedded / "models" / "student", "--image", path, "--text", "hail", name=str(path))
