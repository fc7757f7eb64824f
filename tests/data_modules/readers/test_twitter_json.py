import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_modules.readers import TwitterJson
from mulcot.types import InputError, Post

DATA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "twitter15"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real sample data are not beside this checkout")

GOOD = {"id": 1, "text": "Hail in May", "aspect": "May", "label": "negative", "image_path": "a.jpg", "cot": "..."}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.jpg", "sub/b.jpg"):
        (folder / name).write_bytes(b"x")
    (tmp_path / "outside.jpg").write_bytes(b"x")
    return folder


def read(root: Path, *entries: Any, **options: Any) -> list[Post]:
    path = root.parent / "posts.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    return TwitterJson(path, root, **options).read_all()


def refusal(root: Path, *entries: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(root, *entries, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert "posts.json" in message
    return message


def test_an_entry_becomes_a_post(root: Path) -> None:
    second = {**GOOD, "id": "x7", "text": ' Ä \u2028 "quoted" May ', "image_path": "sub/b.jpg"}
    assert read(root, GOOD, second) == [
        Post(id="1", text="Hail in May", image=root / "a.jpg", aspect="May", label="negative"),
        Post(id="x7", text=' Ä \u2028 "quoted" May ', image=root / "sub" / "b.jpg", aspect="May", label="negative"),
    ]


@pytest.mark.parametrize("field", ["id", "text", "aspect", "label", "image_path"])
@pytest.mark.parametrize(
    ("value", "problem"), [("", "it is empty"), (" \n", "it is empty"), (None, "it is missing"), (True, "is no text")]
)
def test_a_field_without_content_is_named(root: Path, field: str, value: object, problem: str) -> None:
    message = refusal(root, GOOD, {**GOOD, "id": 2, field: value})
    assert f"posts.json, row 2, field '{field}': " in message
    assert problem in message


@pytest.mark.parametrize("field", ["id", "text", "aspect", "label", "image_path"])
def test_a_field_that_is_missing_is_named(root: Path, field: str) -> None:
    entry = {key: value for key, value in GOOD.items() if key != field}
    assert f"row 1, field '{field}': it is missing; give it a text" in refusal(root, entry)


@pytest.mark.parametrize("label", ["Negative", "NEGATIVE", " negative", "negative\n"])
def test_another_spelling_of_a_label_is_refused_with_the_right_one(root: Path, label: str) -> None:
    message = refusal(root, {**GOOD, "label": label})
    assert message.endswith("differs from a label in capitals or blanks; write 'negative'")


def test_an_unknown_label_is_refused_with_the_known_ones(root: Path) -> None:
    message = refusal(root, {**GOOD, "label": "angry"})
    assert "row 1, field 'label': unknown label 'angry'; use one of 'positive', 'neutral', 'negative'" in message
    assert read(root, {**GOOD, "label": "angry"}, labels=["angry", "calm"])[0].label == "angry"


@pytest.mark.parametrize(
    "labels",
    [
        [],
        ["one"],
        ["", "bad"],
        ["good ", "bad"],
        ["good", "good"],
        "positive",
        ["Good", "good"],
        ["so so", "soso"],
        ["a\nb", "bad"],
    ],
)
def test_a_label_set_must_be_one(root: Path, labels: Any) -> None:
    reader = TwitterJson(root.parent / "posts.json", root)
    reader.labels = labels
    with pytest.raises(InputError, match=r"^labels"):
        reader.read_all()


def test_an_id_stands_once(root: Path) -> None:
    message = refusal(root, GOOD, {**GOOD, "id": 2}, {**GOOD, "id": "1"})
    assert "row 3, field 'id': the id '1' already stands at" in message
    assert "posts.json, row 1;" in message
    assert "blanks around the id" in refusal(root, {**GOOD, "id": " 1"})


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("/etc/passwd", "is an absolute path"),
        ("\\server\\x.jpg", "is an absolute path"),
        ("C:\\x.jpg", "is an absolute path"),
        ("C:x.jpg", "is an absolute path"),
        ("//server/share/x.jpg", "is an absolute path"),
        ("../outside.jpg", "goes up with '..'"),
        ("sub/../a.jpg", "goes up with '..'"),
        ("sub\\..\\..\\outside.jpg", "goes up with '..'"),
        ("https://example.org/a.jpg", "is a URL"),
        ("file:///etc/passwd", "is a URL"),
        ("data:image/png;base64,AAAA", "is a URL"),
        ("leads_out.jpg", "is a symbolic link that leads out of the image root"),
        ("folder_out/outside.jpg", "is a symbolic link that leads out of the image root"),
        (".//folder_out//outside.jpg", "is a symbolic link that leads out of the image root"),
        ("a.jpg\0", "holds a NUL"),
        ("\ud800.jpg", "half a surrogate pair"),
    ],
)
@pytest.mark.parametrize("check_images", [True, False])
def test_no_picture_lies_outside_the_image_root(root: Path, name: str, problem: str, check_images: bool) -> None:
    (root / "leads_out.jpg").symlink_to(root.parent / "outside.jpg")
    (root / "folder_out").symlink_to(root.parent)
    message = refusal(root, {**GOOD, "image_path": name}, check_images=check_images)
    assert "row 1, field 'image_path': " in message
    assert problem in message


