import hashlib
import itertools
import json
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import pytest
from jsonargparse import ArgumentParser, set_parsing_settings
from PIL import Image

from data_modules.near_copies import normalised_words
from data_modules.readers import GroupedSplit, HuggingFace, ImageFolder, Reader, SingleFileReader, TwitterJson
from data_modules.readers.base import Entries
from data_modules.readers.row_log import Row, RowLog, shown
from mulcot.types import SPLITS, InputError, Post, Split


@dataclass(frozen=True)
class Stored:
    """A picture inside a table."""

    content: bytes | None

    def read_bytes(self) -> bytes:
        if self.content is None:
            raise InputError("posts.parquet, row 3: the picture is torn; convert the data again")
        return self.content


class Posts(SingleFileReader):
    """Posts from memory, so many with each picture as the sizes say; texts are their words alone."""

    def __init__(self, folder: Path, sizes: list[int], labels: list[str] | None = None) -> None:
        self.posts: list[Post] = []
        self.wrong: list[Row] = []
        self.readings = 0
        for picture, size in enumerate(sizes):
            for copy in range(size):
                # The same bytes under another name for every post.
                image = folder / f"{picture}-{copy}.png"
                image.write_bytes(b"picture %d" % picture)
                label = None if labels is None else labels[picture]
                self.posts.append(Post(id=f"{picture}-{copy}", text=f"word{picture}x{copy}", image=image, label=label))
        random.Random(0).shuffle(self.posts)

    def all_entries(self, log: RowLog) -> Entries:
        self.readings += 1
        log.dropped["a rule"] += 1
        log.counts["posts"] += len(self.posts)
        for number, post in enumerate(self.posts, 1):
            row = Row(Path("posts"), number)
            if row in self.wrong:
                log.add(row.error("text", "it is wrong", "mend it"))
            else:
                yield row, post

    def files(self) -> list[Path]:
        return [Path("posts")]

    def replies(self) -> dict[str, str]:
        return {"0-0": "a reply"}


class Parts(Reader):
    """Splits from memory."""

    labels = ("good", "bad")
    image_root = Path("pictures")

    def __init__(self, parts: dict[Split, list[Post]]) -> None:
        self.parts = parts

    def entries(self, split: Split, log: RowLog) -> Entries:
        return iter([(Row(Path(f"{split}.jsonl"), at, "line"), post) for at, post in enumerate(self.parts[split], 1)])

    def splits(self) -> tuple[Split, ...]:
        return tuple(split for split in SPLITS if split in self.parts)

    def files(self) -> list[Path]:
        return [Path(f"{split}.jsonl") for split in self.parts]


def stored(*texts: str, first: int = 0) -> list[Post]:
    """Posts with these texts and a picture each."""
    return [Post(id=f"p{at}", text=text, image=Stored(b"%d" % at)) for at, text in enumerate(texts, first)]


def texts_of(posts: Sequence[str]) -> Parts:
    return Parts({"train": stored(*posts)})


def ids(source: Reader) -> dict[str, list[str]]:
    return {split: [post.id for post in source.read(split)] for split in SPLITS}


def pictures(posts: Sequence[Post]) -> set[bytes]:
    return {post.image.read_bytes() for post in posts}


def check_sides(posts: Sequence[Post], split: Reader, threshold: float) -> None:
    """Compares every post with every other, by picture and by words."""
    parts = {name: split.read(name) for name in SPLITS}
    assert sorted(post.id for part in parts.values() for post in part) == sorted(post.id for post in posts)
    order = {post.id: at for at, post in enumerate(posts)}
    for part in parts.values():
        assert [order[post.id] for post in part] == sorted(order[post.id] for post in part)
    side = {post.id: name for name, part in parts.items() for post in part}
    seen = [(side[p.id], hashlib.md5(p.image.read_bytes()).digest(), normalised_words(p.text), p.text) for p in posts]
    for (one, picture, words, text), (other, picture2, words2, text2) in itertools.combinations(seen, 2):
        if one != other:
            assert picture != picture2
            assert text != text2
            if words | words2:
                assert len(words & words2) / len(words | words2) < threshold


