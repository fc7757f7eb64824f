"""Readers that a run of somebody else names: a report imports, asks and writes nothing for the sake of a picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mulcot.cli import main
from mulcot.report.command import report
from mulcot.report.examples import shown_model
from mulcot.report.page import pictures_of
from mulcot.report.pictures import Thumbnail
from mulcot.report.run import read_run
from mulcot.report.table_pictures import stored_pictures


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
def test_a_hostile_saved_data_set_is_left_closed(
    name: str, hand_run: Any, stage: Path, read_page: Any, outcome: Any
) -> None:
    folder = saved(hand_run.folder / "saved")
    TABLES[name](folder)
    configured(stage, {"class_path": "HuggingFace", "init_args": {"path": str(folder)}})
    assert outcome(["report", "--run_dir", str(hand_run.folder)]) == (0, "")
    assert "it lies in a table that cannot be opened" in read_page(hand_run.folder / "report.html").words


def test_a_report_makes_no_table_of_a_conversion(
    hand_run: Any, stage: Path, read_page: Any, picture: Path, outcome: Any
) -> None:
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