def test_links_inside_the_image_root_and_to_it_are_fine(root: Path) -> None:
    (root / "link.jpg").symlink_to("sub/b.jpg")
    other = root.parent / "other"
    other.symlink_to(root)
    assert read(other, {**GOOD, "image_path": "link.jpg"})[0].image == other / "link.jpg"


@pytest.mark.parametrize("name", ["gone.jpg", "sub", "circle.jpg", "n" * 5000])
def test_a_picture_must_be_there(root: Path, name: str) -> None:
    (root / "circle.jpg").symlink_to("circle.jpg")
    message = refusal(root, GOOD, {**GOOD, "id": 2, "image_path": name})
    kinds = {"sub": "a folder, not a picture,", "circle.jpg": "a broken link, not a picture,"}
    problem = kinds.get(name, "no picture")
    assert f"row 2, field 'image_path': there is {problem}" in message
    assert len(message) < 500
    assert read(root, {**GOOD, "image_path": name}, check_images=False)[0].image == root / name


def test_the_image_root_must_be_there(root: Path) -> None:
    with pytest.raises(InputError, match=r"^image_root: there is no folder .*nowhere"):
        TwitterJson(root.parent / "posts.json", root / "nowhere").read_all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"posts\.json: it holds no posts; give a file with at least one"),
        (b"[", r"posts\.json: no valid JSON at column 2"),
        (b"[\n{},\n]", r"posts\.json: no valid JSON at line 3, column 1"),
        (b"{}", r"posts\.json: it holds no JSON list"),
        (b"[1]", r"posts\.json, row 1: 1 is no JSON object"),
        (b'["\xe9"]', r"posts\.json: byte 3 is not UTF-8"),
        (b"[" * 100_000, r"posts\.json: JSON with a number or a nesting beyond reason"),
        (b"[" + b"9" * 10_000 + b"]", r"posts\.json: JSON with a number or a nesting beyond reason"),
    ],
)
def test_a_file_that_is_no_list_of_objects(root: Path, content: bytes, message: str) -> None:
    path = root.parent / "posts.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        TwitterJson(path, root).read_all()


def test_a_missing_file_and_a_byte_order_mark(root: Path) -> None:
    path = root.parent / "posts.json"
    with pytest.raises(InputError, match=r"posts\.json: there is no such file"):
        TwitterJson(path, root).read_all()
    path.write_text(json.dumps([GOOD]), encoding="utf-8-sig")
    assert len(TwitterJson(path, root).read_all()) == 1


def test_it_has_no_splits_of_its_own(root: Path) -> None:
    with pytest.raises(InputError, match=r"^TwitterJson: this source has no splits.*put it inside GroupedSplit"):
        TwitterJson(root.parent / "posts.json", root).read("train")


@needs_data
def test_real_posts() -> None:
    posts = TwitterJson(DATA / "val.json", DATA / "Images").read_all()
    assert len(posts) == 1122
    assert Counter(post.label for post in posts) == {"neutral": 670, "positive": 303, "negative": 149}
    assert len({post.image for post in posts}) == 727
    assert all(post.setting == "masc" and "$T$" not in post.text for post in posts)