def test_sizes_are_exact_and_no_picture_is_on_two_sides(tmp_path: Path) -> None:
    posts = Posts(tmp_path, [1] * 20 + [2] * 10 + [3] * 5)
    split = GroupedSplit(posts, train=35, val=11, test=9)
    assert [len(split.read(name)) for name in SPLITS] == [35, 11, 9]
    check_sides(posts.posts, split, 0.8)
    assert split.files() == [Path("posts")]
    assert split.replies() == {"0-0": "a reply"}
    assert split.labels == posts.labels
    assert posts.readings == 1


@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_nothing_alike_is_on_two_sides(seed: int, threshold: float) -> None:
    generator = random.Random(seed)
    words = [f"w{number}" for number in range(150)]
    posts: list[Post] = []
    for at in range(400):
        text = " ".join(generator.choices(words, k=generator.randint(1, 12)))
        if posts and generator.random() < 0.3:
            text = f"RT @user: {generator.choice(posts).text} {generator.choice(['', '', '!', 'https://t.co/x', 'w1'])}"
        picture = Stored(b"%d" % generator.randrange(2000))
        posts.append(Post(f"p{at}", text, picture, label=generator.choice("abc")))
    split = GroupedSplit(Parts({"train": posts}), 300, 50, 50, seed=seed, near_copies=threshold)
    assert [len(split.read(name)) for name in SPLITS] == [300, 50, 50]
    check_sides(posts, split, threshold)


def test_near_copies_are_one_group() -> None:
    alike = ["Hail in May, again!", "RT @a: hail in may again https://t.co/x", "hail in may again now"]
    posts = texts_of([*alike, "nothing of that kind", "other words altogether", "and once more others"])
    for seed in range(10):
        split = GroupedSplit(posts, train=3, val=3, test=0, seed=seed)
        assert {"p0", "p1", "p2"} in [set(found) for found in ids(split).values()]
    # Four of five words are near enough; at 0.81 the third is free, at null all are.
    apart = [set(ids(GroupedSplit(posts, 4, 2, seed=seed, near_copies=0.81))["val"]) for seed in range(60)]
    assert any("p2" in side and not side & {"p0", "p1"} for side in apart)
    assert not any(len(side & {"p0", "p1"}) == 1 for side in apart)
    assert any(
        len({"p0", "p1"} & set(ids(GroupedSplit(posts, 4, 2, seed=seed, near_copies=None))["val"])) == 1
        for seed in range(30)
    )


def test_pictures_and_texts_connect_groups() -> None:
    """The first shares a picture with the second, the second its text with the third."""
    posts = [
        Post("0", "one two three", Stored(b"a")),
        Post("1", "four five six", Stored(b"a")),
        Post("2", "Four five six!", Stored(b"b")),
        Post("3", "seven eight nine", Stored(b"c")),
    ]
    for seed in range(10):
        assert ids(GroupedSplit(Parts({"train": posts}), 3, 1, seed=seed)) == {
            "train": ["0", "1", "2"],
            "val": ["3"],
            "test": [],
        }


def test_texts_without_words_stay_together_only_when_they_are_equal() -> None:
    posts = texts_of(["@a", "@b", "@a", "http://t.co/1"])
    sides = [ids(GroupedSplit(posts, 2, 2, seed=seed)) for seed in range(5)]
    assert all({"p0", "p2"} in (set(side["train"]), set(side["val"])) for side in sides)


def test_the_groups_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "data_modules.readers.grouped_split"):
        GroupedSplit(Posts(tmp_path, [1, 1, 1, 3], ["a", "b", "a", "a"]), train=4, val=2).read("train")
    assert caplog.messages[0] == "6 posts in 4 groups that stay together, the largest of 3"
    assert [message.split(",")[0] for message in caplog.messages[1:]] == [
        "split train: 4 posts",
        "split val: 2 posts",
        "split test: 0 posts",
    ]


