"""Run folders that somebody else made to harm: a report reads them for their numbers, and obeys none of them."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mulcot.cli import main
from mulcot.predictions import Prediction
from mulcot.report.command import report
from mulcot.report.examples import shown_model
from mulcot.report.page import pictures_of
from mulcot.report.pictures import Thumbnail
from mulcot.report.run import read_run
from mulcot.report.table_pictures import stored_pictures
from mulcot.types import InputError

SECONDS = 30
"""After so long a case counts as one that hangs."""
MEMORY = 1 << 30
"""Bytes that a case may take beyond what the process has."""


@pytest.fixture
def stage(hand_run: Any) -> Path:
    """A tested student whose posts' pictures lie in a table."""
    return hand_run.model(
        "student", "student, distilled", 0, hand_run.gold, change=lambda row: replace(row, image="t.arrow, row 1")
    )


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The mark of a module in the working folder, which leaves it when it is imported."""
    home, mark = tmp_path / "home", tmp_path / "ran"
    home.mkdir()
    (home / "evilmod.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil:\n    pass\n", encoding="utf-8")
    (home / "evil.yaml").write_text("class_path: evilmod.Evil\n", encoding="utf-8")
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(str(home))
    return mark


EVIL = {"class_path": "evilmod.Evil", "init_args": {}}


def split(reader: Any) -> dict[str, Any]:
    return {"class_path": "GroupedSplit", "init_args": {"reader": reader, "train": 1, "val": 1}}


def converted(**given: Any) -> dict[str, Any]:
    return {"class_path": "Converted", "init_args": given}


READERS: dict[str, Any] = {
    "a mapping": EVIL,
    "a name": "evilmod.Evil",
    "a name alone": "Evil",
    "YAML": "{class_path: evilmod.Evil, init_args: {}}",
    "a file of YAML": "evil.yaml",
    "a list": [EVIL],
    "nothing": None,
    "a number": 7,
    "a name within": split("evilmod.Evil"),
    "YAML within": split("{class_path: evilmod.Evil}"),
    "a file of YAML within": split("evil.yaml"),
    "a mapping within": split(EVIL),
    "a list within": split([EVIL]),
    "a splitter within": split(split("evilmod.Evil")),
    "a name two within": split(split(split("evilmod.Evil"))),
    "a class path that is a mapping": {"class_path": EVIL},
    "a class path that is YAML": {"class_path": "{class_path: evilmod.Evil}"},
    "a class path that is a file": {"class_path": "evil.yaml"},
    "a module of readers": {"class_path": "data_modules.readers.evilmod.Evil"},
    "a way round": {"class_path": "data_modules.readers.os.system"},
    "arguments that are a file": {"class_path": "GroupedSplit", "init_args": "evil.yaml"},
    "arguments that are YAML": {"class_path": "GroupedSplit", "init_args": "{reader: evilmod.Evil, train: 1, val: 1}"},
    "further arguments": {**converted(folder="."), "dict_kwargs": {"reader": "evilmod.Evil"}},
    "an unknown argument": converted(folder=".", reader="evilmod.Evil"),
    "a class for a folder": converted(folder=EVIL),
    "a class for pictures": converted(folder=".", pictures=EVIL),
    "no class path": {"init_args": {"reader": "evilmod.Evil"}},
    "where it was read": {"__path__": "evil.yaml", **EVIL},
    "the base class": {"class_path": "Reader"},
    "a reader of pictures in files": {"class_path": "Table", "init_args": {"files": {"test": "a"}, "image_root": "/"}},
    "a path of any length": converted(folder="x" * 5000),
    "a saved data set of any length": {"class_path": "HuggingFace", "init_args": {"path": "x" * 5000}},
    "a zero byte": converted(folder="\0"),
}


def picture_of_the_first_post(hand_run: Any) -> Thumbnail:
    """As the page shows it."""
    run = read_run(hand_run.folder)
    pictures, model = pictures_of(run), shown_model(run)
    assert pictures is not None
    assert model is not None
    return pictures.of((run.predictions(model) or [])[0])


def configured(stage: Path, posts: Any) -> None:
    (stage / "config-fit.yaml").write_text(json.dumps({"data": {"init_args": {"posts": posts}}}), encoding="utf-8")


@pytest.mark.parametrize("name", READERS)
def test_no_class_of_a_run_is_imported(name: str, hand_run: Any, stage: Path, evil: Path) -> None:
    configured(stage, READERS[name])
    shown = picture_of_the_first_post(hand_run)
    assert not evil.exists()
    assert "evilmod" not in sys.modules
    assert shown.uri == ""
    assert shown.problem.startswith(f"it lies in a table that cannot be opened: {stage}/config-fit.yaml: ")
    assert "\n" not in shown.problem


def test_nor_by_the_command_in_a_folder_with_such_a_module(hand_run: Any, stage: Path, evil: Path) -> None:
    """`python -m` puts the working folder on the path."""
    for posts in ("evilmod.Evil", split("evilmod.Evil")):
        configured(stage, posts)
        command = [sys.executable, "-m", "mulcot", "report", "--run_dir", str(hand_run.folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not evil.exists()


@pytest.mark.parametrize("path", ["imdb", "owner/data", "s3://bucket/data", "/nowhere"])
def test_the_hub_is_not_asked_for_a_run(path: str, hand_run: Any, stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def asked(*args: Any, **others: Any) -> None:
        raise AssertionError("the library was asked")

    monkeypatch.setattr(datasets, "load_dataset", asked)
    monkeypatch.setattr(datasets, "load_from_disk", asked)
    configured(stage, {"class_path": "HuggingFace", "init_args": {"path": path}})
    assert f"{path}: it is no folder" in picture_of_the_first_post(hand_run).problem


def saved(folder: Path, content: bytes = b"x") -> Path:
    from datasets import Dataset, DatasetDict

    rows = {"id": ["p0", "p1"], "text": ["a post", "another"], "image": [content, content]}
    DatasetDict({"test": Dataset.from_dict(rows)}).save_to_disk(str(folder))
    return folder


@pytest.mark.parametrize("name", ["HuggingFace", "data_modules.readers.HuggingFace",
                                  "data_modules.readers.hugging_face.HuggingFace"])  # fmt: skip
def test_a_saved_data_set_of_this_machine_gives_its_pictures(
    name: str, hand_run: Any, stage: Path, picture: Path, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "saved", picture.read_bytes())
    given = {"path": str(folder), "name": None, "splits_of": {"test": "test"}, "labels": ["positive", "negative"]}
    configured(stage, {"class_path": name, "init_args": given})
    shown = picture_of_the_first_post(hand_run)
    assert (shown.width, shown.height, shown.problem) == (224, 112, "")


def test_so_does_one_that_was_split(tmp_path: Path) -> None:
    from datasets import Dataset

    contents = []
    for colour in ("red", "green", "blue", "white"):
        Image.new("RGB", (9, 9), colour).save(tmp_path / "one.png")
        contents.append((tmp_path / "one.png").read_bytes())
    rows = {"id": ["p0", "p1", "p2", "p3"], "text": ["a", "b", "c", "d"], "image": contents}
    Dataset.from_dict(rows).save_to_disk(str(tmp_path / "saved"))
    reader = {"class_path": "HuggingFace", "init_args": {"path": str(tmp_path / "saved")}}
    given = {"reader": reader, "train": 1, "val": 1, "test": 2, "near_copies": None}
    posts = {"class_path": "data_modules.readers.GroupedSplit", "init_args": given}
    folder, found = stored_pictures(posts)
    assert folder == tmp_path / "saved"
    assert len(found) == 2
    assert {picture.read_bytes() for picture in found.values()} <= set(contents)


def named_elsewhere(folder: Path) -> None:
    path = folder / "test" / "state.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(values | {"_data_files": [{"filename": "../../pipe"}]}), encoding="utf-8")
    os.mkfifo(folder.parent / "pipe")


def piped(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


TABLES: dict[str, Callable[[Path], None]] = {
    "a pipe for a table": lambda folder: piped(next((folder / "test").glob("*.arrow"))),
    "a pipe for a state": lambda folder: piped(folder / "test" / "state.json"),
    "a pipe for its splits": lambda folder: piped(folder / "dataset_dict.json"),
    "a table elsewhere": named_elsewhere,
    "splits elsewhere": lambda folder: (
        (folder / "dataset_dict.json").write_text('{"splits": ["../other"]}', encoding="utf-8") and None
    ),
    "no table": lambda folder: next((folder / "test").glob("*.arrow")).write_bytes(b"ARROW") and None,
    "broken JSON": lambda folder: (folder / "test" / "state.json").write_text("[1", encoding="utf-8") and None,
}


@pytest.mark.parametrize("name", TABLES)
def test_a_hostile_saved_data_set_is_left_closed(name: str, hand_run: Any, stage: Path, read_page: Any) -> None:
    folder = saved(hand_run.folder / "saved")
    TABLES[name](folder)
    configured(stage, {"class_path": "HuggingFace", "init_args": {"path": str(folder)}})
    assert outcome(["report", "--run_dir", str(hand_run.folder)]) == (0, "")
    assert "it lies in a table that cannot be opened" in read_page(hand_run.folder / "report.html").words


def test_a_report_makes_no_table_of_a_conversion(hand_run: Any, stage: Path, read_page: Any, picture: Path) -> None:
    """Nothing is written but what the report is: a conversion whose table is gone or another one's is left so."""
    folder = hand_run.folder.parent / "data"
    folder.mkdir(parents=True)
    line = {"text": "A post.", "image": picture.name, "id": "p0", "label": "positive"}
    (folder / "test.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    source = ["--posts", "Table", "--posts.files", json.dumps({"test": str(folder / "test.jsonl")})]
    source += ["--posts.image_root", str(picture.parent)]
    assert main(["data", "convert", *source, "--out", str(folder / "made"), "--embed_images"]) == 0
    (folder / "made" / "test.arrow").unlink(missing_ok=True)
    configured(stage, converted(folder=str(folder / "made")))
    report(hand_run.folder)
    assert not (folder / "made" / "test.arrow").exists()
    assert "test.arrow: " in read_page(hand_run.folder / "report.html").words
    os.mkfifo(folder / "made" / "test.arrow")
    assert outcome(["report", "--run_dir", str(hand_run.folder)]) == (0, "")


# -- memory, time, shapes -------------------------------------------------------------------------------------------


def outcome(arguments: list[str]) -> tuple[int, str]:
    """Exit code and error of a command in a fork that has so much memory and time."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(writing, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        code = 99
        try:
            code = main(arguments)
        except BaseException as error:  # handed to the parent, whose test it fails
            print(repr(error), file=sys.stderr)
        sys.stderr.flush()
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as file:
        shown = file.read()
    _, status = os.waitpid(child, 0)
    assert os.WIFEXITED(status), f"the process died or hung: status {status}"
    return os.WEXITSTATUS(status), shown


def device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def hole(path: Path) -> None:
    """A file of a terabyte that takes no room."""
    with path.open("wb") as file:
        file.truncate(1 << 40)


def holds(text: str) -> Callable[[Path], Any]:
    return lambda path: path.write_text(text, encoding="utf-8")


def aliases(levels: int, last: str, each: str = "[{}]", of: str = "*{}") -> str:
    """YAML of a few lines that stands for ten to the power of its levels."""
    names = [f"a{level}" for level in range(levels)]
    lines = [f"a0: &a0 {last}"]
    lines += [
        f"{name}: &{name} " + each.format(", ".join([of.format(before)] * 10)) for before, name in pairwise(names)
    ]
    return "\n".join(lines) + "\n"


FILES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    f"{name}: {what}": (name, make)
    for name in ("student/config-fit.yaml", "student/predictions.jsonl", "student/metrics.json",
                 "student/manifest.json", "student/probes.json", "chain.json")
    for what, make in (("a pipe", piped), ("a device", device), ("a hole", hole))
}  # fmt: skip
FILES |= {
    f"config: {what}": ("student/config-fit.yaml", holds(text))
    for what, text in {
        "aliases": aliases(9, "[x, x]"),
        "merged aliases": aliases(9, "{b: 1}", each="{{<<: [{}]}}"),
        "an alias of long text": aliases(6, "x" * 100_000),
        "an alias of a long key": "k: &k " + "x" * 400_000 + "\n" + "a: " + "{*k : " * 60 + "1" + "}" * 60 + "\n",
        "itself": "a: &a {b: *a}\n",
        "itself merged": "a: &a {<<: *a}\n",
        "nested lists": "a: " + "[" * 2000 + "]" * 2000 + "\n",
        "nested lists that are read": "a: " + "[" * 150 + "{b: 1}" + "]" * 150 + "\n",
        "a number of many digits": "a: " + "1" * 5000 + "\n",
        "a number of many hexadecimal digits": "a: 0x" + "1" * 50_000 + "\n",
        "a date that is none": "a: 2020-13-45\n",
        "no number": "a: !!int x\n",
        "no date": "a: !!timestamp x\n",
        "no truth": "a: !!bool x\n",
        "a list": "[1, 2]\n",
        "losses that are a list": "losses: [1, 2]\n",
        "losses that are a text": "losses: abc\n",
        "a loss of a class that is a list": "losses: {a: {class_path: [1]}, 1: {class_path: {}}}\n",
        "data that are a list": "data: [1]\n",
        "data that are a number": "data: 5\n",
        "arguments that are a text": "data: {init_args: posts}\n",
    }.items()
}
EITHER = {"config: merged aliases"}  # from PyYAML 6.0.4 on each key is merged once
FINE = {
    "nested lists that are read", "losses that are a list", "losses that are a text",
    "a loss of a class that is a list", "data that are a list", "data that are a number", "arguments that are a text",
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_no_file_of_a_run_takes_memory_or_time(
    name: str, hand_run: Any, stage: Path, make_run: Any, written_curves: Path
) -> None:
    """Neither in the run that is reported on nor in the one that it is compared with."""
    other = make_run("other")
    other.model("student", "student, distilled", 0, hand_run.gold)
    (other.folder / "student" / "config-fit.yaml").write_text("a: 1\n", encoding="utf-8")
    file, make = FILES[name]
    path = hand_run.folder / file
    make(path)
    fine = name.removeprefix("config: ") in FINE
    for arguments in ([], ["--against", str(other.folder)]):
        if arguments and "json:" in name:
            continue  # which both read alike, or only the first
        code, shown = outcome(["report", "--run_dir", str(hand_run.folder), *arguments])
        if fine or (name in EITHER and code == 0):
            assert (code, shown) == (0, "")
            continue
        if not arguments and "config" in file and code == 0:
            # What is asked of it for one run's page is said there: why there is no picture.
            assert str(path) in (hand_run.folder / "report.html").read_text(encoding="utf-8")
            continue
        assert (code, shown.count("\n")) == (1, 1), shown[:2000]
        assert str(path) in shown


@pytest.fixture
def written_curves(stage: Path) -> Path:
    """TensorBoard's file of the stage."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(stage / "tensorboard")) as writer:
        for step in range(3):
            writer.add_scalar("loss/predict/a", 1.0, step)
    return next((stage / "tensorboard").iterdir())


def record_of(length: int) -> bytes:
    """The head of a record that says it is so long, with the sum that TensorBoard checks."""
    from tensorboard.summary.writer.record_writer import masked_crc32c

    head = length.to_bytes(8, "little")
    return head + masked_crc32c(head).to_bytes(4, "little")


CURVES: dict[str, Callable[[Path], Any]] = {
    "a pipe": piped,
    "a device": device,
    "a hole": hole,
    "no record": lambda path: path.write_bytes(b"x" * 100),
    "a record of 2**40 bytes": lambda path: path.write_bytes(record_of(1 << 40)),
    "a record of 2**62 bytes": lambda path: path.write_bytes(record_of(1 << 62)),
    "a record of 2**64 bytes": lambda path: path.write_bytes(record_of((1 << 64) - 1)),
}


@pytest.mark.parametrize("name", CURVES)
def test_hostile_curves_are_told_of_and_left_out(
    name: str, hand_run: Any, stage: Path, written_curves: Path, read_page: Any
) -> None:
    CURVES[name](written_curves)
    assert outcome(["report", "--run_dir", str(hand_run.folder)]) == (0, "")
    words = read_page(hand_run.folder / "report.html").words
    assert "student/tensorboard holds no curve that can be read" in words


@pytest.mark.parametrize("make", [piped, device, hole, holds(aliases(9, "[x]")), holds("a: " + "[" * 3000), holds("7")])
def test_hostile_published_numbers(make: Callable[[Path], Any], hand_run: Any, stage: Path, tmp_path: Path) -> None:
    make(tmp_path / "published.yaml")
    given = ["report", "--run_dir", str(hand_run.folder), "--published", str(tmp_path / "published.yaml")]
    code, shown = outcome(given)
    assert (code, shown.count("\n")) == (1, 1), shown[:2000]
    assert str(tmp_path / "published.yaml") in shown


# -- what lies outside of the run -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../other/secret", "..", ".", "", "a/b", "a\0b", "a\\b", "/absolute"])
def test_a_step_of_a_chain_is_a_folder_of_the_run(name: str, hand_run: Any, stage: Path, make_run: Any) -> None:
    make_run("other").write("secret", {"kind": "data"})
    if name == "/absolute":
        name = str(hand_run.folder.parent / "other" / "secret")
    steps: list[Mapping[str, Any]] = [{"name": name, "verb": "fit", "command": ["x"]}]
    (hand_run.folder / "chain.json").write_text(json.dumps({"steps": steps}), encoding="utf-8")
    with pytest.raises(InputError, match=r"chain\.json: steps\.0\.name: "):
        report(hand_run.folder)
    assert not (hand_run.folder / "report.html").exists()


def test_folders_of_pictures_from_outside_are_told(
    hand_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page is sent around, and a run says which pictures it shows: which of them are not the run's own is said."""
    inside, outside = hand_run.folder / "images", tmp_path / "mine\x1b[31m"
    for folder in (inside, outside):
        folder.mkdir(parents=True)
        Image.new("RGB", (3, 3)).save(folder / "a.png")

    def change(row: Prediction) -> Prediction:
        folder = outside if row.answer.post_id == shown_outside else inside
        return replace(row, image=str(folder / "a.png"))

    words = "pictures of the page that do not lie in the run: "
    shown_outside = ""
    hand_run.model("student", "student, distilled", 0, hand_run.gold, change=change)
    report(hand_run.folder)
    assert words not in capsys.readouterr().out
    hand_run.model(
        "student", "student, distilled", 0, hand_run.gold, change=lambda r: replace(r, image=str(outside / "a.png"))
    )
    report(hand_run.folder)
    assert f"{words}4, in {tmp_path}/mine[U+001B][31m" in capsys.readouterr().out


def test_a_link_inside_of_the_run_is_no_picture_of_the_run(
    hand_run: Any, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hand_run.folder.mkdir(parents=True)
    (hand_run.folder / "a.png").symlink_to(picture)
    image = str(hand_run.folder / "a.png")
    hand_run.model("student", "student, distilled", 0, hand_run.gold, change=lambda row: replace(row, image=image))
    report(hand_run.folder)
    assert f"do not lie in the run: 4, in {picture.parent}" in capsys.readouterr().out
