import json
from collections import Counter
from pathlib import Path

import pytest

from data_modules.readers import Mvsa
from data_modules.readers.mvsa import merge_labels
from data_modules.readers.row_log import RowLog
from mulcot.types import DEFAULT_LABELS, InputError, Post

SINGLE = "ID\ttext,image"
MULTIPLE = "ID\ttext,image\ttext,image\ttext,image"
CONTRADICTION = "contradicting text and image labels"
NO_MAJORITY = "no majority of the annotators"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for number in range(1, 10):
        (tmp_path / "data" / f"{number}.jpg").write_bytes(b"x")
        (tmp_path / "data" / f"{number}.txt").write_bytes(f"post {number}\r\n".encode())
    return tmp_path


def reader(folder: Path, *lines: str, header: str = SINGLE, **options: object) -> Mvsa:
    (folder / "labelResultAll.txt").write_bytes("".join(f"{line}\r\n" for line in (header, *lines)).encode())
    return Mvsa(folder, **options)


def split_file(path: Path, *listed: tuple[object, object]) -> Path:
    path.write_text(json.dumps([{"id": id_, "text": "other", "emotion_label": code} for id_, code in listed]))
    return path


def error_of(read: object, *args: object) -> str:
    with pytest.raises(InputError) as caught:
        read(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("texts", "images", "merged", "strict"),
    [
        ("+", "+", "positive", "positive"),
        ("0", "0", "neutral", "neutral"),
        ("-", "0", "negative", "text and image labels differ"),
        ("0", "+", "positive", "text and image labels differ"),
        ("+", "-", CONTRADICTION, CONTRADICTION),
        ("++-", "+0+", "positive", "positive"),
        ("0-0", "+++", "positive", "text and image labels differ"),
        ("+-+", "-0-", CONTRADICTION, CONTRADICTION),
        ("+0-", "+++", NO_MAJORITY, NO_MAJORITY),
        ("---", "0-+", NO_MAJORITY, NO_MAJORITY),
    ],
)
def test_the_merge_rule(texts: str, images: str, merged: str, strict: str) -> None:
    words = {"+": "positive", "0": "neutral", "-": "negative"}
    spelt = [[words[sign] for sign in signs] for signs in (texts, images)]
    for rule, expected in (("merged", merged), ("strict", strict)):
        verdict = merge_labels(*spelt, rule)
        assert (verdict.label or verdict.dropped) == expected
        assert (verdict.label is None) == (verdict.dropped is not None)


def test_single_posts_and_what_the_rule_did(folder: Path) -> None:
    log = RowLog()
    lines = ["3\tpositive,positive", "1\tneutral,negative", "2\tpositive,negative", "7\tneutral,neutral"]
    posts = reader(folder, *lines).read_all(log)
    image = folder / "data"
    assert posts == [
        Post("3", "post 3", image / "3.jpg", label="positive", slices=(("conflict", "no"),)),
        Post("1", "post 1", image / "1.jpg", label="negative", slices=(("conflict", "yes"),)),
        Post("7", "post 7", image / "7.jpg", label="neutral", slices=(("conflict", "no"),)),
    ]
    assert log.dropped == {CONTRADICTION: 1}
    assert log.counts == {
        "annotated posts": 4,
        "equal labels": 2,
        "neutral with another": 1,
        "merged positive": 1,
        "merged negative": 1,
        "merged neutral": 1,
    }


def test_strict_drops_neutral_with_another_and_still_counts_it(folder: Path) -> None:
    log = RowLog()
    lines = ["1\tneutral,negative", "2\tpositive,negative", "3\tpositive,positive"]
    assert [post.id for post in reader(folder, *lines, merge="strict").read_all(log)] == ["3"]
    assert log.dropped == {CONTRADICTION: 1, "text and image labels differ": 1}
    assert log.counts["neutral with another"] == 1
    assert log.counts["merged negative"] == 0


