"""A filter that asks an image-text model whether what a rationale says of the picture fits the picture."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Any

import torch

from mulcot.images import load_image
from mulcot.teachers.filters import Candidate
from mulcot.types import InputError, MissingInputError


class ImageAgreementFilter:
    """Image_analysis fits the picture: the cosine of their embeddings by an open_clip model reaches a threshold.

    The model is loaded when the first candidate comes. What is a good threshold depends on the model: the cosines of
    real pairs lie about 0.2 to 0.35 for OpenAI's ViT-B-32, those of mismatched pairs below 0.2.

    Args:
        model: a model's name in open_clip, or a JSON file with its configuration.
        pretrained: the weights: a file, or a tag that open_clip fetches from the hub; null for none, for tests.
        min_cosine: what the cosine must reach, -1 to 1.
        device: where the model runs.
    """

    def __init__(
        self,
        model: str = "ViT-B-32",
        pretrained: str | None = "openai",
        min_cosine: float = 0.2,
        device: str = "cpu",
    ) -> None:
        if not -1 <= min_cosine <= 1:
            raise InputError(f"ImageAgreementFilter: min_cosine must lie between -1 and 1, is {min_cosine}")
        self.model = model
        self.pretrained = pretrained
        self.min_cosine = min_cosine
        self.device = device
        self._lock = Lock()
        self._loaded: tuple[Any, Any, Any] | None = None

    def objection(self, candidate: Candidate) -> str | None:
        """Refuses what fits too badly.

        Raises:
            InputError: the model cannot be loaded, or the picture cannot be read.
        """
        cosine = self.cosine(candidate)
        if cosine < self.min_cosine:
            return f"Image_analysis fits the picture with a cosine of {cosine:.3f}, less than {self.min_cosine:g}"
        return None

    def cosine(self, candidate: Candidate) -> float:
        """The cosine of picture and Image_analysis."""
        picture = load_image(candidate.post.image)
        with self._lock:  # one model, and one core is enough for it beside a teacher
            model, transform, tokenizer = self._load()
            with torch.inference_mode():
                image = model.encode_image(transform(picture)[None].to(self.device), normalize=True)
                text = model.encode_text(
                    tokenizer([candidate.rationale.image_analysis]).to(self.device), normalize=True
                )
        return float((image * text).sum())

    def _load(self) -> tuple[Any, Any, Any]:
        if self._loaded is None:
            import open_clip  # takes seconds, and most runs do without this filter

            name = self.model
            if name.endswith(".json"):
                if not Path(name).is_file():
                    raise MissingInputError(f"ImageAgreementFilter: there is no configuration {name}")
                open_clip.add_model_config(Path(name))
                name = Path(name).stem
            try:
                model, _, transform = open_clip.create_model_and_transforms(
                    name, pretrained=self.pretrained, device=self.device
                )
            except Exception as error:  # whatever open_clip and the hub raise about a model that is not there
                reason = " ".join(str(error).split())
                raise InputError(
                    f"ImageAgreementFilter: {self.model} ({self.pretrained}) cannot be loaded: {reason}"
                ) from error
            self._loaded = model.eval(), transform, open_clip.get_tokenizer(name)
        return self._loaded
