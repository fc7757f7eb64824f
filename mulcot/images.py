"""A post's picture: from a file that may be anything to upright RGB on white."""

import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np
from PIL import Image, UnidentifiedImageError

from mulcot.types import InputError, StoredPicture

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF")
"""What a picture may be, told by its content; many a file called `.jpg` holds PNG data."""
MAX_PIXELS: Final = 50_000_000
"""More than any camera's picture in a post, and 150 MB once decoded."""
MAX_BYTES: Final = 64 << 20
"""Of a file: as many as a picture of so many pixels takes at most, nearly; Pillow reads comments in one piece."""

_ORIENTATION_TAG: Final = 0x0112
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS: Final = (5, 6, 7, 8)
"""The orientations in which width and height change places."""
_BROKEN: Final = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow and the codecs under it raise on damaged files."""


def load_image(picture: Path | StoredPicture, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A post's picture, in RGB with 8 bits a channel, as a viewer would show it on a white page.

    The first frame of an animation is taken, an EXIF orientation is applied, what is transparent becomes white, and
    palettes, greys, CMYK and 16-bit greys are converted. The result keeps no metadata and no hold on the file. Several
    threads may load pictures at once.

    Args:
        picture: A JPEG, PNG, WEBP or GIF file, whatever its suffix; or one that lies in a table.
        max_pixels: The largest width times height that is decoded.

    Raises:
        InputError: There is no such file, it is no picture of these formats, it is damaged, or it is too large.
    """
    with _quiet(), _opened(picture, max_pixels) as opened:
        return _plain(opened)


def upright_size(picture: Path | StoredPicture) -> tuple[int, int]:
    """Width and height of a picture as `load_image` gives it, from its header alone.

    Raises:
        InputError: As `load_image`, as far as a header shows it; the size is part of that.
    """
    with _quiet(), _opened(picture, MAX_PIXELS) as opened:
        width, height = opened.size
        return (height, width) if _orientation(opened) in _SIDEWAYS else (width, height)


@contextmanager
def _opened(picture: Path | StoredPicture, max_pixels: int) -> Iterator[Image.Image]:
    """The picture's header, and an error of one line for whatever is wrong with it, also while it is decoded."""
    name = str(picture) if str(picture).isprintable() else repr(str(picture))
    try:
        with Image.open(_source(name, picture), formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > max_pixels:
                raise _too_large(name, f"{width} x {height} pixels are more than {max_pixels}")
            yield opened
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: it holds no JPEG, PNG, WEBP or GIF data; convert it to one of these") from error
    except InputError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own cap, before it tells the size
        raise _too_large(name, f"it has far more than {max_pixels} pixels") from error
    except _BROKEN as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{name}: the picture cannot be decoded ({reason}); fetch it again or save it anew") from error


def _too_large(name: str, problem: str) -> InputError:
    return InputError(f"{name}: {problem}; make the picture smaller")


def _source(name: str, picture: Path | StoredPicture) -> Path | BytesIO:
    """What Pillow is to open."""
    if not isinstance(picture, Path):
        content = picture.read_bytes()
        if not content:
            raise InputError(f"{name}: the picture is empty; fetch it again")
        _check_bytes(name, len(content))
        return BytesIO(content)
    if not os.path.isfile(picture):  # a pipe or a device would be waited for
        raise InputError(f"{name}: there is no such picture file; put it there or correct the path")
    size = os.path.getsize(picture)
    if size == 0:
        raise InputError(f"{name}: the picture file is empty; fetch it again")
    _check_bytes(name, size)
    return picture


def _check_bytes(name: str, size: int) -> None:
    if size > MAX_BYTES:
        raise _too_large(name, f"{size} bytes are more than {MAX_BYTES}")


_silence = Lock()
_silent: list[Any] = []
_depth = 0


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings: Pillow warns of damaged metadata, which no pixel depends on, and of sizes, which are checked here.

    Filters of warnings belong to the process, so the first thread in changes them and the last one out restores them.
    """
    global _depth
    with _silence:
        if _depth == 0:
            _silent.append(warnings.catch_warnings())
            _silent[0].__enter__()
            warnings.simplefilter("ignore")
        _depth += 1
    try:
        yield
    finally:
        with _silence:
            _depth -= 1
            if _depth == 0:
                _silent.pop().__exit__(None, None, None)


def _plain(opened: Image.Image) -> Image.Image:
    """The decoded picture as RGB without metadata."""
    # Decoding comes first: looking for EXIF decodes a PNG too, and its failure there is no reason to refuse a picture.
    opened.load()
    orientation = _orientation(opened)
    picture = _on_white(opened)
    if orientation in _UPRIGHT:
        picture = picture.transpose(_UPRIGHT[orientation])
    picture.info = {}
    return picture


def _on_white(picture: Image.Image) -> Image.Image:
    """RGB, with white behind what is transparent."""
    if picture.mode == "I;16":
        # Pillow's own conversion clips 16-bit greys at 255; the high byte is what 8 bits keep of them.
        greys = np.asarray(picture)
        transparent = picture.info.get("transparency")
        high = np.where(greys == transparent, 255, greys >> 8) if isinstance(transparent, int) else greys >> 8
        return Image.fromarray(high.astype(np.uint8)).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    page = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(page, layer).convert("RGB")


def _orientation(opened: Image.Image) -> object:
    """The EXIF orientation, 1 to 8; 1 (upright) where there is none or the EXIF block is damaged."""
    try:
        return opened.getexif().get(_ORIENTATION_TAG, 1)
    except (*_BROKEN, KeyError, TypeError, IndexError):
        # A picture with damaged metadata is shown by every viewer, unturned.
        return 1
