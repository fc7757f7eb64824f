"""Posts with a part taken out, for training without it and for asking what a model makes of it."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

from PIL import Image

from mulcot.images import upright_size
from mulcot.types import Post, StoredPicture

Part = Literal["image", "text", "aspect"]
"""What can be taken out of a post."""
GREY: Final = 127
"""Of each channel, 0 to 255: about the middle of what image processors are normalised for."""


@dataclass(frozen=True, slots=True)
class GreyPicture:
    """A uniform grey picture of the size of another one, so that it takes as many tokens."""

    instead_of: Path | StoredPicture
    """The picture that it stands for."""

    def read_bytes(self) -> bytes:
        """The encoded picture.

        Raises:
            InputError: the size of the other picture cannot be read.
        """
        return _grey(*upright_size(self.instead_of))

    def __str__(self) -> str:
        """The place of the other picture, and that it is not shown."""
        return f"{self.instead_of} (greyed)"


def without(post: Post, part: Part) -> Post:
    """The post with one of its parts taken out; its id, its label and the wording of its prompts stay.

    A picture becomes a grey one of its size. A text becomes an empty one; the aspect is still named. An aspect becomes
    an empty one under the prompts that ask about an aspect: the prompts for whole posts are other words, which a model
    that was trained on aspects has never seen, and would be measured too. A post without an aspect stays as it is.
    """
    if part == "image":
        return replace(post, image=GreyPicture(post.image))
    if part == "text":
        return replace(post, text="")
    return post if post.aspect is None else replace(post, aspect="")


@lru_cache(maxsize=256)
def _grey(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height), GREY).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
