from collections import Counter
from pathlib import Path

import pytest

from data_modules.readers import TombertTsv
from mulcot.types import InputError, Post

DATA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "twitter15"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real sample data are not beside this checkout")

HEADER = "index\t#1 Label\t#2 ImageID\t#3 String\t#3 String\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.jpg").write_bytes(b"x")
    return tmp_path


def reader(folder: Path, content: str, name: str = "dev.tsv", **options: object) -> TombertTsv:
    (folder / name).write_text(content, encoding="utf-8", newline="")
    return TombertTsv(folder, folder, **options)


def test_a_line_becomes_a_post(folder: Path) -> None:
    lines = '1\t2\ta.jpg\t"Go $T$ !\tthe "Reds"\n2\t0\ta.jpg\tRT : x\u2028y\x85 $T$\tMay\r\n'
    posts = reader(folder, HEADER + lines).read("val")
    assert posts == [
        Post(id="val-1", text='"Go the "Reds" !', image=folder / "a.jpg", aspect='the "Reds"', label="positive"),
        Post(id="val-2", text="RT : x\u2028y\x85 May", image=folder / "a.jpg", aspect="May", label="negative"),
    ]


def test_the_split_is_in_the_id_since_the_index_restarts(folder: Path) -> None:
    line = "1\t1\ta.jpg\t$T$\tMay\n"
    for name in ("train.tsv", "dev.tsv", "test.tsv"):
        source = reader(folder, HEADER + line, name)
    assert [source.read(split)[0].id for split in ("train", "val", "test")] == ["train-1", "val-1", "test-1"]
    assert source.files() == [folder / "train.tsv", folder / "dev.tsv", folder / "test.tsv"]


def test_the_header_may_lack_a_name(folder: Path) -> None:
    posts = reader(folder, "index\t#1 ImageID\t#2 String\t#2 String\n1\t1\ta.jpg\t$T$\tMay").read("val")
    assert (posts[0].label, posts[0].text) == ("neutral", "May")


@pytest.mark.parametrize("content", ["", "1\t1\ta.jpg\t$T$\tMay\n", "\n" + HEADER])
def test_a_post_is_never_taken_for_the_header(folder: Path, content: str) -> None:
    with pytest.raises(InputError, match=r"dev\.tsv, line 1: the header is missing"):
        reader(folder, content).read("val")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2\t1\ta.jpg\t$T$", "line 3: 4 tab-separated columns; write 5 columns: index, label, image, text, aspect"),
        ("2\t1\ta.jpg\t$T$\tMay\tx", "line 3: 6 tab-separated columns"),
        ("2\t3\ta.jpg\t$T$\tMay", "field 'label': unknown code '3'; use one of 0 negative, 1 neutral, 2 positive"),
        ("2\t-1\ta.jpg\t$T$\tMay", "field 'label': unknown code '-1'"),
        ("2\t\ta.jpg\t$T$\tMay", "field 'label': unknown code ''"),
        ("2\t1\ta.jpg\tno place\tMay", "field 'text': $T$ stands 0 times in it; put $T$ once"),
        ("2\t1\ta.jpg\t$T$ and $T$\tMay", "field 'text': $T$ stands 2 times in it"),
        ("2\t1\ta.jpg\t$T$\t ", "field 'aspect': it is empty"),
        ("\t1\ta.jpg\t$T$\tMay", "field 'index': it is empty"),
        ("1\t1\ta.jpg\t$T$\tMay", "field 'index': the id 'val-1' already stands at"),
        ("2\t1\tb.jpg\t$T$\tMay", "field 'image': there is no picture 'b.jpg'"),
        ("2\t1\t../a.jpg\t$T$\tMay", "field 'image': '../a.jpg' goes up with '..'"),
    ],
)
def test_a_wrong_line_is_named(folder: Path, line: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        reader(folder, f"{HEADER}1\t1\ta.jpg\t$T$\tMay\n{line}\n").read("val")
    assert "dev.tsv, line 3" in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_empty_lines_count_but_are_no_posts(folder: Path) -> None:
    with pytest.raises(InputError, match="line 4, field 'label'"):
        reader(folder, HEADER + "1\t1\ta.jpg\t$T$\tMay\n\n2\t9\ta.jpg\t$T$\tMay\n").read("val")


def test_codes_follow_the_order_of_the_labels(folder: Path) -> None:
    source = reader(folder, HEADER + "1\t1\ta.jpg\t$T$\tMay\n", labels=["calm", "angry"])
    assert source.read("val")[0].label == "angry"


def test_a_missing_split(folder: Path) -> None:
    with pytest.raises(InputError, match=r"train\.tsv: there is no such file"):
        TombertTsv(folder, folder).read("train")
    assert TombertTsv(folder, folder).files() == []


@needs_data
def test_real_validation_posts_of_2015_have_their_pictures() -> None:
    posts = TombertTsv(DATA / "tsv" / "twitter2015", DATA / "Images").read("val")
    assert Counter(post.label for post in posts) == {"neutral": 670, "positive": 303, "negative": 149}
    assert len({post.image for post in posts}) == 727


@needs_data
@pytest.mark.parametrize(
    ("year", "split", "counts"),
    [
        ("2015", "train", (928, 1883, 368)),
        ("2017", "train", (1508, 1638, 416)),
        ("2017", "val", (515, 517, 144)),
        ("2017", "test", (493, 573, 168)),
    ],
)
def test_real_splits_without_pictures(year: str, split: str, counts: tuple[int, int, int]) -> None:
    source = TombertTsv(DATA / "tsv" / f"twitter{year}", DATA / "Images", check_images=False)
    posts = source.read(split)
    found = Counter(post.label for post in posts)
    assert (found["positive"], found["neutral"], found["negative"]) == counts
    assert all(post.aspect in post.text and "$T$" not in post.text for post in posts)
