"""An image-text model: texts that are too long for it are read piece by piece, and none of them is cut off."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from mulcot.image_text import ImageTextModel


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model of known weights: its configuration and these."""
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    path = folder / "tiny_image_text.json"
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    path.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    torch.manual_seed(3)
    open_clip.add_model_config(path)
    model = open_clip.create_model(path.stem)
    torch.save(model.state_dict(), folder / "weights.pt")
    return path, folder / "weights.pt"


@pytest.fixture(scope="module")
def model(clip: tuple[Path, Path]) -> ImageTextModel:
    return ImageTextModel(str(clip[0]), str(clip[1]), "cpu", user="a test")


def embedded(clip: tuple[Path, Path], text: str) -> torch.Tensor:
    """By open_clip itself, which cuts a text off without a word."""
    import open_clip

    loaded = open_clip.create_model(clip[0].stem, pretrained=str(clip[1])).eval()
    with torch.inference_mode():
        return loaded.encode_text(open_clip.get_tokenizer(clip[0].stem)([text]), normalize=True)[0]


SHORT = "A stormy scene, a street in heavy rain."
LONG = (
    "A stormy scene, a street with a fence. Heavy rain falls on it! Nobody is there; the lamps are dark and the sky is "
    "grey, as it was for days and days before. It looks sad."
)


def test_a_text_that_fits_is_embedded_as_it_is(model: ImageTextModel, clip: tuple[Path, Path]) -> None:
    assert model.pieces(SHORT) == [SHORT]
    assert torch.allclose(model.of_texts([SHORT])[0], embedded(clip, SHORT), atol=1e-6)


def test_a_text_that_is_too_long_is_halved_at_sentences_then_at_blanks(
    model: ImageTextModel, clip: tuple[Path, Path]
) -> None:
    import open_clip

    pieces = model.pieces(LONG)
    assert " ".join(pieces) == LONG
    assert "A stormy scene, a street with a fence." in pieces[0]
    wide = open_clip.get_tokenizer(clip[0].stem)(pieces, context_length=200)
    assert int((wide != 0).sum(dim=1).max()) <= 20
    mean = torch.stack([embedded(clip, piece) for piece in pieces]).mean(dim=0)
    (found,) = model.of_texts([LONG])
    assert torch.allclose(found, mean / mean.norm(), atol=1e-6)
    assert not torch.allclose(found, embedded(clip, LONG), atol=1e-3), "its end counts"
    assert float(found.norm()) == pytest.approx(1)


@pytest.mark.parametrize("words", [17, 18, 19])
def test_the_limit_is_met_exactly(model: ImageTextModel, words: int) -> None:
    """A word a token, and one each for begin and end."""
    assert (len(model.pieces(" ".join(["a"] * words))) == 1) is (words <= 18)


def test_a_text_without_blanks_or_without_anything(model: ImageTextModel) -> None:
    assert "".join(model.pieces("图片很明亮天气很好" * 9)) == "图片很明亮天气很好" * 9
    assert model.of_texts(["", "图片很明亮。" * 20]).shape == (2, 16)


def test_pictures_are_embedded_one_by_one(model: ImageTextModel) -> None:
    pictures = [Image.new("RGB", (40, 30), (red, 0, 0)) for red in (0, 200)]
    found = model.of_pictures(pictures)
    assert torch.equal(found[1:], model.of_pictures(pictures[1:]))
    assert found.norm(dim=1).tolist() == pytest.approx([1, 1])
