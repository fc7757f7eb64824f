import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mulcot.images import load_image
from mulcot.types import InputError


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file put together from its specification, so that nothing of Pillow's writer is trusted."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, body) for kind, body in parts)


def written(folder: Path, content: bytes, name: str = "picture.jpg") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> list[list[list[int]]]:
    return np.asarray(image).tolist()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_the_content_and_not_the_suffix_tells_the_format(tmp_path: Path, kind: str) -> None:
    image = load_image(written(tmp_path, encoded(Image.new("RGB", (6, 4), (255, 0, 0)), kind), "a.txt"))
    assert (image.mode, image.size) == ("RGB", (6, 4))
    assert np.abs(np.asarray(image, dtype=int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "ICO", "PPM"])
def test_other_formats_are_refused(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, encoded(Image.new("RGB", (16, 16)), kind))
    with pytest.raises(InputError, match=r"picture\.jpg: it holds no JPEG, PNG, WEBP or GIF data; convert it"):
        load_image(path)


def test_sixteen_bit_greys_keep_their_brightness(tmp_path: Path) -> None:
    rows = b"\0" + struct.pack(">4H", 0, 0x0100, 0x8000, 0xFFFF)
    image = load_image(written(tmp_path, png(4, 1, 16, 0, rows)))
    assert pixels(image) == [[[0] * 3, [1] * 3, [128] * 3, [255] * 3]]


def test_sixteen_bit_greys_with_a_transparent_value(tmp_path: Path) -> None:
    rows = b"\0" + struct.pack(">2H", 0x1234, 0x1235)
    image = load_image(written(tmp_path, png(2, 1, 16, 0, rows, (b"tRNS", struct.pack(">H", 0x1234)))))
    assert pixels(image) == [[[255] * 3, [0x12] * 3]]


def test_one_bit_and_eight_bit_greys(tmp_path: Path) -> None:
    assert pixels(load_image(written(tmp_path, png(2, 1, 1, 0, b"\0\x40")))) == [[[0] * 3, [255] * 3]]
    assert pixels(load_image(written(tmp_path, png(2, 1, 8, 0, b"\0\x07\xc8")))) == [[[7] * 3, [200] * 3]]


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    half_red = png(3, 1, 8, 6, b"\0" + bytes([255, 0, 0, 255, 255, 0, 0, 0, 0, 0, 0, 51]))
    assert pixels(load_image(written(tmp_path, half_red))) == [[[255, 0, 0], [255] * 3, [204] * 3]]
    grey_alpha = png(2, 1, 8, 4, b"\0" + bytes([10, 255, 10, 0]))
    assert pixels(load_image(written(tmp_path, grey_alpha))) == [[[10] * 3, [255] * 3]]


def test_palette_with_transparent_entries(tmp_path: Path) -> None:
    chunks = ((b"PLTE", bytes([1, 2, 3, 9, 8, 7, 0, 0, 0])), (b"tRNS", bytes([255, 0])))
    image = load_image(written(tmp_path, png(3, 1, 8, 3, b"\0\0\1\2", *chunks)))
    assert pixels(image) == [[[1, 2, 3], [255] * 3, [0, 0, 0]]]


def test_a_transparent_colour_becomes_white(tmp_path: Path) -> None:
    key = (b"tRNS", struct.pack(">3H", 1, 2, 3))
    image = load_image(written(tmp_path, png(2, 1, 8, 2, b"\0" + bytes([1, 2, 3, 1, 2, 4]), key)))
    assert pixels(image) == [[[255] * 3, [1, 2, 4]]]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    image = load_image(written(tmp_path, encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")))
    assert np.abs(np.asarray(image, dtype=int) - (255, 0, 0)).max() <= 8


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((0, 0, 255), (255, 0, 0), (0, 255, 0))]
    options = {"lossless": True} if kind == "WEBP" else {}
    image = load_image(written(tmp_path, encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)))
    assert pixels(image) == [[[0, 0, 255]] * 4] * 4


