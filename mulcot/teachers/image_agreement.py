"""A filter that asks an image-text model whether what a rationale says of the picture fits the picture."""

from __future__ import annotations

from threading import Lock

from mulcot.image_text import ImageTextModel
from mulcot.images import load_image
from mulcot.teachers.filters import Candidate
from mulcot.types import InputError


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
        self.min_cosine = min_cosine
        self._model = ImageTextModel(model, pretrained, device, user="ImageAgreementFilter")
        self._lock = Lock()

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
        """The cosine of picture and Image_analysis; see `ImageTextModel` for one that is too long to be read whole."""
        picture = load_image(candidate.post.image)
        with self._lock:  # one model, and one core is enough for it beside a teacher
            image = self._model.of_pictures([picture])
            text = self._model.of_texts([candidate.rationale.image_analysis])
        return float((image * text).sum())
