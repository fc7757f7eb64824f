"""Hostile run folders, label stores, caches and converted data: read for their numbers, never obeyed."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mulcot.cli import main
from mulcot.teachers.store import LabelStore
from mulcot.types import InputError
from stages.rationale_files import write_rationale_files

NESTED = "[" * 200_000


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def linked(path: Path) -> None:
    """A file of the run's that is a link to one beside the run."""
    path.symlink_to(path.parent.parent / "victim.json")


RUNS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nested metrics": (lambda run: (run / "student" / "metrics.json").write_text(NESTED), "metrics.json: "),
    "metrics of numbers that are none": (
        lambda run: (run / "student" / "metrics.json").write_text('{"kind": "student", "seed": NaN}'), ".json: "),
    "a pipe for metrics": (lambda run: pipe(run / "student" / "metrics.json"), "it is no file"),
    "nested manifest": (lambda run: (run / "student" / "manifest.json").write_text(NESTED), "the manifest is damaged"),
    "a pipe for a manifest": (lambda run: pipe(run / "student" / "manifest.json"), "the manifest is damaged"),
    "a device for a manifest": (
        lambda run: (run / "student" / "manifest.json").unlink() or
        (run / "student" / "manifest.json").symlink_to("/dev/zero"), "the manifest is damaged"),
    "broken chain": (lambda run: (run / "chain.json").write_text("[1"), "chain.json: "),
    "a link out of the run": (lambda run: linked(run / "metrics.json"), "it is a link that leads out of the run"),
}  # fmt: skip


@pytest.fixture
def run_folder(chain: Path, tmp_path: Path) -> Path:
    """What a report reads of a finished run."""
    run = tmp_path / "run"
    (run / "student").mkdir(parents=True)
    for name in ("metrics.json", "manifest.json"):
        shutil.copy(chain / "student" / name, run / "student" / name)
    (tmp_path / "victim.json").write_text("mine")
    return run


@pytest.mark.parametrize("name", RUNS)
def test_a_hostile_run_folder_is_refused(name: str, run_folder: Path, tmp_path: Path, refused: Any) -> None:
    change, words = RUNS[name]
    change(run_folder)
    assert words in refused("report", "--run_dir", run_folder, name=str(run_folder))
    assert (tmp_path / "victim.json").read_text() == "mine"