def test_multiple_is_told_by_its_header(folder: Path) -> None:
    log = RowLog()
    lines = [
        "1\tpositive,neutral\tpositive,neutral\tnegative,positive",
        "2\tpositive,neutral\tneutral,neutral\tnegative,neutral",
    ]
    posts = reader(folder, *lines, header=MULTIPLE).read_all(log)
    assert [(post.id, post.label) for post in posts] == [("1", "positive")]
    assert log.dropped == {NO_MAJORITY: 1}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"plain\r\n", "plain"),
        (b"plain", "plain"),
        (b" blanks  \r\n", " blanks  "),
        (b"\xef\xbb\xbfmarked\n", "marked"),
        ("wait… 終".encode() + b"\r\n", "wait… 終"),
        ("wait… 終\U0001f600".encode("gb18030") + b"\r\n", "wait… 終\U0001f600"),
        (b"one\r\ntwo\r\n", "one\r\ntwo"),
    ],
)
def test_texts_as_they_lie_on_disk(folder: Path, content: bytes, text: str) -> None:
    (folder / "data" / "1.txt").write_bytes(content)
    assert reader(folder, "1\tneutral,neutral").read_all()[0].text == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\r\n", "it is empty; give it a text"),
        (b"a\0b", "holds a NUL"),
        (b"a\xff\xff", "data/1.txt is neither UTF-8 nor GB18030; save the file as UTF-8"),
        (None, "there is no text file '1.txt' in "),
    ],
)
def test_a_wrong_text_is_named(folder: Path, content: bytes | None, message: str) -> None:
    path = folder / "data" / "1.txt"
    path.unlink() if content is None else path.write_bytes(content)
    error = error_of(reader(folder, "1\tneutral,neutral").read_all)
    assert "labelResultAll.txt, line 2, field 'text': " in error
    assert message in error


def test_a_text_may_not_be_linked_in_from_elsewhere(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    secret = tmp_path_factory.mktemp("elsewhere") / "secret"
    secret.write_text("secret")
    (folder / "data" / "1.txt").unlink()
    (folder / "data" / "1.txt").symlink_to(secret)
    assert "'1.txt' is a symbolic link that leads out" in error_of(reader(folder, "1\tneutral,neutral").read_all)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("5", "line 3: 1 tab-separated columns; write 2 columns: ID, text,image"),
        ("5\tneutral,neutral\tneutral,neutral", "line 3: 3 tab-separated columns"),
        ("x5\tneutral,neutral", "line 3, field 'ID': 'x5' is no number"),
        ("../5\tneutral,neutral", "line 3, field 'ID': '../5' is no number"),
        ("\tneutral,neutral", "line 3, field 'ID': '' is no number"),
        ("1\tneutral,neutral", "field 'ID': the id '1' already stands at {path}, line 2; annotate every post on one"),
        ("5\tneutral", "field 'text,image': annotator 1 has 'neutral', which is no pair of labels"),
        ("5\thappy,neutral", "field 'text': annotator 1 has the unknown label 'happy'; use one of positive, neutral"),
        ("5\tneutral,Neutral", "field 'image': annotator 1 has the unknown label 'Neutral'"),
        ("55\tneutral,neutral", "field 'text': there is no text file '55.txt'"),
    ],
)
def test_a_wrong_line_is_named_or_listed(folder: Path, line: str, message: str) -> None:
    source = reader(folder, "1\tneutral,neutral", line, "2\tpositive,positive")
    error = error_of(source.read_all)
    assert f"{folder / 'labelResultAll.txt'}, line 3" in error
    assert message.format(path=folder / "labelResultAll.txt") in error
    log = RowLog("skip")
    assert [post.id for post in source.read_all(log)] == ["1", "2"]
    assert [str(bad) for bad in log.bad] == [error]


def test_a_missing_picture(folder: Path) -> None:
    (folder / "data" / "1.jpg").unlink()
    source = reader(folder, "1\tneutral,neutral")
    assert "line 2, field 'image': there is no picture '1.jpg' in " in error_of(source.read_all)
    assert len(reader(folder, "1\tneutral,neutral", check_images=False).read_all()) == 1


