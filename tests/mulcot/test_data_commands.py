"""`mulcot data check|convert|split` as a person meets them: what they print, write and refuse, and their exit codes."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import mulcot.data_commands
from data_modules.readers import Converted
from mulcot.cli import main
from mulcot.types import DEFAULT_LABELS, SPLITS

Output = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: 24 posts in `train.jsonl`, 6 in `val.jsonl`, one picture for every two posts in `im`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "im").mkdir()
    for number in range(15):
        Image.new("RGB", (8 + number, 6), (number * 10, 9, 9)).save(tmp_path / "im" / f"{number}.png")
    write("train.jsonl", [row(number) for number in range(24)])
    write("val.jsonl", [row(number) for number in range(24, 30)])
    return tmp_path


def row(number: int, **changes: object) -> dict[str, object]:
    label = DEFAULT_LABELS[number // 2 % 3]
    return {"id": f"p{number}", "text": f"word{number} of May", "image": f"{number // 2}.png", "label": label} | changes


def write(name: str, rows: Sequence[dict[str, object]]) -> None:
    Path(name).write_text("".join(json.dumps(values) + "\n" for values in rows))


def table(**paths: str) -> list[str]:
    given = paths or {"train": "train.jsonl", "val": "val.jsonl"}
    files = [argument for split, path in given.items() for argument in (f"--posts.files.{split}", path)]
    return ["--posts", "Table", "--posts.image_root", "im", *files]


def data(*args: object) -> int:
    return main(["data", *map(str, args)])


def error_of(capsys: Output, *args: object, code: int = 1) -> str:
    """The one line that a refused command prints."""
    capsys.readouterr()
    assert data(*args) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("mulcot: error: ")
    return lines[0].removeprefix("mulcot: error: ")


def report_of(capsys: Output, *args: object, code: int) -> dict[str, Any]:
    capsys.readouterr()
    assert data("check", "--json", *args) == code
    return json.loads(capsys.readouterr().out)


def posts_of(out: str) -> dict[str, list[str]]:
    reader = Converted(Path(out))
    return {split: [post.id for post in reader.read(split)] for split in reader.splits()}


def snapshot(out: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path(out).rglob("*")) if path.is_file()}


# -- the verb itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [[], ["chekc"], ["--posts", "Table"]])
def test_an_unknown_sub_verb_gives_usage_and_code_2(capsys: Output, argv: list[str]) -> None:
    assert data(*argv) == 2
    said = capsys.readouterr()
    assert not said.out
    assert all(f"mulcot data {name}" in said.err for name in ("check", "convert", "split"))


@pytest.mark.parametrize("argv", [["--help"], ["-h"]])
def test_help_is_no_mistake(capsys: Output, argv: list[str]) -> None:
    assert data(*argv) == 0
    said = capsys.readouterr()
    assert "mulcot data split" in said.out
    assert not said.err


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["check"], "no source of posts: name one (--posts Table"),
        (["check", "--posts", "Mvsa"], "Mvsa needs --posts.folder"),
        (["check", "--posts", "Table"], "Table needs --posts.files and --posts.image_root"),
        (["check", "--posts", "GroupedSplit", "--posts.reader", "Mvsa", "--posts.train", "1", "--posts.val", "1"],
         "Mvsa needs --posts.reader.folder"),
        (["convert", *table()], "mulcot data convert needs --out"),
        (["split", *table(), "--out", "out"], "mulcot data split needs --train and --val"),
        (["check", *table(), "--roows", "3"], "unknown key 'roows'; did you mean rows?"),
        (["check", *table(train="im\udcff/t.jsonl")], r"the argument 'im\udcff/t.jsonl' is not UTF-8; rename the file"),
        (["convert", *table(), "--out", "o\udcff"], r"the argument 'o\udcff' is not UTF-8; rename the file"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_one_line_that_says_what_would_be_right(
    capsys: Output, argv: list[str], message: str
) -> None:
    assert message in error_of(capsys, *argv)


@pytest.mark.usefixtures("folder")
def test_what_a_class_in_a_file_lacks_is_named_with_file_and_line(capsys: Output) -> None:
    Path("mine.yaml").write_text("data:\n  init_args:\n    posts: {class_path: Mvsa}\n")
    said = error_of(capsys, "check", "--config", "mine.yaml")
    assert said == "mine.yaml line 3: Mvsa needs folder; add it to its init_args"


# -- check -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("folder")
def test_check_ends_with_0_where_all_is_sound_and_with_1_where_rows_would_be_dropped(capsys: Output) -> None:
    assert data("check", *table()) == 0
    assert "30 posts, nothing would be dropped" in " ".join(capsys.readouterr().out.split())
    write("val.jsonl", [row(24), row(25, label="glad")])
    assert data("check", *table()) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "'glad'" in said
    assert said.endswith("25 posts can be used; 1 wrong row would be dropped")


@pytest.mark.usefixtures("folder")
def test_json_is_all_that_stands_on_stdout(capsys: Output) -> None:
    found = report_of(capsys, *table(), code=0)
    assert [(section["name"], section["posts"]) for section in found["sections"]] == [("train", 24), ("val", 6)]
    write("val.jsonl", [row(24), row(25, text="")])
    (wrong,) = report_of(capsys, *table(), code=1)["sections"][1]["wrong_rows"]
    assert (wrong["file"], wrong["line"], wrong["field"]) == ("val.jsonl", 2, "text")


@pytest.mark.usefixtures("folder")
def test_what_is_printed_acts_on_no_terminal(capsys: Output) -> None:
    write("val.jsonl", [row(24), row(25, text="", id="a\x9b31m\u202e")])
    assert data("check", "--json", *table()) == 1
    write("val.jsonl", [row(24)])
    assert data("convert", *table(), "--out", "c\x1b[31m[red]x") == 0
    shown = capsys.readouterr().out
    assert "c[U+001B][31m[red]x: 25 posts" in shown
    assert not set("\x1b\x9b\u202e") & set(shown)


def test_a_config_names_the_source_and_flags_come_after_it(folder: Path, capsys: Output) -> None:
    files = "{train: '${data_root}/train.jsonl', val: '${data_root}/val.jsonl'}"
    init = f"init_args: {{files: {files}, image_root: '${{data_root}}/im'}}"
    Path("mine.yaml").write_text(f"data: {{init_args: {{posts: {{class_path: Table, {init}}}}}}}\n")
    found = report_of(capsys, "--config", "mine.yaml", "--data_root", folder, code=0)
    assert [section["posts"] for section in found["sections"]] == [24, 6]
    write("other.jsonl", [row(1)])
    found = report_of(
        capsys, "--config", "mine.yaml", "--data_root", folder, "--posts.files", '{"train": "other.jsonl"}', code=0
    )
    assert [section["posts"] for section in found["sections"]] == [1]
    assert "data_root" in error_of(capsys, "check", "--config", "mine.yaml")
    Path("none.yaml").write_text("seed_everything: 1\n")
    assert "it names no source of posts" in error_of(capsys, "check", "--config", "none.yaml")


def test_rationale_files_are_checked_with_the_posts(embedded: Path, capsys: Output) -> None:
    posts = embedded / "posts" / "posts"
    files = [argument for split in SPLITS for argument in (f"--posts.files.{split}", posts / f"{split}.jsonl")]
    given = ["--posts", "Table", "--posts.image_root", posts / "images", *files]
    path = embedded / "teacher" / "rationales-train.jsonl"
    found = report_of(capsys, *given, "--rationales", json.dumps([str(path)]), code=0)["rationales"]
    assert (found["records"], found["wrong_rows"]) == (len(path.read_text().splitlines()), [])
    without = [*given[:4], "--posts.files.val", posts / "val.jsonl"]
    found = report_of(capsys, *without, "--rationales", json.dumps([str(path)]), code=1)["rationales"]
    assert {wrong["field"] for wrong in found["wrong_rows"]} == {"post_id"}


def test_twitter_2015_holds_what_is_known_of_it(shared_data: Path, capsys: Output) -> None:
    given = ["--config", "data/twitter15.yaml", "--data_root", shared_data / "twitter15"]
    found = report_of(capsys, *given, code=1)
    assert sum(section["posts"] for section in found["sections"]) == 1122
    assert sum(section["pictures"]["distinct"] for section in found["sections"]) == 727
    assert len(found["replies"]["contradicting"]) == 28
    assert list(found["replies"]["refused"]) == ["5149"]
    folder = shared_data / "twitter15"
    whole = ["--posts", "TwitterJson", "--posts.path", folder / "val.json", "--posts.image_root", folder / "Images"]
    (section,) = report_of(capsys, *whole, code=1)["sections"]
    assert (section["posts"], section["pictures"]["distinct"], len(section["conflicts"])) == (1122, 727, 5)


def test_the_mvsa_sample_holds_what_is_known_of_it(shared_data: Path, capsys: Output) -> None:
    given = ["--posts", "Mvsa", "--posts.folder", shared_data / "mvsa_sample"]
    (section,) = report_of(capsys, *given, code=1)["sections"]
    assert section["counts"]["annotated posts"] == 538
    assert section["counts"]["equal labels"] == 285
    assert section["counts"]["neutral with another"] == 212
    assert section["dropped"] == {"contradicting text and image labels": 41}
    assert section["posts"] == 285 + 212


def test_mvsa_multiple_holds_what_is_known_of_it(shared_data: Path, capsys: Output) -> None:
    folder = shared_data / "mvsa_multiple_annotations"
    given = ["--posts", "Mvsa", "--posts.folder", folder, "--posts.check_images", "false"]
    (section,) = report_of(capsys, *given, code=1)["sections"]
    merged = [section["counts"][f"merged {label}"] for label in DEFAULT_LABELS]
    assert merged == [11_320, 4408, 1299]
    assert sum(merged) == 17_027


# -- convert ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("folder")
def test_convert_then_check_gives_equal_counts(capsys: Output) -> None:
    assert data("convert", *table(), "--out", "out") == 0
    said = capsys.readouterr().out
    assert "30 posts (train 24, val 6) in" in said
    assert "posts: {class_path: Converted, init_args: {folder: out}}" in said
    assert report_of(capsys, "--posts", "Converted", "--posts.folder", "out", code=0) == report_of(
        capsys, *table(), code=0
    )
    assert sorted(os.listdir("out")) == [
        "dataset.json", "manifest.json", "metrics.json",
        "train-00000.parquet", "train.arrow", "val-00000.parquet", "val.arrow",
    ]  # fmt: skip


@pytest.mark.usefixtures("folder")
def test_wrong_rows_stop_a_conversion_or_are_left_out_and_listed(capsys: Output) -> None:
    write("val.jsonl", [row(24), row(25, label="glad"), row(26, image="no.png")])
    assert error_of(capsys, "convert", *table(), "--out", "out").startswith("val.jsonl, line 2, field 'label': ")
    assert not Path("out/dataset.json").exists()
    assert data("convert", *table(), "--out", "out", "--on_bad_row", "skip") == 0
    assert "left out: 2 wrong rows (label 1, image 1), listed in out/bad_rows.jsonl" in capsys.readouterr().out
    listed = [json.loads(line) for line in Path("out/bad_rows.jsonl").read_text().splitlines()]
    assert [(wrong["line"], wrong["field"]) for wrong in listed] == [(2, "label"), (3, "image")]
    assert json.loads(Path("out/metrics.json").read_text())["left_out"] == {"wrong rows": 2}
    write("val.jsonl", [row(24)])
    assert data("convert", *table(), "--out", "out", "--fresh") == 0
    assert not Path("out/bad_rows.jsonl").exists()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("verb", [["convert"], ["split", "--train", "0.8", "--val", "0.1"]])
def test_where_everything_is_left_out_there_is_no_data_set_but_a_list(capsys: Output, verb: list[str]) -> None:
    write("train.jsonl", [row(number, text="") for number in range(5)])
    capsys.readouterr()
    assert data(*verb, *table(train="train.jsonl"), "--out", "out", "--on_bad_row", "skip") == 1
    said = capsys.readouterr()
    assert "left out: 5 wrong rows (text 5), listed in out/bad_rows.jsonl" in said.out
    assert len(said.err.splitlines()) == 1
    if verb == ["convert"]:
        assert "Table: no posts for train: left out were 5 wrong rows; mend them" in said.err
    assert len(Path("out/bad_rows.jsonl").read_text().splitlines()) == 5
    assert not Path("out/dataset.json").exists()
    assert not Path("out/manifest.json").exists()


@pytest.mark.usefixtures("folder")
def test_a_replacement_of_which_nothing_is_left_keeps_the_old_data_set_and_its_list(capsys: Output) -> None:
    write("val.jsonl", [row(24), row(25, text="")])
    assert data("convert", *table(), "--out", "out", "--on_bad_row", "skip") == 0
    before = snapshot("out")
    write("val.jsonl", [row(24, text=""), row(25, text="")])
    assert data("convert", *table(), "--out", "out", "--on_bad_row", "skip", "--fresh") == 1
    assert "listed in out/.building/bad_rows.jsonl" in capsys.readouterr().out
    assert snapshot("out").items() >= before.items()


@pytest.mark.usefixtures("folder")
def test_a_source_without_splits_is_told_to_get_some(capsys: Output) -> None:
    Path("posts.json").write_text(json.dumps([row(1, aspect="May", image_path="0.png")]))
    given = ["--posts", "TwitterJson", "--posts.path", "posts.json", "--posts.image_root", "im"]
    said = error_of(capsys, "convert", *given, "--out", "out")
    assert "TwitterJson: this source has no splits" in said
    assert "GroupedSplit" in said
    Path("empty").mkdir()
    given = ["--posts", "TombertTsv", "--posts.folder", "empty", "--posts.image_root", "im"]
    assert "empty/train.tsv" in error_of(capsys, "convert", *given, "--out", "out")
    assert not Path("out/dataset.json").exists()


@pytest.mark.usefixtures("folder")
def test_fresh_replaces_only_what_succeeded(capsys: Output) -> None:
    assert data("convert", *table(), "--out", "out") == 0
    before = snapshot("out")
    assert "give --fresh to replace it" in error_of(capsys, "convert", *table(), "--out", "out")
    write("train.jsonl", [row(0, label="glad"), *(row(number) for number in range(1, 24))])
    assert "train.jsonl, line 1" in error_of(capsys, "convert", *table(), "--out", "out", "--fresh")
    assert snapshot("out") == before
    write("train.jsonl", [row(number, text=f"new {number}") for number in range(9)])
    assert data("convert", *table(), "--out", "out", "--fresh") == 0
    assert {split: len(ids) for split, ids in posts_of("out").items()} == {"train": 9, "val": 6}
    assert sorted(os.listdir("out")) == [
        "dataset.json", "manifest.json", "metrics.json",
        "train-00000-b.parquet", "train.arrow", "val-00000-b.parquet", "val.arrow",
    ]  # fmt: skip


@pytest.mark.usefixtures("folder")
def test_a_conversion_that_was_killed_before_its_manifest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain starts such a step again without --fresh, for there is no manifest."""
    with monkeypatch.context() as patched:
        patched.setattr(mulcot.data_commands, "write_manifest", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            data("convert", *table(), "--out", "out")
    assert data("convert", *table(), "--out", "out") == 0
    assert Path("out/manifest.json").is_file()
    assert not Path("out/.building").exists()


@pytest.mark.usefixtures("folder")
def test_the_folder_of_the_source_is_refused(capsys: Output) -> None:
    assert data("convert", *table(), "--out", "first", "--embed_images") == 0
    before = snapshot("first")
    source = ["--posts", "Converted", "--posts.folder", "first", "--embed_images", "--fresh"]
    Path("link").symlink_to("first")
    for out in ("first", "first/", "./im/../first", "link", "first/inside", "."):
        said = error_of(capsys, "convert", *source, "--out", out)
        assert "dataset.json, which is read, lies in the same folder; name another folder" in said
    split = ["split", *source, "--out", "first", "--train", "20", "--val", "5"]
    assert "lies in the same folder" in error_of(capsys, *split)
    assert snapshot("first") == before
    assert data("convert", *source, "--out", "second") == 0
    assert posts_of("second") == posts_of("first")


@pytest.mark.usefixtures("folder")
def test_a_data_set_that_cannot_be_read_is_not_replaced(capsys: Output) -> None:
    assert data("convert", *table(), "--out", "out") == 0
    Path("out/dataset.json").write_text("{}")
    said = error_of(capsys, "convert", *table(), "--out", "out", "--fresh")
    assert said == "out/dataset.json: it is damaged ('format'); convert again, into another folder"
    assert Path("out/train-00000.parquet").is_file()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("im/0.png", "--out im/0.png: there can be no folder (Not a directory); name one that can be written to"),
        ("/proc/x", "--out /proc/x: there can be no folder (No such file or directory); name one that"),
        ("im", "--out im: it holds '0.png', which no conversion made; name another folder"),
    ],
)
def test_a_place_that_is_none_is_refused(capsys: Output, out: str, message: str) -> None:
    assert message in error_of(capsys, "convert", *table(), "--out", out)
    assert len(os.listdir("im")) == 15