# Corner pixels of the stored picture are numbered 1 2 / 3 4. What a viewer shows for each orientation, by the EXIF
# standard's wording of where row 0 and column 0 belong.
@pytest.mark.parametrize(
    ("orientation", "seen"),
    [
        (1, [[1, 2], [3, 4]]),  # row 0 top, column 0 left
        (2, [[2, 1], [4, 3]]),  # top, right
        (3, [[4, 3], [2, 1]]),  # bottom, right
        (4, [[3, 4], [1, 2]]),  # bottom, left
        (5, [[1, 3], [2, 4]]),  # left, top
        (6, [[3, 1], [4, 2]]),  # right, top
        (7, [[4, 2], [3, 1]]),  # right, bottom
        (8, [[2, 4], [1, 3]]),  # left, bottom
        (9, [[1, 2], [3, 4]]),  # no such orientation
    ],
)
def test_the_orientation_is_applied_once(tmp_path: Path, orientation: int, seen: list[list[int]]) -> None:
    stored = Image.fromarray(np.array([[1, 2], [3, 4]], dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = load_image(written(tmp_path, encoded(stored, "PNG", exif=exif)))
    assert np.asarray(image)[:, :, 0].tolist() == seen
    assert image.info == {}
    assert image.getexif().get(0x0112) is None


def test_damaged_exif_does_not_refuse_the_picture_or_warn(tmp_path: Path) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\xff\xff\xff\x7f" + b"\xff" * 9
    path = written(tmp_path, encoded(Image.new("RGB", (8, 5), "white"), "JPEG", exif=exif))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(path).size == (8, 5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the picture file is empty; fetch it again"),
        (b"<!DOCTYPE html><title>404</title>", "it holds no JPEG, PNG, WEBP or GIF data"),
        (b"\x89PNG\r\n\x1a\n", "picture"),
    ],
)
def test_files_that_are_no_picture(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_image(written(tmp_path, content))
    assert "picture.jpg" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_pictures_are_refused(tmp_path: Path, kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), kind)
    with pytest.raises(InputError, match=r"picture\.jpg: .*(fetch it again|convert it)"):
        load_image(written(tmp_path, content[: int(len(content) * share)]))


def test_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such picture file"):
        load_image(tmp_path / "gone.jpg")
    with pytest.raises(InputError, match="no such picture file"):
        load_image(tmp_path)


@pytest.mark.parametrize("side", [7_072, 10_000, 20_000])
def test_decompression_bombs_are_refused_before_they_are_decoded(tmp_path: Path, side: int) -> None:
    # Below Pillow's own warning, at the warning, and at its error: the answer is an InputError each time.
    path = written(tmp_path, png(side, side, 1, 0, b"\0"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match=r"picture\.jpg: .*pixels"):
            load_image(path)


def test_the_pixel_cap_is_inclusive(tmp_path: Path) -> None:
    path = written(tmp_path, encoded(Image.new("L", (6, 4)), "PNG"))
    assert load_image(path, max_pixels=24).size == (6, 4)
    with pytest.raises(InputError, match="6 x 4 pixels are more than 23; make the picture smaller"):
        load_image(path, max_pixels=23)


def test_the_file_can_be_removed_while_the_picture_is_used(tmp_path: Path) -> None:
    path = written(tmp_path, encoded(Image.new("RGB", (3, 2), (1, 2, 3)), "PNG"))
    image = load_image(path)
    path.unlink()
    assert pixels(image) == [[[1, 2, 3]] * 3] * 2


def test_real_pictures_with_quirks(shared_data: Path) -> None:
    images = {path.name: load_image(path) for path in sorted((shared_data / "quirks_originals").glob("*.jpg"))}
    assert len(images) == 10
    assert {image.mode for image in images.values()} == {"RGB"}
    assert images["mvsa_4066.jpg"].size == (48, 48)
    assert images["t15_1086050.jpg"].size == (600, 92)
    assert images["t15_1003283.jpg"].size == (512, 372)
