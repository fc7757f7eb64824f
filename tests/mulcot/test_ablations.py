"""A part taken out of a post: nothing else of it changes, and nothing of the part is left."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mulcot.ablations import GreyPicture, without
from mulcot.images import load_image, upright_size
from mulcot.models import load_processor
from mulcot.rows import PictureCache, RowEncoder
from mulcot.soft_labels import prompt_digest
from mulcot.types import DEFAULT_LABELS, TASKS, InputError, Post


@pytest.fixture
def post(tmp_path: Path) -> Post:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return Post("7", "Hail in May", tmp_path / "a.png", "May", "negative", (("conflict", "yes"),))


def test_a_grey_picture_is_uniform_and_as_large_as_a_viewer_shows_the_other(tmp_path: Path, post: Post) -> None:
    shown = load_image(GreyPicture(post.image))
    assert shown.size == (90, 40)
    assert set(np.asarray(shown).flatten()) == {127}
    turned = Image.open(post.image).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    turned.save(tmp_path / "turned.jpg", exif=exif)
    grey = GreyPicture(tmp_path / "turned.jpg")
    assert load_image(grey).size == upright_size(grey) == (40, 90)
    assert GreyPicture(grey).read_bytes() == grey.read_bytes()


def test_one_part_changes_and_no_other(post: Post) -> None:
    assert without(post, "text") == Post("7", "", post.image, "May", "negative", post.slices)
    assert without(post, "aspect") == Post("7", post.text, post.image, "", "negative", post.slices)
    assert without(post, "image") == Post("7", post.text, GreyPicture(post.image), "May", "negative", post.slices)
    assert {without(post, part).setting for part in ("text", "aspect", "image")} == {"masc"}
    whole = Post("8", "Hail", post.image)
    assert without(whole, "aspect") is whole


def test_the_picture_of_a_post_without_one_is_still_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.png: there is no such picture file"):
        without(Post("7", "Hail", tmp_path / "gone.png"), "image").image.read_bytes()


def test_a_model_reads_the_rest_and_nothing_of_the_part(embedded: Path, post: Post) -> None:
    encoder = RowEncoder(load_processor(str(embedded / "models" / "student")), DEFAULT_LABELS)
    for task in TASKS:
        row = encoder.row(post, task)
        for part, gone in {"text": '"Hail in May"', "aspect": '"May"'}.items():
            less = encoder.row(without(post, part), task)
            said, left = encoder.tokenizer.decode(row.tail_ids), encoder.tokenizer.decode(less.tail_ids)
            assert gone in said
            assert left == said.replace(gone, '""', 1)
            assert prompt_digest(less) != prompt_digest(row)
        blank = encoder.row(without(post, "image"), task)
        assert blank.tail_ids == row.tail_ids
        assert prompt_digest(blank) != prompt_digest(row)
        pictures = PictureCache(encoder, budget_mb=1)
        seen, unseen = pictures.head(row), pictures.head(blank)
        assert seen.tokens == unseen.tokens
        assert unseen.vision["pixel_values"].flatten().unique().numel() == 3, "one value a channel"
        assert seen.vision["pixel_values"].flatten().unique().numel() > 100