@pytest.mark.parametrize(
    "header", ["1\tneutral,neutral", "ID\ttext,image\ttext,image", "ID", "id\ttext,image", "", "ID\timage,text"]
)
def test_the_header_must_be_there(folder: Path, header: str) -> None:
    assert "labelResultAll.txt, line 1: " in error_of(reader(folder, "1\tneutral,neutral", header=header).read_all)


def test_wrong_files_and_labels(folder: Path) -> None:
    assert "it holds no posts" in error_of(reader(folder).read_all)
    assert "there is no such file" in error_of(Mvsa(folder / "data").read_all)
    source = reader(folder, "1\tneutral,neutral", labels=["positive", "negative"])
    assert error_of(source.read_all).startswith("labels: MVSA has the labels positive, neutral, negative")


def test_counts_are_complete_when_every_row_is_wrong(folder: Path) -> None:
    for path in (folder / "data").iterdir():
        path.unlink()
    (folder / "data").rmdir()
    log = RowLog("skip")
    lines = ["1\tneutral,neutral", "2\tneutral,positive", "3\tnegative,positive"]
    assert reader(folder, *lines).read_all(log) == []
    assert (log.counts["annotated posts"], log.counts["merged positive"], log.counts["merged neutral"]) == (3, 1, 1)
    assert log.dropped == {CONTRADICTION: 1}
    assert [bad.field for bad in log.bad] == ["text", "text"]


def test_without_lists_there_are_no_splits(folder: Path) -> None:
    source = reader(folder, "1\tneutral,neutral")
    assert source.splits() == ()
    assert "this source has no splits, so no 'train'" in error_of(source.read, "train")


def test_lists_make_splits_in_their_own_order(folder: Path) -> None:
    lines = ["1\tneutral,neutral", "2\tneutral,positive", "3\tnegative,negative", "4\tnegative,positive", "5\tbad"]
    lists = {
        "test": split_file(folder / "test.json", (3, 2)),
        "train": split_file(folder / "train.json", ("2", 0), ("1", 1)),
    }
    source = reader(folder, *lines, split_files=lists)
    assert source.splits() == ("train", "test")
    log = RowLog()
    assert [(post.id, post.text, post.label) for post in source.read("train", log)] == [
        ("2", "post 2", "positive"),
        ("1", "post 1", "neutral"),
    ]
    assert log.counts["annotated posts"] == 2
    assert [post.id for post in source.read("test")] == ["3"]
    texts = [folder / "data" / f"{number}.txt" for number in range(1, 10)]
    assert source.files() == [folder / "labelResultAll.txt", lists["train"], lists["test"], *texts]
    assert "split_files has no list for 'val'" in error_of(source.read, "val")


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (("9", 0), "field 'id': {folder}/labelResultAll.txt has no post '9'"),
        (("3", 0), "field 'id': the annotations drop this post (contradicting text and image labels); take the row"),
        (("2", 1), "field 'emotion_label': 1 is neutral, and the annotations come to positive"),
        (("2", 3), "field 'emotion_label': unknown code 3; use one of 0 positive, 1 neutral, 2 negative"),
        (("2", "0"), "field 'emotion_label': unknown code '0'"),
        (("2", None), "field 'emotion_label': unknown code None"),
        ((None, 0), "field 'id': it is missing"),
        (("1", 1), "field 'id': the id '1' already stands at {folder}/train.json, row 1"),
    ],
)
def test_a_wrong_entry_of_a_list_is_named(folder: Path, listed: tuple[object, object], message: str) -> None:
    lines = ["1\tneutral,neutral", "2\tneutral,positive", "3\tnegative,positive", "4\tneutral,neutral"]
    lists = {
        "train": split_file(folder / "train.json", ("1", 1), listed),
        "val": split_file(folder / "val.json", ("4", 1)),
    }
    error = error_of(reader(folder, *lines, split_files=lists).read, "train")
    assert f"{folder / 'train.json'}, row 2, " in error
    assert message.format(folder=folder) in error


