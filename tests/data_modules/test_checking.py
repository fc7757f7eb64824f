import hashlib
import io
import json
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

import data_modules.check_pictures
from data_modules.check_display import print_report, visible
from data_modules.check_report import CheckReport, Spread, WrongRow
from data_modules.checking import check
from data_modules.readers.base import Entries, Reader, SingleFileReader
from data_modules.readers.mvsa import Mvsa
from data_modules.readers.row_log import Row, RowLog
from data_modules.readers.table import Table
from data_modules.readers.tombert_tsv import TombertTsv
from data_modules.readers.twitter_json import TwitterJson
from mulcot.images import load_image
from mulcot.prompts import PROMPTS
from mulcot.types import DEFAULT_LABELS, InputError, Post, Rationale, RationaleRecord, Split

RATIONALE = Rationale("The words are glad.", "A sunny beach.", "None.", "Glad all over.", "positive")


class Given(Reader):
    """Posts as a test writes them, split by split; an error in their place is raised where it stands."""

    def __init__(
        self, posts: Mapping[Split, Sequence[Post | InputError]], replies: Mapping[str, str] | None = None
    ) -> None:
        self.posts = posts
        self.given_replies = dict(replies or {})

    def entries(self, split: Split, log: RowLog) -> Entries:
        for number, post in enumerate(self.posts[split], 1):
            if isinstance(post, InputError):
                raise post
            yield Row(Path(f"{split}.jsonl"), number, "line"), post

    def splits(self) -> tuple[Split, ...]:
        return tuple(self.posts)

    def files(self) -> list[Path]:
        return []

    def replies(self) -> dict[str, str]:
        return self.given_replies


class OneFile(SingleFileReader):
    """One file, of which a rule drops two rows and the third is wrong."""

    def __init__(self, posts: Sequence[Post]) -> None:
        self.posts = posts

    def all_entries(self, log: RowLog) -> Entries:
        log.dropped["no majority"] += 2
        log.counts["annotated"] += len(self.posts) + 3
        log.add(Row(Path("posts.csv"), 3).error("label", "unknown label 'x'", "use one of 'a', 'b'"))
        for number, post in enumerate(self.posts, 4):
            yield Row(Path("posts.csv"), number), post

    def files(self) -> list[Path]:
        return []


def picture(path: Path, colour: str = "red", size: tuple[int, int] = (8, 6), **options: Any) -> Path:
    Image.new("RGB", size, colour).save(path, **options)
    return path


@pytest.fixture
def red(tmp_path: Path) -> Path:
    return picture(tmp_path / "red.png")


@pytest.fixture
def blue(tmp_path: Path) -> Path:
    return picture(tmp_path / "blue.png", "blue")


def post(
    post_id: str, image: Path | Any, text: str = "", aspect: str | None = None, label: str | None = "neutral"
) -> Post:
    return Post(post_id, text or f"text number {post_id}", image, aspect, label)


def checked(posts: Mapping[Split, Sequence[Post | InputError]], **options: Any) -> CheckReport:
    return check(Given(posts), labels=DEFAULT_LABELS, **options)


def printed(report: CheckReport, width: int = 80, **options: Any) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    print_report(report, console, **options)
    return console.file.getvalue()  # type: ignore[attr-defined]


# --- Spreads


def test_a_spread_is_what_the_statistics_module_says() -> None:
    values = [3, 1, 4, 1, 5, 9, 2, 6, 5, 35]
    quantiles = statistics.quantiles(values, n=100, method="inclusive")
    assert Spread.of(values) == Spread(
        min(values), statistics.median(values), statistics.mean(values), pytest.approx(quantiles[94]), max(values)
    )
    assert Spread.of([]) is None


# --- Posts and texts


def test_posts_are_counted_by_label_and_setting_and_measured(red: Path, blue: Path) -> None:
    (section,) = checked(
        {
            "train": [
                post("1", red, "Hail in May", "May", "negative"),
                post("2", red, "Sun in the May", "May", "positive"),
                post("3", blue, "Über 🌦", None, None),
                post("4", blue, "So so", "so", "negative"),
            ]
        }
    ).sections
    assert (section.posts, section.without_label, section.error) == (4, 1, None)
    assert list(section.labels.items()) == [("positive", 1), ("neutral", 0), ("negative", 2)]
    assert section.settings == {"msc": 1, "masc": 3}
    assert section.text is not None
    assert section.aspect is not None
    assert section.text.characters == Spread(5, 8.5, 9, pytest.approx(13.55), 14)
    assert section.text.words == Spread(2, 2.5, 2.75, pytest.approx(3.85), 4)
    assert section.aspect.characters == Spread(2, 3, pytest.approx(8 / 3), 3, 3)
    assert section.aspects == 2