def test_a_source_with_splits_is_pooled() -> None:
    parts: dict[Split, list[Post]] = {
        "train": stored("one", "two", "three"),
        "val": stored("four", "five", first=3),
        "test": stored("six", first=5),
    }
    split = GroupedSplit(Parts(parts), 0.5, 0.5)
    found = ids(split)
    assert sorted(found["train"] + found["val"]) == [f"p{at}" for at in range(6)]
    assert all(found[name] == sorted(found[name]) for name in SPLITS)
    assert [len(found[name]) for name in SPLITS] == [3, 3, 0]
    assert split.splits() == ("train", "val")
    assert split.files() == [Path("train.jsonl"), Path("val.jsonl"), Path("test.jsonl")]
    assert split.labels == ("good", "bad")
    assert split.image_root == Path("pictures")
    places = {post.id: str(row) for name in SPLITS for row, post in split.entries(name, RowLog())}
    assert places["p2"] == "train.jsonl, line 3"
    assert places["p4"] == "val.jsonl, line 2"


def test_ids_are_unique_over_the_splits_of_the_source() -> None:
    parts: dict[Split, list[Post]] = {"train": stored("one", "two"), "test": stored("three", first=1)}
    with pytest.raises(InputError) as caught:
        GroupedSplit(Parts(parts), 2, 1).read("train")
    assert str(caught.value) == (
        "test.jsonl, line 1, field 'id': the id 'p1' already stands at train.jsonl, line 2; "
        "give every post an id of its own"
    )
    log = RowLog(on_bad_row="skip")
    assert [len(GroupedSplit(Parts(parts), 1, 1).read(name, log)) for name in SPLITS] == [1, 1, 0]