def test_an_id_stands_in_one_list_only(folder: Path) -> None:
    train = split_file(folder / "train.json", ("1", 1), ("4", 1))
    val = split_file(folder / "val.json", (4, 1))
    source = reader(folder, "1\tneutral,neutral", "4\tneutral,neutral", split_files={"val": val, "train": train})
    for split in ("train", "val"):
        assert f"{val}, row 1, field 'id': the id '4' already stands at {train}, row 2; " in error_of(
            source.read, split
        )


def test_an_id_in_two_lists_is_left_out_of_the_later_one(folder: Path) -> None:
    train = split_file(folder / "train.json", ("1", 1))
    val = split_file(folder / "val.json", ("1", 1), ("2", 1))
    lines = ["1\tneutral,neutral", "2\tneutral,neutral"]
    source = reader(folder, *lines, split_files={"train": train, "val": val})
    logs = RowLog("skip"), RowLog("skip")
    assert [post.id for post in source.read("train", logs[0])] == ["1"]
    assert [post.id for post in source.read("val", logs[1])] == ["2"]
    assert [str(log.bad[0].row) if log.bad else None for log in logs] == [None, f"{val}, row 1"]


def test_a_wrong_line_of_annotations_counts_where_the_post_is_listed(folder: Path) -> None:
    lists = {"train": split_file(folder / "train.json", ("1", 1), ("2", 1))}
    source = reader(folder, "1\tneutral,neutral", "2\tneutral", "3\tneutral", split_files=lists)
    log = RowLog("skip")
    assert [post.id for post in source.read("train", log)] == ["1"]
    assert [str(bad.row) for bad in log.bad] == [f"{folder / 'labelResultAll.txt'}, line 3"]


def test_a_strict_reading_says_how_to_keep_a_listed_post(folder: Path) -> None:
    lists = {"train": split_file(folder / "train.json", ("1", 0))}
    source = reader(folder, "1\tneutral,positive", merge="strict", split_files=lists)
    assert "(text and image labels differ); take the row out of the list, or set merge: merged" in error_of(
        source.read, "train"
    )


def test_the_real_sample(shared_data: Path) -> None:
    log = RowLog()
    folder = shared_data / "mvsa_sample"
    posts = Mvsa(folder).read_all(log)
    assert (log.counts["annotated posts"], log.counts["equal labels"]) == (538, 285)
    assert log.counts["neutral with another"] == 212
    assert log.dropped == {CONTRADICTION: 41}
    assert len(posts) == 497
    assert Counter(post.label for post in posts) == {"positive": 291, "neutral": 55, "negative": 151}
    foreign = [post for post in posts if not post.text.isascii()]
    raw = {post.id: (folder / "data" / f"{post.id}.txt").read_bytes() for post in foreign}
    assert all(post.text.encode("gb18030") + b"\r\n" == raw[post.id] for post in foreign)
    assert len(foreign) == 120


def test_the_real_annotations_of_mvsa_multiple(shared_data: Path) -> None:
    log = RowLog("skip")
    folder = shared_data / "mvsa_multiple_annotations"
    assert Mvsa(folder).read_all(log) == []
    assert log.counts["annotated posts"] == 19_600
    usable = {label: log.counts[f"merged {label}"] for label in DEFAULT_LABELS}
    assert usable == {"positive": 11_320, "neutral": 4_408, "negative": 1_299}
    assert sum(usable.values()) == len(log.bad) == 17_027
    assert log.dropped == {NO_MAJORITY: 2_231, CONTRADICTION: 342}


def test_the_real_lists_agree_with_the_annotations(shared_data: Path) -> None:
    folder = shared_data / "mvsa_multiple_annotations"
    source = Mvsa(folder, split_files={"train": folder / "clmlf_train.json", "val": folder / "clmlf_dev.json"})
    for split, size in (("train", 13_624), ("val", 1_700)):
        log = RowLog("skip")
        assert source.read(split, log) == []
        assert log.counts["annotated posts"] == len(log.bad) == size
        assert {bad.field for bad in log.bad} == {"text"}
        assert not log.dropped
