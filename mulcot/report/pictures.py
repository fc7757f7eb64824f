"""Pictures of posts as small JPEG files inside the page."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from PIL import Image

from mulcot.images import load_image
from mulcot.predictions import Prediction
from mulcot.report.configs import read_config
from mulcot.types import InputError, StoredPicture

SIDE: Final = 224
"""The longer side of a thumbnail, in pixels."""
_QUALITY: Final = 75
_PLACE: Final = re.compile(r"(?P<table>.+), row \d+")
"""How a prediction file names a picture that lies in a table."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A picture as the page shows it."""

    uri: str
    """The JPEG as a data URI; empty where the picture cannot be shown."""
    width: int = 0
    """In pixels."""
    height: int = 0
    """Likewise."""
    problem: str = ""
    """Why it cannot be shown, in one line."""


def thumbnail(picture: Path | StoredPicture) -> Thumbnail:
    """A small copy of a picture, upright, on white, without metadata; or why there is none."""
    try:
        image = load_image(picture)
    except InputError as error:
        return Thumbnail("", problem=str(error))
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = BytesIO()
    image.save(file, "JPEG", quality=_QUALITY, optimize=True)
    content = base64.b64encode(file.getvalue()).decode("ascii")
    return Thumbnail(f"data:image/jpeg;base64,{content}", image.width, image.height)


class PostPictures:
    """The pictures of a stage's test posts.

    A picture is the file that the prediction names, from here or inside the run's folder if that was moved. Where it
    is none, because it lies in a table or the data moved, the stage's reader is asked, once.

    Args:
        run_dir: the run's folder.
        named: the run's folder as its commands name it; None where that is not known.
        config: the resolved configuration of the stage.
    """

    def __init__(self, run_dir: Path, named: str | None, config: Path) -> None:
        self._run_dir = run_dir
        self._named = named
        self._config = config

    def of(self, prediction: Prediction) -> Thumbnail:
        """The picture of a post."""
        place = Path(prediction.image)
        candidates = [place]
        if self._named is not None and place.is_relative_to(self._named):
            candidates.append(self._run_dir / place.relative_to(self._named))
        for path in candidates:
            if os.path.isfile(path):  # unlike `Path.is_file` it takes any name, however long
                return thumbnail(path)
        if not _PLACE.fullmatch(prediction.image):
            return thumbnail(place)
        try:
            pictures = self._of_reader
        except InputError as error:
            return Thumbnail("", problem=f"it lies in a table that cannot be opened: {error}")
        picture = pictures.get(prediction.answer.post_id)
        if picture is None:
            return Thumbnail("", problem="it lies in a table that does not have this post any more")
        return thumbnail(picture)

    @cached_property
    def _of_reader(self) -> Mapping[str, Path | StoredPicture]:
        """The pictures of the test posts by post id, as the stage's reader gives them.

        Raises:
            InputError: the configuration or the data cannot be read.
        """
        from jsonargparse import ArgumentError, ArgumentParser  # with it come the readers, and pyarrow with them

        from data_modules.readers import Reader
        from data_modules.readers import __all__ as known
        from data_modules.readers.row_log import RowLog

        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(Reader, "posts")
        try:
            posts = read_config(self._config)["data"]["init_args"]["posts"]
            # A report may be asked for of a run that somebody else made: its configuration is data here, and a class
            # that it names is not imported for it.
            others = [
                name for name in _classes(posts) if name not in known and not name.startswith("data_modules.readers.")
            ]
            if others:
                raise InputError(f"{self._config}: its reader {others[0]!r} is none of mulcot's, so it is not opened")
            reader: Reader = parser.instantiate_classes(parser.parse_object({"posts": posts})).posts
        except InputError:
            raise
        except (ArgumentError, TypeError, ValueError, KeyError) as error:
            raise InputError(f"{self._config}: its reader cannot be opened ({' '.join(str(error).split())})") from error
        return {post.id: post.image for post in reader.read("test", RowLog(on_bad_row="skip"))}


def _classes(value: Any) -> Iterator[str]:
    """The names of the classes that a part of a configuration asks for."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == "class_path":
                yield str(inner)
            yield from _classes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _classes(inner)