def test_a_single_data_set_of_hugging_face_gets_splits(tmp_path: Path) -> None:
    contents = [b"picture %d" % (number // 2) for number in range(10)]  # two posts share each picture
    columns = {"text": [f"word{number}" for number in range(10)], "image": contents}
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "saved")
    datasets.enable_progress_bars()
    source = HuggingFace(str(tmp_path / "saved"), columns={"label": None})
    assert source.splits() == ("train",)
    split = GroupedSplit(source, 6, 2, 2)
    parts = {name: split.read(name) for name in split.splits()}
    assert {name: len(posts) for name, posts in parts.items()} == {"train": 6, "val": 2, "test": 2}
    assert sorted(post.text for posts in parts.values() for post in posts) == columns["text"]
    assert {post.id for posts in parts.values() for post in posts} == {f"train-{number}" for number in range(1, 11)}
    found = [pictures(posts) for posts in parts.values()]
    assert [len(some) for some in found] == [3, 1, 1]
    assert set.union(*found) == set(contents)
    assert split.files() == source.files()


def test_one_folder_of_pictures_gets_splits(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    lines = []
    for number in range(10):
        (folder / f"{number}.png").write_bytes(b"picture %d" % (number // 2))
        lines.append(json.dumps({"file_name": f"{number}.png", "text": f"word{number}"}))
    (folder / "metadata.jsonl").write_text("\n".join([*lines, json.dumps({"file_name": "gone.png", "text": "x"})]))
    source = ImageFolder(tmp_path)
    assert source.splits() == ("train",)
    split, log = GroupedSplit(source, 0.6, 0.2), RowLog(on_bad_row="skip")
    assert split.splits() == SPLITS
    parts = {name: split.read(name, log) for name in SPLITS}
    assert {name: len(posts) for name, posts in parts.items()} == {"train": 6, "val": 2, "test": 2}
    assert {post.id for posts in parts.values() for post in posts} == {f"train/{number}.png" for number in range(10)}
    assert [len(pictures(posts)) for posts in parts.values()] == [3, 1, 1]
    assert rows(log) == [11]


@pytest.mark.parametrize(
    ("sizes", "splits"),
    [
        ((6, 2, 2), ("train", "val", "test")),
        ((8, 0, 2), ("train", "test")),
        ((8, 2, None), ("train", "val")),
        ((0.8, 0.1, 0.1), ("train", "val", "test")),
        ((0.9, 0.1), ("train", "val")),
        ((0.99, 0.01), ("train",)),
    ],
)
def test_splits_are_those_that_get_posts(tmp_path: Path, sizes: tuple, splits: tuple[str, ...]) -> None:
    posts = Posts(tmp_path, [1] * 10)
    split = GroupedSplit(posts, *sizes)
    assert split.splits() == splits
    assert tuple(name for name in SPLITS if split.read(name)) == splits
    assert split.splits() == splits
    assert posts.readings == 1


def test_counts_may_come_as_floats(tmp_path: Path) -> None:
    """jsonargparse gives 10.0 for 10 when another class spelt `float | int` before `int | float` came up."""
    posts = Posts(tmp_path, [1] * 50)
    split = GroupedSplit(posts, train=30, val=10.0, test=10.0)
    assert split.splits() == SPLITS
    assert ids(split) == ids(GroupedSplit(posts, train=30, val=10, test=10))
    with pytest.raises(InputError, match=r"train: 30, val: 0\.5, test: null do not divide the 50 posts"):
        GroupedSplit(posts, train=30, val=0.5).read("train")


def test_the_seed_alone_decides(tmp_path: Path) -> None:
    posts = Posts(tmp_path, [1] * 30 + [2] * 10)
    first = ids(GroupedSplit(posts, train=30, val=10, test=10, seed=3))
    assert ids(GroupedSplit(posts, train=30, val=10, seed=3)) == first
    assert ids(GroupedSplit(posts, train=0.6, val=0.2, seed=3)) == first
    assert ids(GroupedSplit(posts, train=30, val=10, seed=4)) != first


def test_every_post_reaches_every_side_under_some_seed(tmp_path: Path) -> None:
    posts = Posts(tmp_path, [1, 1, 1, 2, 2, 2], ["a", "b", "a", "b", "a", "b"])
    seen = {split: set() for split in SPLITS}
    for seed in range(60):
        for split, names in ids(GroupedSplit(posts, train=3, val=3, test=3, seed=seed)).items():
            seen[split] |= set(names)
    assert all(names == {post.id for post in posts.posts} for names in seen.values())


@pytest.mark.parametrize(
    ("sizes", "wanted", "exact"),
    [
        ([3, 2, 2], (4, 3, 0), True),  # taking the 3 first would leave 1
        ([5, 4, 3, 3], (6, 9, 0), True),
        ([4, 4, 3, 3, 2, 2], (6, 6, 6), True),
        ([2, 2, 2], (3, 3, 0), False),
        ([7], (6, 1, 0), False),
        ([1, 1, 1], (1, 1, 1), True),
    ],
)
def test_hard_cases(tmp_path: Path, sizes: list[int], wanted: tuple[int, int, int], exact: bool) -> None:
    split = GroupedSplit(Posts(tmp_path, sizes), *wanted)
    if exact:
        assert tuple(len(split.read(name)) for name in SPLITS) == wanted
    else:
        with pytest.raises(InputError, match=r"would part posts with one picture.*; the nearest sizes are train: "):
            split.read("train")


def test_the_error_names_sizes_that_do_work(tmp_path: Path) -> None:
    posts = Posts(tmp_path, [4, 4, 4])
    with pytest.raises(InputError) as caught:
        GroupedSplit(posts, train=7, val=3, test=2).read("val")
    assert str(caught.value) == (
        "GroupedSplit: train: 7, val: 3, test: 2 would part posts with one picture or nearly one text "
        "(the largest group has 4); the nearest sizes are train: 8, val: 4, test: 0"
    )
    assert [len(GroupedSplit(posts, 8, 4, 0).read(name)) for name in SPLITS] == [8, 4, 0]


def test_shares_take_the_nearest_sizes_that_whole_groups_allow(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    posts = Posts(tmp_path, [2] * 20)
    split = GroupedSplit(posts, train=0.82, val=0.09)  # 33, 4 and 3 posts
    with caplog.at_level(logging.INFO, "data_modules.readers.grouped_split"):
        sizes = [len(split.read(name)) for name in SPLITS]
    assert sizes in ([34, 4, 2], [32, 4, 4])
    assert split.splits() == SPLITS
    check_sides(posts.posts, split, 0.8)
    taken = ", ".join(f"{name}: {size}" for name, size in zip(SPLITS, sizes, strict=True))
    assert caplog.messages[1] == (
        "train: 33, val: 4, test: 3 would part posts with one picture or nearly one text (the largest group has 2); "
        f"the nearest sizes are {taken}, which are taken"
    )
    with pytest.raises(InputError, match="would part posts with one picture"):
        GroupedSplit(posts, train=33, val=4).read("train")


def test_shares_leave_no_split_without_posts(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^GroupedSplit: train: 8, val: 1, test: 1 would part .*train: 10, val: 0, te"
    ):
        GroupedSplit(Posts(tmp_path, [5, 5]), train=0.8, val=0.1).read("train")


def test_labels_keep_their_shares(tmp_path: Path) -> None:
    labels = ["positive"] * 30 + ["neutral"] * 60 + ["negative"] * 10
    split = GroupedSplit(Posts(tmp_path, [1] * 100, labels), train=60, val=20, test=20)
    assert split.label_counts() == {
        "train": {"positive": 18, "neutral": 36, "negative": 6},
        "val": {"positive": 6, "neutral": 12, "negative": 2},
        "test": {"positive": 6, "neutral": 12, "negative": 2},
    }


def test_sizes_must_use_up_the_posts(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        GroupedSplit(Posts(tmp_path, [1] * 4), 5, 1).read("train")
    assert str(caught.value) == (
        "GroupedSplit of Posts: train: 5, val: 1, test: null do not divide the 4 posts; let them add up to 4, "
        "with at least 1 post in train (test: null takes what is left)"
    )


@pytest.fixture
def with_wrong_rows(tmp_path: Path) -> Posts:
    posts = Posts(tmp_path, [1] * 10)
    posts.wrong = [Row(Path("posts"), 2), Row(Path("posts"), 5)]
    return posts


def rows(log: RowLog) -> list[int]:
    return [error.row.number for error in log.bad]


def test_one_log_for_all_splits_lists_a_wrong_row_once(with_wrong_rows: Posts) -> None:
    split = GroupedSplit(with_wrong_rows, 0.5, 0.25)
    log = RowLog(on_bad_row="skip")
    for name in (*split.splits(), *SPLITS):
        split.read(name, log)
    assert rows(log) == [2, 5]
    assert log.dropped == {"a rule": 1}
    assert log.counts == {"posts": 10}
    assert with_wrong_rows.readings == 1


def test_of_one_log_a_split_the_first_lists_it(with_wrong_rows: Posts) -> None:
    split = GroupedSplit(with_wrong_rows, 4, 2, 2)
    for _ in range(2):
        # The second time everything is read again, and is told again.
        logs = [RowLog(on_bad_row="skip") for _ in SPLITS]
        for name, log in zip(SPLITS, logs, strict=True):
            split.read(name, log)
        assert [rows(log) for log in logs] == [[2, 5], [], []]
        assert sum(log.dropped["a rule"] for log in logs) == 1


def test_a_log_that_wants_errors_gets_one(with_wrong_rows: Posts) -> None:
    split = GroupedSplit(with_wrong_rows, 4, 2, 2)
    for _ in range(2):
        with pytest.raises(InputError, match=r"^posts, row 2, field 'text': it is wrong; mend it$"):
            split.read("val")
    assert [len(split.read(name, RowLog(on_bad_row="skip"))) for name in SPLITS] == [4, 2, 2]
    with pytest.raises(InputError, match=r"^posts, row 2, field 'text'"):
        split.read("test")


def test_wrong_rows_are_listed_even_where_the_sizes_do_not_fit(with_wrong_rows: Posts) -> None:
    split = GroupedSplit(with_wrong_rows, 6, 2, 2)
    log = RowLog(on_bad_row="skip")
    for _ in range(2):
        with pytest.raises(InputError, match="do not divide the 8 posts"):
            split.read("train", log)
    assert rows(log) == [2, 5]


def test_pictures_are_needed_to_compare_them(tmp_path: Path) -> None:
    posts = Posts(tmp_path, [1, 1, 1])
    missing = posts.posts[1]
    missing.image.unlink()
    with pytest.raises(InputError) as caught:
        GroupedSplit(posts, 2, 1).read("train")
    assert str(caught.value) == (
        f"posts, row 2, field 'image': the picture {shown(str(missing.image))} of post '{missing.id}' cannot be read "
        "(No such file or directory); put it there: a split compares all pictures"
    )
    log = RowLog(on_bad_row="skip")
    split = GroupedSplit(posts, 1, 1)
    assert missing.id not in [post.id for name in SPLITS for post in split.read(name, log)]
    assert rows(log) == [2]


def test_a_picture_in_a_table_that_cannot_be_read_is_a_wrong_row() -> None:
    posts = [*stored("one", "two"), Post("torn", "three", Stored(None))]
    with pytest.raises(InputError, match=r"^train.jsonl, line 3, field 'image': .* \(posts.parquet, row 3: .* is torn"):
        GroupedSplit(Parts({"train": posts}), 2, 1).read("train")
    log = RowLog(on_bad_row="skip")
    assert len(GroupedSplit(Parts({"train": posts}), 1, 1).read("train", log)) == 1
    assert rows(log) == [3]


@pytest.fixture
def with_a_broken_picture(tmp_path: Path) -> Posts:
    posts = Posts(tmp_path, [1] * 10)
    for number, post in enumerate(posts.posts):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(post.image)
    posts.posts[3].image.write_bytes(b"no picture")
    return posts


def test_broken_pictures_are_left_out_before_the_posts_are_dealt(with_a_broken_picture: Posts) -> None:
    split = GroupedSplit(with_a_broken_picture, 5, 2, 2)
    log = RowLog(on_bad_row="skip", decode=True)
    assert [len(split.read(name, log)) for name in SPLITS] == [5, 2, 2]
    assert rows(log) == [4]
    assert log.bad[0].field == "image"


def test_a_later_log_can_still_decode(with_a_broken_picture: Posts) -> None:
    split = GroupedSplit(with_a_broken_picture, 6, 2, 2)
    assert sum(len(split.read(name)) for name in SPLITS) == 10
    log = RowLog(on_bad_row="skip", decode=True)
    assert sum(len(split.read(name, log)) for name in SPLITS) == 9
    assert rows(log) == [4]


@pytest.mark.parametrize("threshold", [0.0, 1.5])
def test_the_threshold_is_checked(threshold: float) -> None:
    with pytest.raises(InputError, match=r"^near_copies: "):
        GroupedSplit(texts_of(["one", "two"]), 1, 1, near_copies=threshold).read("train")


def test_a_yaml_file_can_name_it(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "b.jpg").write_bytes(b"b")
    entry = {"aspect": "t", "label": "bad"}
    entries = [
        {**entry, "id": 1, "image_path": "a.jpg", "text": "t one"},
        {**entry, "id": 2, "image_path": "b.jpg", "text": "t two"},
    ]
    (tmp_path / "posts.json").write_text(json.dumps(entries))
    config = tmp_path / "data.yaml"
    config.write_text(f"""
root: {tmp_path}
reader:
  class_path: GroupedSplit
  init_args:
    train: 0.5
    val: 1.0
    near_copies: null
    reader:
      class_path: TwitterJson
      init_args: {{path: "${{root}}/posts.json", image_root: "${{root}}", labels: [good, bad]}}
""")
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    parser = ArgumentParser(parser_mode="omegaconf+")
    parser.add_argument("--config", action="config")
    parser.add_argument("--root", type=str)
    parser.add_subclass_arguments(Reader, "reader")
    given = parser.parse_args([f"--config={config}", "--reader.val=0.5"])
    reader = parser.instantiate_classes(given).reader
    assert isinstance(reader, GroupedSplit)
    assert reader.near_copies is None
    assert [len(reader.read(split)) for split in SPLITS] == [1, 1, 0]
    counts = parser.instantiate_classes(parser.parse_args([f"--config={config}", "--reader.train=1", "--reader.val=1"]))
    assert (counts.reader.train, counts.reader.val) == (1, 1)
    assert isinstance(counts.reader.train, int)
    assert reader.files() == [tmp_path / "posts.json"]


@pytest.mark.parametrize("seed", [0, 1])
def test_real_posts(shared_data: Path, seed: int) -> None:
    folder = shared_data / "twitter15"
    source = TwitterJson(folder / "val.json", folder / "Images")
    split = GroupedSplit(source, 900, 111, 111, seed=seed)
    assert {name: len(split.read(name)) for name in SPLITS} == {"train": 900, "val": 111, "test": 111}
    check_sides(source.read_all(), split, 0.8)
    for counts in split.label_counts().values():
        shares = [counts[label] / counts.total() for label in ("positive", "neutral", "negative")]
        assert shares == pytest.approx([303 / 1122, 670 / 1122, 149 / 1122], abs=0.01)