@pytest.mark.usefixtures("folder")
def test_a_model_that_is_none_is_refused(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    assert data("convert", *table(), "--out", "out", "--model", "nothing/here") in (1, 2)
    (said,) = capsys.readouterr().err.splitlines()
    assert "nothing/here" in said
    assert "give a folder" in said

    def broken(name: str) -> None:
        raise OSError("it is no model\nsee https://huggingface.co")

    monkeypatch.setattr("mulcot.models.load_processor", broken)
    said = error_of(capsys, "convert", *table(), "--out", "out", "--model", "nothing/there")
    assert said.startswith("--model nothing/there: it cannot be loaded (it is no model); give a folder with a model, ")


@pytest.mark.usefixtures("folder")
def test_an_image_root_may_be_written_in_two_ways(capsys: Output) -> None:
    assert data("convert", *table(), "--out", "out", "--image_root", Path.cwd() / "im") == 0
    assert Converted(Path("out")).read("train")[0].image.read_bytes() == Path("im/0.png").read_bytes()
    Path("link").symlink_to("im")
    said = error_of(capsys, "convert", *table(), "--out", "two", "--image_root", "link")
    assert "its picture im/0.png is not in link; give --image_root, or --embed_images" in said


# -- split -----------------------------------------------------------------------------------------------------------


def split(out: str, *options: object) -> int:
    return data("split", *table(), "--out", out, *options)


@pytest.mark.usefixtures("folder")
def test_split_keeps_pictures_together_and_meets_counts_and_shares(capsys: Output) -> None:
    assert split("counts", "--train", 20, "--val", 6, "--test", 4) == 0
    assert "30 posts (train 20, val 6, test 4) in" in capsys.readouterr().out
    assert split("rest", "--train", 20, "--val", 6) == 0
    assert split("shares", "--train", 0.8, "--val", 0.2) == 0
    assert {name: len(ids) for name, ids in posts_of("shares").items()} == {"train": 24, "val": 6}
    found = posts_of("counts")
    assert found == posts_of("rest")
    assert {name: len(ids) for name, ids in found.items()} == {"train": 20, "val": 6, "test": 4}
    pictures = Counter(int(post[1:]) // 2 for ids in found.values() for post in dict.fromkeys(ids))
    assert set(pictures.values()) == {2}
    sides = [{int(post[1:]) // 2 for post in ids} for ids in found.values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 15


@pytest.mark.usefixtures("folder")
def test_a_seed_decides_the_split() -> None:
    options = ["--train", 20, "--val", 6]
    for out, seed in (("one", 1), ("again", 1), ("two", 2)):
        assert split(out, *options, "--seed", seed) == 0
    assert posts_of("one") == posts_of("again")
    assert posts_of("one") != posts_of("two")
    assert split("one", *options, "--seed", 2, "--fresh") == 0
    assert posts_of("one") == posts_of("two")


@pytest.mark.usefixtures("folder")
def test_split_leaves_broken_pictures_out_before_it_deals(capsys: Output) -> None:
    Path("im/3.png").write_bytes(b"no picture")
    assert "3.png" in error_of(capsys, "split", *table(), "--out", "out", "--train", 20, "--val", 8)
    assert split("out", "--train", 20, "--val", 8, "--on_bad_row", "skip") == 0
    assert "left out: 2 wrong rows (image 2), listed in out/bad_rows.jsonl" in capsys.readouterr().out
    assert {name: len(ids) for name, ids in posts_of("out").items()} == {"train": 20, "val": 8}


@pytest.mark.usefixtures("folder")
def test_split_refuses_what_it_cannot_do(capsys: Output) -> None:
    given = ["split", *table(), "--out", "out"]
    assert "do not divide the 30 posts" in error_of(capsys, *given, "--train", 40, "--val", 6, "--test", 4)
    assert "would part posts with one picture" in error_of(capsys, *given, "--train", 21, "--val", 6, "--test", 3)
    assert not Path("out/dataset.json").exists()
    assert split("out", "--train", 24, "--val", 6) == 0
    before = snapshot("out")
    assert "give --fresh to replace it" in error_of(capsys, *given, "--train", 24, "--val", 6)
    assert "would part" in error_of(capsys, *given, "--train", 21, "--val", 9, "--fresh")
    assert snapshot("out") == before
    shutil.rmtree("out")
