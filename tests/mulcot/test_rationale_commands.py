"""`mulcot data rationales`: everything about a label store from its file alone, in and out of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mulcot.cli import main
from mulcot.teachers.store import LabelStore
from mulcot.types import Rationale, RationaleRecord


@pytest.fixture
def store(embedded: Path, tmp_path: Path) -> Path:
    """A copy of the demo's store."""
    shutil.copy(embedded / "teacher" / "labels.sqlite", tmp_path / "labels.sqlite")
    return tmp_path / "labels.sqlite"


def rationales(*args: object) -> int:
    return main(["data", "rationales", *map(str, args)])


def as_json(capsys: pytest.CaptureFixture[str], *args: object) -> dict[str, Any]:
    capsys.readouterr()
    assert rationales(*args, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_store_says_what_the_stage_said(embedded: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, "--store", store, "--prices", "[2.0, 10.0]")
    splits = json.loads((embedded / "teacher" / "metrics.json").read_text())["splits"]
    assert found["splits"] == splits
    assert found["ended"] is True
    assert found["requests"] == found["replies"] == sum(split["requests"] for split in splits.values())
    assert (found["unknown_outcome"], found["open_attempts"]) == (0, 0)
    tokens = [sum(split[name] for split in splits.values()) for name in ("prompt_tokens", "completion_tokens")]
    assert [found["prompt_tokens"], found["completion_tokens"]] == tokens
    assert found["usd"] == pytest.approx((2 * tokens[0] + 10 * tokens[1]) / 1e6)
    assert as_json(capsys, "--store", store)["usd"] is None
    assert rationales("--store", store) == 0
    shown = capsys.readouterr().out
    assert f"over all runs: {found['requests']:,} requests" in shown
    assert "train" in shown


def test_exports_are_the_files_of_the_stage(embedded: Path, store: Path, tmp_path: Path) -> None:
    assert rationales("--store", store, "--export", tmp_path / "out") == 0
    made = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert made == {path.name: path.read_bytes() for path in (embedded / "teacher").glob("*.jsonl")}
    assert len(made) == 6


def test_a_merged_store_exports_what_both_hold(
    embedded: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole.sqlite"
    assert rationales("--store", whole, "--merge", store, "--export", tmp_path / "out") == 0
    before = as_json(capsys, "--store", whole)
    assert rationales("--store", whole, "--merge", store) == 0
    assert as_json(capsys, "--store", whole) == before
    for path in (embedded / "teacher").glob("rationales-*.jsonl"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_records_are_brought_in_for_the_next_run(
    embedded: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = embedded / "teacher" / "rationales-train.jsonl"
    count = len(file.read_text().splitlines())
    assert rationales("--store", store, "--import", file) == 0
    assert f"brought in: {count} of {count} records were new" in capsys.readouterr().out
    assert rationales("--store", store, "--import", file) == 0
    assert f"brought in: 0 of {count} records were new" in capsys.readouterr().out
    first = RationaleRecord.from_dict(json.loads(file.read_text().splitlines()[0]))
    with LabelStore(store) as opened:
        assert opened.brought_in(first.post_id) == [first]


def error_of(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str]:
    capsys.readouterr()
    code = rationales(*args)
    (line,) = capsys.readouterr().err.splitlines()
    return code, line


def test_mistakes_are_one_line(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = error_of(capsys, "--store", tmp_path / "gone.sqlite")
    assert (code, "gone.sqlite: there is no such label store" in line) == (2, True)
    assert not (tmp_path / "gone.sqlite").exists()
    code, line = error_of(capsys, "--store", store, "--merge", tmp_path / "gone.sqlite")
    assert (code, "gone.sqlite: there is no such label store" in line) == (2, True)
    code, line = error_of(capsys, "--store", store, "--import", tmp_path / "gone.jsonl")
    assert (code, "gone.jsonl: there is no such rationale file" in line) == (2, True)
    with LabelStore(store):
        code, line = error_of(capsys, "--store", store)
    assert (code, "the label store is in use: " in line) == (75, True)
    code, line = error_of(capsys, "--store", store, "--pricse", "[1, 2]")
    assert (code, "unknown key 'pricse'" in line) == (1, True)
    with LabelStore(tmp_path / "new.sqlite"):
        pass
    code, line = error_of(capsys, "--store", tmp_path / "new.sqlite", "--export", tmp_path / "out")
    assert (code, "nothing to export" in line) == (1, True)


def test_a_wrong_record_leaves_the_store_as_it_was(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = RationaleRecord("1", Rationale("t", "i", "c", "f", "positive"), "teacher-predicted", "big", "hash")
    file = tmp_path / "records.jsonl"
    assistant = json.dumps(json.loads(good.to_json()) | {"source": "assistant"})
    for bad, words in (("{", "no valid JSON"), ('{"post_id": "1"}', "source"), (assistant, "the assistant wrote it")):
        file.write_text(f"{good.to_json()}\n{bad}\n")
        code, line = error_of(capsys, "--store", store, "--import", file)
        assert code == 1
        assert "records.jsonl" in line
        assert "line 2" in line
        assert words in line
    with LabelStore(store) as opened:
        assert opened.read("SELECT count(*) FROM imported") == [(0,)]