def test_a_report_prints_names_as_they_are(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither markup nor control sequences of a name reach the terminal."""
    path = run_folder / "student" / "metrics.json"
    title = "[red]x[/red]\x1b[31m\x1b]0;y\x07"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"title": title}))
    assert main(["report", "--run_dir", str(run_folder)]) == 0
    shown = capsys.readouterr().out
    assert "[red]x[/red]" in shown
    assert "\x1b" not in shown
    assert "\x07" not in shown


# -- label stores ---------------------------------------------------------------------------------------------------

ENDLESS = (
    "CREATE VIEW accepted AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) "
    "SELECT x AS key, 0 AS attempt, 'a' AS label, 'b' AS rationale FROM c"
)
STORES: dict[str, tuple[list[str], str]] = {
    "a trigger": (["CREATE TRIGGER evil AFTER INSERT ON notes BEGIN DELETE FROM accepted; END"], "the trigger 'evil'"),
    "a view without end": (["DROP TABLE accepted", ENDLESS], "the view 'accepted'"),
    "an index of a function": (["CREATE INDEX evil ON notes (hex(value))"], "the index 'evil'"),
    "a table of its own": (["CREATE TABLE evil (a)"], "the table 'evil'"),
    "a value of 20 MB": (
        ["UPDATE settled SET reason = zeroblob(20000000) WHERE position = 0 AND split = 'train'"],
        "the label store is damaged",
    ),
    "broken JSON": (["UPDATE settled SET asks = '{'"], "the label store is damaged"),
    "JSON of another kind": (["UPDATE settled SET asks = '[1]'"], "the label store is damaged"),
    "sent that is a word": (["UPDATE attempts SET sent = 'abc'"], "sent is 'abc', it must be a whole number"),
    "sent beyond reason": (["UPDATE attempts SET sent = 9223372036854775807"], "table attempts"),
    "tokens that are a word": (["UPDATE attempts SET prompt_tokens = 'x'"], "prompt_tokens is 'x'"),
    "a split elsewhere": (
        ["UPDATE settled SET split = 'x/../../../OUTSIDE/pwned' WHERE split = 'train'"],
        "split is 'x/../../../OUTSIDE/pwned', it must be one of train, val, test",
    ),
    "a split that is a number": (["UPDATE settled SET split = 5 WHERE split = 'val'"], "table settled, post 'val-"),
    "an unknown source": (["UPDATE settled SET source = 'evil'"], "source is 'evil', it must be one of"),
    "no source": (["UPDATE settled SET source = NULL"], "source is None, it must be one of"),
    "a label that is bytes": (["UPDATE settled SET gold = x'ff'"], "gold is b'\\xff', it must be a text"),
    "a record that is none": (["UPDATE settled SET imported = 'mine'"], "imported is 'mine', it must be JSON"),
    "a record of nothing": (["UPDATE settled SET imported = '{}'"], "imported is '{}', it must be an object with"),
    "another version": (["PRAGMA user_version = 99"], "has version 99"),
}


def changed_store(embedded: Path, path: Path, *statements: str) -> Path:
    path.parent.mkdir()
    shutil.copy(embedded / "teacher" / "labels.sqlite", path)
    db = sqlite3.connect(path)
    for statement in statements:
        db.execute(statement)
    db.commit()
    db.close()
    path.with_name("labels.sqlite.lock").touch()  # what opening a store makes beside it
    return path


@pytest.mark.parametrize("name", STORES)
def test_a_hostile_label_store_is_refused(name: str, embedded: Path, tmp_path: Path, refused: Any) -> None:
    statements, words = STORES[name]
    path = changed_store(embedded, tmp_path / "store" / "labels.sqlite", *statements)
    assert words in refused("data", "rationales", "--store", path, name=str(path))
    assert words in refused("data", "rationales", "--store", path, "--export", tmp_path / "out", name=str(path))


WRONG_RATIONALES = {
    "{}": "an object with Text_analysis",
    "[": "it must be JSON",
    "[1]": "an object with Text_analysis",
}


@pytest.mark.parametrize("written", WRONG_RATIONALES)
def test_a_wrong_rationale_of_a_store_is_not_exported(
    written: str, embedded: Path, tmp_path: Path, refused: Any
) -> None:
    path = changed_store(embedded, tmp_path / "store" / "labels.sqlite", f"UPDATE accepted SET rationale = '{written}'")
    said = refused("data", "rationales", "--store", path, "--export", tmp_path / "out", name=str(path))
    assert "table accepted, post 't" in said
    assert WRONG_RATIONALES[written] in said


@pytest.mark.parametrize("name", ["sent that is a word", "a split elsewhere", "a record that is none"])
def test_nothing_of_a_hostile_store_is_merged(name: str, embedded: Path, tmp_path: Path, refused: Any) -> None:
    path = changed_store(embedded, tmp_path / "store" / "labels.sqlite", *STORES[name][0])
    own = changed_store(embedded, tmp_path / "own" / "labels.sqlite", "DELETE FROM settled")
    assert STORES[name][1] in refused("data", "rationales", "--store", own, "--merge", path, name=str(path))
    db = sqlite3.connect(own)
    assert db.execute("SELECT count(*) FROM settled").fetchone() == (0,)
    db.close()


@pytest.mark.parametrize("split", ["x/../../../OUTSIDE/pwned", "/etc/x", "", "Train"])
def test_rationale_files_are_of_known_splits_alone(split: str, embedded: Path, tmp_path: Path) -> None:
    path = changed_store(embedded, tmp_path / "store" / "labels.sqlite")
    with LabelStore(path) as store, pytest.raises(InputError, match="there is no split"):
        write_rationale_files(tmp_path / "out", store, ["train", split])
    assert not (tmp_path / "out").exists()


def test_a_store_s_words_act_on_no_terminal(embedded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "[red]x[/red]\x1b[31m\x9b1m\u202e"
    change = f"UPDATE settled SET source = NULL, failure = '{hostile}' WHERE split = 'train'"
    path = changed_store(embedded, tmp_path / "store" / "labels.sqlite", change)
    for given in ([], ["--json"]):
        assert main(["data", "rationales", "--store", str(path), *given]) == 0
        shown = capsys.readouterr().out
        assert "[red]" in shown
        assert not set("\x1b\x9b\u202e") & set(shown)
    assert hostile in json.loads(shown)["splits"]["train"]["failed"]


# -- soft-label caches ----------------------------------------------------------------------------------------------


def changed_json(path: Path, change: Callable[[Any], Any]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def shard_of(cache: Path, suffix: str) -> Path:
    return next(path for path in sorted(cache.glob(f"shard-*{suffix}")))


CACHES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nested manifest": (lambda cache: (cache / "soft_labels.json").write_text(NESTED), "soft_labels.json"),
    "a list for a manifest": (lambda cache: (cache / "soft_labels.json").write_text("[]"), "soft_labels.json"),
    "a shard elsewhere": (
        lambda cache: changed_json(cache / "soft_labels.json", lambda it: it["shards"][0].update(name="../../evil")),
        "is not the name of a shard"),
    "an absolute shard": (
        lambda cache: changed_json(cache / "soft_labels.json", lambda it: it["shards"][0].update(name="/etc/passwd")),
        "is not the name of a shard"),
    "a shard that is a number": (
        lambda cache: changed_json(cache / "soft_labels.json", lambda it: it["shards"][0].update(name=7)),
        "soft_labels.json"),
    "shards that are none": (
        lambda cache: changed_json(cache / "soft_labels.json", lambda it: it.update(shards=5)), "soft_labels.json"),
    "a changed shard": (
        lambda cache: shard_of(cache, ".safetensors").write_bytes(
            bytes([255] * 8) + shard_of(cache, ".safetensors").read_bytes()[8:]), "damaged"),
    "a changed index": (lambda cache: shard_of(cache, ".json").write_text("{}"), "damaged"),
    "a pipe for a shard": (lambda cache: pipe(shard_of(cache, ".safetensors")), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", CACHES)
def test_a_hostile_cache_is_refused(name: str, chain: Path, tmp_path: Path, refused: Any) -> None:
    change, words = CACHES[name]
    cache = Path(shutil.copytree(chain / "soft_labels" / "cache", tmp_path / "cache"))
    change(cache)
    stage = ["--run_dir", chain, "--stage", "hostile", "--trainer.logger=false", "--trainer.enable_progress_bar=false"]
    given = ["fit", "--config", "student.yaml", *stage, "--data.init_args.soft_labels", cache]
    assert words in refused(*given, name=str(cache), limit_mb=300)


# -- converted data -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "data"
    posts = embedded / "posts" / "posts"
    files = json.dumps({split: str(posts / f"{split}.jsonl") for split in ("train", "val", "test")})
    reader = ["--posts", "Table", "--posts.files", files, "--posts.image_root", str(posts / "images")]
    assert main(["data", "convert", *reader, "--out", str(folder)]) == 0
    return folder


def described(change: Callable[[Any], Any]) -> Callable[[Path], Any]:
    return lambda folder: changed_json(folder / "dataset.json", change)


CONVERSIONS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nested description": (lambda folder: (folder / "dataset.json").write_text(NESTED), "dataset.json"),
    "a pipe for a description": (lambda folder: pipe(folder / "dataset.json"), "dataset.json"),
    "a shard elsewhere": (
        described(lambda it: it["splits"]["train"][0].update(file="../../evil.parquet")), "no name of a file"),
    "a shard that is a number": (described(lambda it: it["splits"]["train"][0].update(file=7)), "dataset.json"),
    "tokens elsewhere": (described(lambda it: it.update(tokens={"a": "../../evil"})), "no name of a file"),
    "splits that are a list": (described(lambda it: it.update(splits=[1])), "dataset.json"),
    "an unknown split": (described(lambda it: it["splits"].update(evil=[])), "dataset.json"),
    "labels that are a number": (described(lambda it: it.update(labels=5)), "dataset.json"),
    "a root that is a number": (described(lambda it: it.update(image_root=5)), "dataset.json"),
    "no Parquet": (
        lambda folder: (folder / "train-00000.parquet").write_bytes(
            b"x" * (folder / "train-00000.parquet").stat().st_size), "LISTED"),
    "no Arrow": (
        lambda folder: (folder / "train.arrow").write_bytes(b"ARROW1" + (folder / "train.arrow").read_bytes()[6:-40]),
        "OK"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERSIONS)
def test_a_hostile_conversion_is_refused(name: str, converted: Path, tmp_path: Path, measured: Any) -> None:
    change, words = CONVERSIONS[name]
    folder = Path(shutil.copytree(converted, tmp_path / "data"))
    change(folder)
    given = ["data", "check", "--posts", "Converted", "--posts.folder", str(folder)]
    outcome = measured(lambda: main([*given, "--posts.pictures", str(converted.parent)]))
    assert outcome.code in (0, 1), outcome
    if words == "LISTED":  # among what `check` found
        assert outcome.code == 1
    elif words != "OK":
        assert outcome.code == 1, outcome
        assert any(words in error and str(folder) in error for error in outcome.errors), outcome
    assert outcome.peak_mb < 200


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_the_lock_of_a_store_overwrites_no_other_file(kind: str, embedded: Path, tmp_path: Path, refused: Any) -> None:
    store = Path(shutil.copy(embedded / "teacher" / "labels.sqlite", tmp_path))
    victim = tmp_path / "victim"
    victim.write_text("precious")
    lock = tmp_path / "labels.sqlite.lock"
    lock.symlink_to(victim) if kind == "symbolic" else os.link(victim, lock)
    words = "is a symbolic link" if kind == "symbolic" else "is a second name of another file"
    assert words in refused("data", "rationales", "--store", store, name=str(lock))
    assert victim.read_text() == "precious"
