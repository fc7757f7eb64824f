"""Altered posts: what is swapped is another post's, never an equal one; aspects come from the same post first."""

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from mulcot.ablations import GreyPicture
from mulcot.callbacks.perturbations import PARTS, perturbations
from mulcot.types import Post


@pytest.fixture
def posts(tmp_path: Path) -> list[Post]:
    """Twelve posts; two and two share a picture's bytes under two names, three have one text."""
    made = []
    for number in range(12):
        Image.new("RGB", (8, 8), (20 * (number // 2), 0, 0)).save(tmp_path / f"{number}.png")
        text = "the same" if number < 3 else f"text {number}"
        made.append(Post(f"p{number}", text, tmp_path / f"{number}.png", label=("positive", "negative")[number % 2]))
    return made


def test_a_swap_gives_everyone_another_one_s(posts: list[Post]) -> None:
    found = perturbations(posts, posts, PARTS, seed=0)
    assert list(found) == ["image_removed", "image_swapped", "text_removed", "text_swapped"]
    for name, altered in found.items():
        part = name.split("_")[0]
        assert altered.numbers == tuple(range(12))
        for number, post in zip(altered.numbers, altered.posts, strict=True):
            assert (post.id, post.label) == (posts[number].id, posts[number].label)
            assert [getattr(post, other) == getattr(posts[number], other) for other in PARTS if other != part] == [
                True,
                True,
            ]
    swapped = found["image_swapped"].posts
    assert Counter(post.image for post in swapped) == Counter(post.image for post in posts)
    assert all(new.image.read_bytes() != old.image.read_bytes() for new, old in zip(swapped, posts, strict=True))
    texts = found["text_swapped"].posts
    assert Counter(post.text for post in texts) == Counter(post.text for post in posts)
    assert all(new.text != old.text for new, old in zip(texts, posts, strict=True))
    assert [post.image for post in found["image_removed"].posts] == [GreyPicture(post.image) for post in posts]
    assert {post.text for post in found["text_removed"].posts} == {""}


def test_a_seed_decides(posts: list[Post]) -> None:
    assert perturbations(posts, posts, PARTS, seed=0) == perturbations(posts, posts, PARTS, seed=0)
    assert perturbations(posts, posts, PARTS, seed=0) != perturbations(posts, posts, PARTS, seed=1)
    assert list(perturbations(posts, posts, ("text",), seed=0)) == ["text_removed", "text_swapped"]


def test_an_aspect_of_the_same_post_comes_first(tmp_path: Path) -> None:
    for name, red in {"a": 0, "b": 90, "copy": 0}.items():
        Image.new("RGB", (8, 8), (red, 0, 0)).save(tmp_path / f"{name}.png")
    split = [
        Post("1", "Hail in May", tmp_path / "a.png", "Hail", "negative"),
        Post("2", "Hail in May", tmp_path / "copy.png", "May", "positive"),  # the same picture under another name
        Post("3", "Hail in May", tmp_path / "b.png", "in", "neutral"),  # another picture
        Post("4", "Rain", tmp_path / "b.png", "Rain", "neutral"),
        Post("5", "Hail in June", tmp_path / "b.png", "June", "neutral"),
        Post("6", "no aspect", tmp_path / "b.png", None, "neutral"),
    ]
    drawn = [split[0], split[5], split[3], split[4]]
    found = perturbations(drawn, split, PARTS, seed=0)
    swapped = found["aspect_swapped"]
    assert swapped.numbers == (0, 2, 3)
    assert [post.aspect for post in swapped.posts] == ["May", "June", "Rain"]
    assert swapped.other_golds == ("positive", None, None)
    assert [post.label for post in swapped.posts] == ["negative", "neutral", "neutral"]
    removed = found["aspect_removed"]
    assert (removed.numbers, [post.aspect for post in removed.posts]) == ((0, 2, 3), ["", "", ""])


def test_a_post_that_cannot_get_another_one_s_is_left_out(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    posts = [Post(str(number), f"text {number // 3}", tmp_path / "a.png") for number in range(4)]
    found = perturbations(posts, posts, PARTS, seed=0)
    assert found["image_swapped"].posts == ()
    assert len(found["text_swapped"].posts) == 2
    assert 3 in found["text_swapped"].numbers
