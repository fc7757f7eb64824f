"""How well a text fits a picture, by an open_clip model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from mulcot.types import InputError, MissingInputError

_SENTENCE_END: Final = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])")
_BLANK: Final = re.compile(r"\s+")


class ImageTextModel:
    """Embeddings of pictures and texts; the cosine of two says how well they fit. It is loaded when first needed.

    Such a model reads a short text only, 77 tokens with CLIP, and its tokenizer cuts the rest off without a word. A
    text that is too long is halved instead, at the sentence end next to its middle (else at a blank, else in the
    middle), until every piece fits; its embedding is the mean of the pieces' embeddings, brought to length 1. A text
    that fits is embedded as it is.

    Args:
        model: a model's name in open_clip, or a JSON file with its configuration.
        pretrained: the weights: a file, or a tag that open_clip fetches from the hub; None for random ones, for tests.
        device: where the model runs.
        user: who needs it, for messages.
    """

    def __init__(self, model: str, pretrained: str | None, device: str, user: str) -> None:
        self.model = model
        self.pretrained = pretrained
        self.device = device
        self.user = user

    def load(self) -> None:
        """Loads the model now.

        Raises:
            InputError: it cannot be loaded.
        """
        _ = self._loaded

    @torch.inference_mode()
    def of_pictures(self, pictures: Iterable[Image.Image]) -> Tensor:
        """The embeddings of pictures, `[pictures, dimensions]` fp32 on the CPU, of length 1; one at a time."""
        model, transform, _ = self._loaded
        made = [model.encode_image(transform(picture)[None].to(self.device), normalize=True) for picture in pictures]
        return torch.cat(made).float().cpu()

    @torch.inference_mode()
    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """The embeddings of texts, `[texts, dimensions]` fp32 on the CPU, of length 1."""
        return torch.stack([self._of_text(text) for text in texts])

    def pieces(self, text: str) -> list[str]:
        """The text in pieces that the model reads whole."""
        if self._fits(text) or len(text) < 2:
            return [text]
        cut = _nearest_cut(text)
        return [*self.pieces(text[:cut].rstrip()), *self.pieces(text[cut:].lstrip())]

    def _of_text(self, text: str) -> Tensor:
        model, _, tokenizer = self._loaded
        pieces = model.encode_text(tokenizer(self.pieces(text)).to(self.device), normalize=True)
        return normalize(pieces.float().mean(dim=0), dim=-1).cpu()

    def _fits(self, text: str) -> bool:
        """Whether a text leaves room: with one token more than the model reads, the last one is padding."""
        _, _, tokenizer = self._loaded
        longer = tokenizer(["", text], context_length=tokenizer.context_length + 1)
        return bool(longer[1, -1] == longer[0, -1])

    @cached_property
    def _loaded(self) -> tuple[Any, Any, Any]:
        """Model, image transform, tokenizer."""
        import open_clip  # takes seconds, and most runs do without it

        name = self.model
        if name.endswith(".json"):
            if not Path(name).is_file():
                raise MissingInputError(f"{self.user}: there is no configuration {name}")
            open_clip.add_model_config(Path(name))
            name = Path(name).stem
        try:
            model, _, transform = open_clip.create_model_and_transforms(
                name, pretrained=self.pretrained, device=self.device
            )
        except Exception as error:  # whatever open_clip and the hub raise about a model that is not there
            reason = " ".join(str(error).split())
            raise InputError(f"{self.user}: {self.model} ({self.pretrained}) cannot be loaded: {reason}") from error
        return model.eval(), transform, open_clip.get_tokenizer(name)


def _nearest_cut(text: str) -> int:
    """Where to cut a text in two: the sentence end next to its middle, else the blank, else the middle."""
    middle = len(text) / 2
    for pattern in (_SENTENCE_END, _BLANK):
        ends = [found.end() for found in pattern.finditer(text) if 0 < found.end() < len(text)]
        if ends:
            return min(ends, key=lambda end: abs(end - middle))
    return len(text) // 2
