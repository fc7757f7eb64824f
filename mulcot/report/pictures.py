"""Pictures of posts as small JPEG files inside the page."""

from __future__ import annotations

import base64
import os
import re
from collections import Counter
from collections.abc import Mapping
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
    lies in a table, the data set that the stage's configuration names is opened, once, see `stored_pictures`.

    Args:
        run_dir: the run's folder.
        named: the run's folder as its commands name it; None where that is not known.
        config: the resolved configuration of the stage.
    """

    def __init__(self, run_dir: Path, named: str | None, config: Path) -> None:
        self._run_dir = run_dir
        self._named = named
        self._config = config
        self.outside: Counter[Path] = Counter()
        """Pictures that were given and do not lie in the run's folder, by the folder in which they do."""

    def of(self, prediction: Prediction) -> Thumbnail:
        """The picture of a post."""
        place = Path(prediction.image)
        candidates = [place]
        if self._named is not None and place.is_relative_to(self._named):
            candidates.append(self._run_dir / place.relative_to(self._named))
        for path in candidates:
            if os.path.isfile(path):  # unlike `Path.is_file` it takes any name, however long
                return self._noted(thumbnail(path), Path(os.path.realpath(path)).parent)
        if not _PLACE.fullmatch(prediction.image):
            return thumbnail(place)
        try:
            folder, pictures = self._stored
        except InputError as error:
            return Thumbnail("", problem=f"it lies in a table that cannot be opened: {error}")
        picture = pictures.get(prediction.answer.post_id)
        if picture is None:
            return Thumbnail("", problem="it lies in a table that does not have this post any more")
        return self._noted(thumbnail(picture), Path(os.path.realpath(folder)))

    def _noted(self, shown: Thumbnail, folder: Path) -> Thumbnail:
        """The picture, counted where it is shown and comes from outside of the run."""
        if shown.uri and not folder.is_relative_to(os.path.realpath(self._run_dir)):
            self.outside[folder] += 1
        return shown

    @cached_property
    def _stored(self) -> tuple[Path, Mapping[str, StoredPicture]]:
        """The folder of the stage's data set, and its pictures by post id.

        Raises:
            InputError: the configuration or the data cannot be read.
        """
        from mulcot.report.table_pictures import stored_pictures  # with it come the readers, and pyarrow with them

        config: Any = read_config(self._config)
        for key in ("data", "init_args", "posts"):
            config = config.get(key) if isinstance(config, Mapping) else None
        try:
            return stored_pictures(config)
        except InputError as error:
            raise InputError(f"{self._config}: {error}") from error
