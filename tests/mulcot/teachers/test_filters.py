"""The filters: what they refuse and what they let pass."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from mulcot.teachers.filters import Candidate, DuplicateFilter, LanguageFilter, LengthFilter
from mulcot.teachers.image_agreement import ImageAgreementFilter
from mulcot.types import InputError, MissingInputError, Post, Rationale

ENGLISH = Rationale(
    "The text calls the cafe lovely, which is praise.",
    "The picture shows a bright sun over a beach.",
    "There is no conflict between the two of them.",
    "So the sentiment is positive.",
    "positive",
)
POST = Post("1", "text", Path("1.jpg"))


def candidate(rationale: Rationale = ENGLISH, key: str = "k", post: Post = POST) -> Candidate:
    return Candidate(post, rationale, key)


def test_length() -> None:
    one = LengthFilter(min_words=5, max_words=10)
    assert one.objection(candidate()) is None
    short = one.objection(candidate(replace(ENGLISH, image_analysis="A sun.")))
    assert short == "Image_analysis has 2 words, fewer than 5"
    long = one.objection(candidate(replace(ENGLISH, text_analysis="word " * 11)))
    assert long == "Text_analysis has 11 words, more than 10"
    chinese = Rationale("这段文字很高兴", "图片很明亮好看", "两者没有冲突的", "所以是积极的呀", "positive")
    assert one.objection(candidate(chinese)) is None
    with pytest.raises(InputError, match="no text fits"):
        LengthFilter(min_words=3, max_words=2)


def test_duplicates_belong_to_whom_they_first_belonged() -> None:
    one = DuplicateFilter()
    assert one.objection(candidate()) is None
    assert one.objection(candidate()) is None, "the same question again, as on resuming"
    shouted = replace(ENGLISH, final_conclusion="so THE sentiment   is positive!")
    assert one.objection(candidate(shouted, "other")) == "the same text explains another post"
    assert one.objection(candidate(replace(ENGLISH, final_conclusion="It is positive."), "other")) is None
    resumed = DuplicateFilter()
    resumed.remember([("other", ENGLISH)])
    assert resumed.objection(candidate()) is not None
    moved = replace(ENGLISH, text_analysis="", image_analysis=ENGLISH.text_analysis + " " + ENGLISH.image_analysis)
    assert one.objection(candidate(moved, "third")) is None, "words in other fields are other texts"


LANGUAGES = {
    "en": ENGLISH,
    "de": Rationale("Der Text lobt das Café.", "Das Bild zeigt die Sonne.", "Es ist kein Streit.", "Also gut.", "x"),
    "fr": Rationale("Le texte est gai.", "On voit le soleil dans la photo.", "Il y a un accord.", "C'est bon.", "x"),
    "es": Rationale("El texto es alegre.", "La foto muestra el sol.", "No hay conflicto.", "Es una cosa buena.", "x"),
    "ru": Rationale("Текст хвалит кафе.", "На снимке солнце.", "Спора нет.", "Итак, хорошо.", "positive"),
    "zh": Rationale("文字很高兴", "图片明亮", "没有冲突", "所以积极", "positive"),
    "ja": Rationale("これは良い", "絵は明るい", "矛盾はない", "だから良い", "positive"),
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_language(language: str) -> None:
    passed = [name for name, text in LANGUAGES.items() if LanguageFilter(language).objection(candidate(text)) is None]
    assert passed == ([language] if language != "ja" else ["zh", "ja"]), "Japanese is written with Chinese signs too"


def test_a_quoted_foreign_word_does_not_matter() -> None:
    quoting = replace(ENGLISH, text_analysis="The text says “どうも” and “вот”, which is praise of the place.")
    assert LanguageFilter("en").objection(candidate(quoting)) is None
    with pytest.raises(InputError, match=r"'xx' cannot be told; known are ar, bg, de"):
        LanguageFilter("xx")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny image-text model with random weights: the configuration."""
    path = tmp_path_factory.mktemp("clip") / "tiny_for_tests.json"
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    path.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    return path


def test_agreement_of_picture_and_text(clip: Path, tmp_path: Path) -> None:
    import open_clip

    picture = tmp_path / "1.png"
    Image.new("RGB", (40, 30), (200, 40, 40)).save(picture)
    torch.manual_seed(3)
    open_clip.add_model_config(clip)
    model, _, transform = open_clip.create_model_and_transforms(clip.stem)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    with torch.inference_mode():
        image = model.eval().encode_image(transform(Image.open(picture).convert("RGB"))[None])
        text = model.encode_text(open_clip.get_tokenizer(clip.stem)([ENGLISH.image_analysis]))
    expected = float(torch.nn.functional.cosine_similarity(image, text))
    given = candidate(post=replace(POST, image=picture))
    weights = str(tmp_path / "weights.pt")
    strict = ImageAgreementFilter(str(clip), weights, min_cosine=min(1.0, expected + 0.01))
    assert strict.cosine(given) == pytest.approx(expected, abs=1e-5)
    objection = strict.objection(given)
    assert objection is not None
    assert f"a cosine of {expected:.3f}, less than" in objection
    assert ImageAgreementFilter(str(clip), weights, min_cosine=expected - 0.01).objection(given) is None


def test_models_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="min_cosine must lie between -1 and 1, is 2"):
        ImageAgreementFilter(min_cosine=2)
    picture = tmp_path / "1.png"
    Image.new("RGB", (8, 8)).save(picture)
    given = candidate(post=replace(POST, image=picture))
    with pytest.raises(MissingInputError, match=r"no configuration .*gone\.json"):
        ImageAgreementFilter(str(tmp_path / "gone.json"), None).objection(given)
    with pytest.raises(InputError, match=r"ImageAgreementFilter: NoSuchModel \(None\) cannot be loaded"):
        ImageAgreementFilter("NoSuchModel", None).objection(given)