def test_equal_posts_are_told_from_those_whose_labels_contradict(red: Path, blue: Path) -> None:
    (section,) = checked(
        {
            "train": [
                post("1", red, "Sun", "Sun", "positive"),
                post("2", blue, "Sun", "Sun", "negative"),  # another picture
                post("3", red, "Sun", None, "negative"),  # another setting
                post("4", red, "Sun", "Sun", "neutral"),
                post("5", red, "Sun", "Sun", "positive"),
                post("6", red, "Sun", "Sun", None),  # an unknown label contradicts none
                post("7", red, "Sun", "None", "negative"),  # None is no 'None'
            ]
        }
    ).sections
    assert section.conflicts == ({"1": "positive", "4": "neutral", "5": "positive"},)
    assert (section.duplicates.groups, section.duplicates.posts) == (1, 2)
    assert section.duplicates.examples == (("1", "5"),)


# --- Pictures


def test_pictures_are_measured_upright_and_told_by_their_content(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = picture(tmp_path / "lying.jpg", size=(30, 20), exif=exif)
    png = picture(tmp_path / "png.jpg", size=(10, 40), format="PNG")
    webp = picture(tmp_path / "a.webp", size=(12, 12))
    gif = picture(tmp_path / "a.gif", size=(12, 12))
    posts = {"train": [post(str(number), image) for number, image in enumerate([lying, png, webp, gif, png])]}
    for decode in (True, False):
        pictures = checked(posts, decode=decode).sections[0].pictures
        assert (pictures.distinct, pictures.shared) == (4, 1)
        assert pictures.formats == {"JPEG": 1, "PNG": 1, "WEBP": 1, "GIF": 1}
        assert pictures.width == Spread(10, 12, 13.5, pytest.approx(18.8), 20)
        assert pictures.height == Spread(12, 21, 23.5, pytest.approx(38.5), 40)
        assert (pictures.narrowest, pictures.widest) == (10 / 40, 1.0)
        assert pictures.bytes == sum(path.stat().st_size for path in (lying, png, webp, gif))


def test_every_post_with_a_broken_picture_is_a_wrong_row(tmp_path: Path, red: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(red.read_bytes()[:50])
    empty = tmp_path / "empty.png"
    empty.touch()
    images = [red, broken, red, tmp_path / "gone.png", broken, empty, tmp_path]
    (section,) = checked({"train": [post(str(number), image) for number, image in enumerate(images)]}).sections
    assert section.posts == 2
    assert [(row.file, row.unit, row.number, row.field) for row in section.wrong_rows] == [
        ("train.jsonl", "line", number, "image") for number in (2, 4, 5, 6, 7)
    ]
    problems = [row.problem for row in section.wrong_rows]
    assert problems[0] == problems[2]
    assert problems[0].startswith(f"{broken}: the picture cannot be decoded")
    assert problems[1] == f"{tmp_path / 'gone.png'}: there is no such picture file"
    assert "empty" in problems[3]
    assert section.wrong_rows[1].remedy == "put it there or correct the path"


def table(folder: Path, *images: str, ids: Sequence[str] = ()) -> Table:
    """A table of posts with these pictures, whose column is called `photo`."""
    names = ids or [str(number) for number in range(len(images))]
    rows = [{"id": name, "text": "Hail", "photo": image} for name, image in zip(names, images, strict=True)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Table({"train": folder / "train.jsonl"}, folder, columns={"image": "photo"})


def test_lost_pictures_are_counted_by_what_is_wrong_with_them(tmp_path: Path, red: Path) -> None:
    (tmp_path / "broken.png").write_bytes(red.read_bytes()[:50])
    (tmp_path / "empty.png").touch()
    (tmp_path / "link.png").symlink_to("/etc/hostname")
    images = ["red.png", "gone.png", "broken.png", "gone.png", "empty.png", "../red.png", "link.png", "/a.png", "b.png"]
    report = check(table(tmp_path, *images), labels=DEFAULT_LABELS)
    (section,) = report.sections
    assert {row.field for row in section.wrong_rows} == {"photo"}
    assert len(section.wrong_rows) == report.problems == 8
    assert report.to_dict()["sections"][0]["lost_pictures"] == {
        "missing": {"pictures": 2, "posts": 3},
        "unreadable": {"pictures": 2, "posts": 2},
        "outside": {"pictures": 3, "posts": 3},
    }
    lines = [line.split(maxsplit=2) for line in printed(report).splitlines()]
    assert ["missing", "pictures", "2 (3 posts)"] in [[*cells[:2], "".join(cells[2:]).strip()] for cells in lines]
    assert "unreadable pictures" in printed(report)
    assert "pictures outside of the root" in printed(report)


def test_pictures_that_the_reader_does_not_look_for_are_told_apart_as_well(tmp_path: Path, red: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(red.read_bytes()[:50])
    posts = [post("1", red), post("2", broken), post("3", tmp_path / "gone.png"), post("4", InTable(b"x", 1))]
    lost = checked({"train": posts}).sections[0].lost_pictures
    assert (lost.missing.posts, lost.unreadable.posts, lost.outside.posts) == (1, 2, 0)


@pytest.mark.parametrize("between", [0, 300])
def test_an_id_is_taken_by_a_post_whose_picture_can_be_read(tmp_path: Path, red: Path, between: int) -> None:
    (tmp_path / "broken.png").write_bytes(red.read_bytes()[:50])
    images = ["broken.png", *["red.png"] * between, "red.png", "red.png"]
    reader = table(tmp_path, *images, ids=["1", *(f"p{at}" for at in range(between)), "1", "1"])
    (section,) = check(reader, labels=DEFAULT_LABELS).sections
    assert section.posts == between + 1
    assert [(row.number, row.field) for row in section.wrong_rows] == [(1, "photo"), (between + 3, "id")]


def test_headers_alone_show_less(tmp_path: Path, red: Path) -> None:
    cut = tmp_path / "cut.png"
    noise = Image.effect_noise((200, 200), 90)
    noise.save(cut)
    cut.write_bytes(cut.read_bytes()[:-3000])
    copy = tmp_path / "copy.png"
    copy.write_bytes(red.read_bytes())
    posts = {"train": [post("1", cut), post("2", red), post("3", copy)]}
    decoded, headers = checked(posts), checked(posts, decode=False)
    assert [row.number for row in decoded.sections[0].wrong_rows] == [1]
    assert headers.problems == 0
    assert headers.sections[0].pictures.duplicates is None
    assert "not compared" in printed(headers)


@pytest.mark.parametrize("decode", [True, False])
def test_a_picture_with_too_many_pixels_is_a_wrong_row(tmp_path: Path, decode: bool) -> None:
    bomb = tmp_path / "bomb.png"
    Image.new("1", (8_000, 8_000)).save(bomb)
    (row,) = checked({"train": [post("1", bomb)]}, decode=decode).sections[0].wrong_rows
    assert row.problem == f"{bomb}: 8000 x 8000 pixels are more than 50000000"


def test_files_with_the_same_bytes_are_found(tmp_path: Path, red: Path, blue: Path) -> None:
    copy = tmp_path / "copy.jpg"
    copy.write_bytes(red.read_bytes())
    (section,) = checked(
        {"train": [post("1", red, "a"), post("2", blue, "a"), post("3", copy, "a"), post("4", red, "b")]}
    ).sections
    assert (section.pictures.distinct, section.pictures.shared) == (3, 1)
    assert section.pictures.duplicates is not None
    assert (section.pictures.duplicates.groups, section.pictures.duplicates.posts) == (1, 3)
    assert section.pictures.duplicates.examples == ((str(red), str(copy)),)
    assert section.duplicates.examples == (("1", "3"),)  # they show the same, whatever their names


@dataclass(frozen=True)
class InTable:
    """A picture in a row of a table."""

    content: bytes
    row: int

    def read_bytes(self) -> bytes:
        return self.content

    def __str__(self) -> str:
        return f"posts.arrow, row {self.row}"


@pytest.mark.parametrize("decode", [True, False])
def test_pictures_in_a_table_are_told_apart_by_their_bytes(red: Path, blue: Path, decode: bool) -> None:
    contents = [red.read_bytes(), blue.read_bytes(), red.read_bytes(), b"no picture"]
    posts = [post(str(row), InTable(content, row)) for row, content in enumerate(contents)]
    (section,) = checked({"train": posts}, decode=decode).sections
    assert (section.posts, section.pictures.distinct, section.pictures.shared) == (3, 2, 1)
    assert section.pictures.duplicates is not None
    assert section.pictures.duplicates.groups == 0
    assert section.wrong_rows[0].problem.startswith("posts.arrow, row 3: it holds no JPEG")


def test_a_picture_is_decoded_once_for_all_splits(red: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def counting(image: Any) -> Image.Image:
        asked.append(str(image))
        return load_image(image)

    monkeypatch.setattr(data_modules.check_pictures, "load_image", counting)
    many = [post(str(number), red) for number in range(300)]
    report = checked({"train": many, "val": [replace(given, id=f"v{given.id}") for given in many]}, near_copies=None)
    assert report.posts == 600
    assert asked == [str(red)]


# --- What cannot be read, and rules of the source


def test_a_split_that_cannot_be_read_keeps_the_others(red: Path) -> None:
    error = InputError("val.jsonl: byte 7 is not UTF-8; save the file as UTF-8")
    reader = Given({"train": [post("1", red)], "val": [post("2", red), error]}, replies={"1": RATIONALE.to_json()})
    report = check(reader, labels=DEFAULT_LABELS)
    assert [section.error for section in report.sections] == [None, str(error)]
    assert [section.posts for section in report.sections] == [1, 1]
    assert report.problems == 1
    assert report.replies is None
    assert str(error) in printed(report, 120)


def test_a_source_that_finds_no_split_says_so(tmp_path: Path) -> None:
    report = check(TombertTsv(tmp_path, tmp_path), labels=DEFAULT_LABELS)
    (section,) = report.sections
    assert section.error is not None
    assert section.error.startswith(f"{tmp_path / 'train.tsv'}: there is no such file")
    assert report.problems == 1


def test_a_source_without_splits_is_one_section(red: Path) -> None:
    report = check(OneFile([post("1", red), post("2", red)]), labels=DEFAULT_LABELS)
    (section,) = report.sections
    assert (section.name, section.posts, report.across) == ("all", 2, None)
    assert section.dropped == {"no majority": 2}
    assert section.counts == {"annotated": 5}
    assert section.wrong_rows == (WrongRow("posts.csv", "row", 3, "label", "unknown label 'x'", "use one of 'a', 'b'"),)
    assert report.problem_counts["rows left out by a rule"] == 2
    assert report.problems == 3


@pytest.mark.parametrize("threshold", [0, -0.5, 1.5])
def test_a_threshold_that_cannot_be_is_refused(red: Path, threshold: float) -> None:
    with pytest.raises(InputError, match=r"near_copies: .* is no similarity"):
        checked({"train": [post("1", red)]}, near_copies=threshold)


def test_progress_is_told_split_by_split(red: Path) -> None:
    told: list[tuple[str, int]] = []
    posts = {"train": [post(str(n), red) for n in range(250)], "val": [post(f"v{n}", red) for n in range(100)]}
    checked(posts, progress=lambda split, number: told.append((split, number)))
    assert told == [("train", 100), ("train", 200), ("val", 100)]


# --- Across splits


def test_what_stands_in_two_splits_is_found(tmp_path: Path, red: Path, blue: Path) -> None:
    copy = tmp_path / "copy.png"
    copy.write_bytes(red.read_bytes())
    green = picture(tmp_path / "green.png", "green")
    report = checked(
        {
            "train": [post("1", red, "one two three four five"), post("2", red, "quite another text")],
            "val": [
                post("3", blue, "quite another text"),
                post("4", copy, "RT @me: One two three, four five! https://t.co/x"),
                post("1", green, "nothing like it"),
            ],
            "test": [post("5", blue, "one two three four five six"), post("6", green, "words of its own")],
        }
    )
    across = report.across
    assert across is not None
    assert (across.ids.number, across.ids.posts) == (1, {"val": 1, "test": 0})
    assert across.ids.examples == ({"train": "1", "val": "1"},)
    assert (across.pictures.number, across.pictures.posts) == (3, {"val": 1, "test": 0})
    assert across.pictures.examples == (
        {"train": "1", "val": "4"},
        {"val": "3", "test": "5"},
        {"val": "1", "test": "6"},
    )
    assert (across.texts.number, across.texts.posts) == (1, {"val": 1, "test": 0})
    assert across.texts.examples == ({"train": "2", "val": "3"},)
    assert across.near_copies is not None
    assert (across.near_copies.number, across.near_copies.posts) == (2, {"val": 2, "test": 1})
    assert across.near_copies.examples == ({"train": "1", "val": "4", "test": "5"}, {"train": "2", "val": "3"})
    assert report.problems == 0  # they are for the user to judge


def test_a_counterpart_in_train_is_one_without_a_third_between(red: Path) -> None:
    words = list("abcdefghij")
    texts = [" ".join([*words[: 10 - changed], *(f"x{n}" for n in range(changed))]) for changed in (0, 1, 2)]
    report = checked(
        {"train": [post("1", red, texts[0])], "val": [post("2", red, texts[1])], "test": [post("3", red, texts[2])]},
        near_copies=0.8,  # 9 of 11 words are common to neighbours, 8 of 12 to the first and the last
    )
    assert report.across is not None
    assert report.across.near_copies is not None
    assert report.across.near_copies.number == 1
    assert report.across.near_copies.posts == {"val": 1, "test": 0}


def test_near_copies_are_not_looked_for_when_no_one_asks(red: Path) -> None:
    across = checked({"train": [post("1", red)], "val": [post("2", red)]}, near_copies=None).across
    assert across is not None
    assert across.near_copies is None


# --- Rationales


def test_replies_are_read_as_the_teacher_stage_reads_them(red: Path) -> None:
    words = replace(RATIONALE, text_analysis="One two")
    replies = {
        "1": words.to_json(),
        "2": replace(RATIONALE, prediction="negative").to_json(),
        "3": "Positive, I think.",
        "4": replace(RATIONALE, prediction="neutral").to_json(),
        "9": "left out",
    }
    posts = [post(str(n), red, label=label) for n, label in enumerate(("positive", "neutral", "positive", None), 1)]
    found = check(Given({"train": posts}, replies), labels=DEFAULT_LABELS).replies
    assert found is not None
    assert (found.given, found.parsed, found.without_post) == (5, 3, 1)
    assert list(found.refused) == ["3"]
    assert found.refused["3"].startswith("none of the fields Text_analysis")
    assert found.contradicting == {"2": {"label": "neutral", "prediction": "negative"}}
    assert list(found.fields) == [*json.loads(RATIONALE.to_json()), "whole"]
    assert found.fields["Text_analysis"].words == Spread(2, 4, pytest.approx(10 / 3), 4, 4)
    assert found.fields["whole"].characters.min == len(words.to_json())


def record(post_id: str, text: str = "The words are glad.", **changes: Any) -> str:
    values = {
        "rationale": replace(RATIONALE, text_analysis=text),
        "source": "teacher-predicted",
        "model": "big",
        "prompt_hash": PROMPTS["msc", "teacher_predict"].hash,
    }
    return RationaleRecord(post_id, **{**values, **changes}).to_json()


@pytest.fixture
def rationale_files(tmp_path: Path) -> list[Path]:
    teacher, gone, augmented = (tmp_path / name for name in ("teacher.jsonl", "gone.jsonl", "augmented.jsonl"))
    teacher.write_text("\n".join([record("1"), record("2"), record("3"), record("8"), record("1")]), encoding="utf-8")
    own = PROMPTS["msc", "reasoning"].hash
    lines = [
        record("1", "Other words.", source="assistant", prompt_hash=own),
        record("1", "Yet other words.", source="assistant", prompt_hash="0" * 64),
    ]
    augmented.write_text("\n".join(lines), encoding="utf-8")
    return [teacher, gone, augmented]


def rationale_posts(red: Path) -> dict[Split, list[Post]]:
    return {
        "train": [post("1", red, label="positive"), post("2", red, label=None)],
        "val": [post("3", red, label="negative"), post("4", red)],
    }


def test_rationale_files_are_read_as_training_reads_them(red: Path, rationale_files: list[Path]) -> None:
    report = checked(rationale_posts(red), rationales=rationale_files)
    found = report.rationales
    assert found is not None
    assert (found.records, found.sources) == (3, {"teacher-predicted": 2, "assistant": 1})
    assert found.posts == {"train": 2, "val": 0}
    assert found.per_post == Spread(1, 1.5, 1.5, pytest.approx(1.95), 2)
    assert [(Path(row.file).name, row.number, row.field) for row in found.wrong_rows] == [
        ("augmented.jsonl", 2, "prompt_hash"),
        ("teacher.jsonl", 3, "Prediction"),  # contradicts the label of a post of another split
        ("teacher.jsonl", 4, "post_id"),
        ("teacher.jsonl", 5, "rationale"),
    ]
    assert len(found.errors) == 1
    assert found.errors[0].startswith(f"{rationale_files[1]}: there is no such rationale file")
    assert report.problem_counts["unreadable files"] == 1
    assert report.problem_counts["wrong rationales"] == 4


def test_rationales_of_other_prompts_are_taken_when_they_are_wanted(red: Path, rationale_files: list[Path]) -> None:
    found = checked(rationale_posts(red), rationales=rationale_files, other_prompts=True).rationales
    assert found is not None
    assert found.sources == {"teacher-predicted": 2, "assistant": 2}


# --- As JSON and on a terminal


def test_the_report_is_json_whose_wrong_rows_are_those_of_the_log(red: Path, rationale_files: list[Path]) -> None:
    report = check(OneFile([post("1", red, label="positive")]), labels=DEFAULT_LABELS, rationales=rationale_files)
    values = json.loads(json.dumps(report.to_dict()))
    assert (values["posts"], values["problems"]) == (1, report.problems)
    assert sum(values["problem_counts"].values()) == report.problems
    assert values["sections"][0]["wrong_rows"] == [
        json.loads(Row(Path("posts.csv"), 3).error("label", "unknown label 'x'", "use one of 'a', 'b'").to_json())
    ]
    assert values["sections"][0]["pictures"]["width"] == {"min": 8, "median": 8.0, "mean": 8.0, "p95": 8.0, "max": 8}
    assert values["across"] is None
    assert values["rationales"]["wrong_rows"][0]["line"] == 2


def test_a_sound_data_set_is_called_sound(red: Path, blue: Path) -> None:
    report = checked({"train": [post("1", red)], "val": [post("2", blue)]})
    assert report.problems == 0
    assert printed(report).splitlines()[-1] == "2 posts, nothing would be dropped"


def test_the_verdict_names_everything_that_would_be_dropped(red: Path, rationale_files: list[Path]) -> None:
    report = check(OneFile([post("1", red, label="positive")]), labels=DEFAULT_LABELS, rationales=rationale_files)
    assert printed(report, 300).splitlines()[-1] == (
        "1 post can be used; 1 file cannot be read, 1 wrong row would be dropped, 2 rows are dropped by a rule of the "
        "source, 5 wrong rationales would be dropped"
    )


def test_the_longest_lists_are_cut(tmp_path: Path) -> None:
    report = checked({"train": [post(str(number), tmp_path / f"{number}.png") for number in range(25)]})
    lines = printed(report, 200, limit=7).splitlines()
    assert sum("there is no such picture file" in line for line in lines) == 7
    assert "  by field: image 25" in lines
    assert sum(line == "    -> put it there or correct the path" for line in lines) == 1
    assert "  and 18 more; --json lists all" in lines


def test_text_of_the_data_cannot_rewrite_the_terminal(red: Path) -> None:
    odd = "[bold]\x1b[2J\u202e\n[/]x"
    error = InputError(f"{odd}: wrong; right")
    reader = Given(
        {
            "train": [post(odd, red, "a", label=odd), post("2", red, "a", label="neutral"), error],
            "val": [post(odd, red)],
        }
    )
    report = check(reader, labels=DEFAULT_LABELS)
    text = printed(report, 200)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.count(r"[bold]\x1b[2J\u202e\n[/]x") >= 4  # the label, the conflict, the error, the id in two splits
    assert visible("Ünï 🌦 ok") == "Ünï 🌦 ok"


def everything(red: Path, tmp_path: Path) -> Reader:
    """Three splits with everything that can be said of them."""
    long = "x" * 300
    many = [post(f"{n}", red, f"text {n % 4} {long}", "aspect", DEFAULT_LABELS[n % 3]) for n in range(40)]
    wide = picture(tmp_path / "wide.png", size=(4000, 10))
    replies = {given.id: replace(RATIONALE, text_analysis=long).to_json() for given in many} | {"3": long}
    return Given(
        {
            "train": [*many, post(long, tmp_path / f"{long[:200]}.png")],
            "val": [post(f"v{n}", wide, f"text 1 {long}") for n in range(9)],
            "test": [post(long, red, "a " * 9000), InputError(f"{long}: wrong; right")],
        },
        replies,
    )


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_terminal_and_nothing_is_cut_off(red: Path, tmp_path: Path, width: int) -> None:
    text = printed(check(everything(red, tmp_path), labels=DEFAULT_LABELS), width)
    assert max(map(len, text.splitlines())) <= width
    assert "\u2026" not in text


def test_hundreds_of_labels_are_not_all_listed(red: Path) -> None:
    labels = [f"l{number}" for number in range(200)]
    posts = [post(str(number), red, label=labels[number % 50]) for number in range(100)]
    text = printed(check(Given({"train": posts}), labels=labels))
    assert "188 other labels" in text
    assert "76 (76%)" in text  # 12 labels with two posts each are shown
    assert len(text.splitlines()) < 50


def test_warnings_are_yellow_only_where_there_is_something_to_see(red: Path, blue: Path) -> None:
    def coloured(label: str) -> Iterator[str]:
        console = Console(
            width=80, file=io.StringIO(), force_terminal=True, color_system="standard", legacy_windows=False
        )
        posts = [post("1", red, "a"), post("2", red, "a", label=label)]
        print_report(checked({"train": posts, "val": [post("3", blue)]}), console)
        yield from (line for line in console.file.getvalue().splitlines() if "\x1b[33m" in line)  # type: ignore[attr-defined]

    assert [line for line in coloured("negative") if "label conflicts" in line]
    assert not [line for line in coloured("neutral") if "label conflicts" in line]


# --- Real posts


def test_twitter_2015_validation_holds_what_is_known_of_it(shared_data: Path) -> None:
    folder = shared_data / "twitter15"
    report = check(TwitterJson(folder / "val.json", folder / "Images"), labels=DEFAULT_LABELS)
    (section,) = report.sections
    assert (section.posts, section.pictures.distinct) == (1122, 727)
    assert section.labels == {"positive": 303, "neutral": 670, "negative": 149}
    assert section.settings == {"masc": 1122}
    assert len(section.conflicts) == 5
    assert report.replies is not None
    assert (report.replies.given, report.replies.parsed, report.replies.without_post) == (1122, 1121, 0)
    assert list(report.replies.refused) == ["5149"]
    assert len(report.replies.contradicting) == 28
    assert report.problems == 29
    # The same counted in another way.
    rows = json.loads((folder / "val.json").read_text(encoding="utf-8"))
    keys = Counter((row["text"], row["image_path"], row["aspect"], row["label"]) for row in rows)
    assert section.duplicates.groups == sum(times > 1 for times in keys.values())
    assert section.text is not None
    assert section.text.characters.median == statistics.median(len(row["text"]) for row in rows)
    assert section.aspects == len({row["aspect"] for row in rows})
    hashes = {hashlib.sha256(path.read_bytes()).digest() for path in (folder / "Images").iterdir()}
    assert section.pictures.duplicates is not None
    assert section.pictures.duplicates.groups == 727 - len(hashes)
    verdict = "1,122 posts can be used; 1 reply is refused, 28 replies contradict their posts' labels"
    assert " ".join(printed(report).split()).endswith(verdict)


def test_the_mvsa_sample_holds_what_is_known_of_it(shared_data: Path) -> None:
    report = check(Mvsa(shared_data / "mvsa_sample"), labels=DEFAULT_LABELS)
    (section,) = report.sections
    assert section.posts == section.pictures.distinct == 285 + 212
    assert 285 in section.counts.values()
    assert 212 in section.counts.values()
    assert list(section.dropped.values()) == [41]
    assert section.wrong_rows == ()
    assert report.problems == 41


def test_mvsa_multiple_is_counted_though_its_texts_are_not_there(shared_data: Path) -> None:
    folder = shared_data / "mvsa_multiple_annotations"
    (section,) = check(Mvsa(folder, check_images=False), labels=DEFAULT_LABELS).sections
    merged = [number for name, number in section.counts.items() if name.startswith("merged ")]
    assert sorted(merged) == [1299, 4408, 11320]
    assert sum(section.dropped.values()) == 19_600 - 17_027
    assert len(section.wrong_rows) == 17_027
