"""Prediction files: written and read back whatever the text holds, and every mistake named by line and field."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mulcot.predictions import Prediction, read_predictions, write_predictions
from mulcot.types import Answer, InputError, MissingInputError, Post, Rationale

RATIONALE = Rationale("it is glad", "a dog", "none", "so it is glad", "positive")
SURE = {"positive": 0.75, "neutral": 0.25, "negative": 0.0}
TOLD = Prediction(
    Answer("1", "positive", SURE, RATIONALE, RATIONALE.to_json(), ""),
    "neutral",
    "Hail in May",
    "May",
    "images/hail.png",
    {"conflict": "yes"},
)
REFUSED = Prediction(Answer("2", "neutral", SURE, None, "I am small.", "no field"), None, "fine", None, "b.png")


def written(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, [TOLD, REFUSED])
    assert read_predictions(path) == [TOLD, REFUSED]
    first = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert (first["post_id"], first["gold"], first["aspect"]) == ("1", "neutral", "May")
    assert first["rationale"]["Image_analysis"] == "a dog"
    assert first["slices"] == {"conflict": "yes"}


@pytest.mark.parametrize(
    "text", ["a\u2028b\u2029c\x85d\x0be\x0cf\x1cg", 'say "hi"\\n', "日本 🎉", "line\nline\r\nline", ""]
)
def test_texts_of_any_characters_come_back(tmp_path, text):
    path = tmp_path / "predictions.jsonl"
    strange = replace(TOLD, text=text, answer=replace(TOLD.answer, reply=text))
    write_predictions(path, [strange, REFUSED])
    assert read_predictions(path) == [strange, REFUSED]


def test_of_a_post():
    post = Post("1", "Hail in May", Path("images/hail.png"), "May", "neutral")
    assert Prediction.of(post, TOLD.answer) == replace(TOLD, slices={})


def test_files_without_slices_and_with_empty_lines_are_read(tmp_path):
    values = json.loads(TOLD.to_json())
    del values["slices"]
    path = written(tmp_path / "p.jsonl", "", json.dumps(values), "  ", REFUSED.to_json())
    assert read_predictions(path) == [replace(TOLD, slices={}), REFUSED]
    assert read_predictions(written(tmp_path / "empty.jsonl")) == []


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({"post_id": 7}, "line 2: post_id: Input should be a valid string"),
        ({"label": None}, "line 2: label: "),
        (
            {"probabilities": {"positive": 1.5}},
            "line 2: probabilities.positive: Input should be less than or equal to 1",
        ),
        ({"rationale": {"Prediction": "positive"}}, "line 2: rationale: its keys must be Text_analysis, "),
        ({"post_id": "1"}, "line 2: post_id '1' stands in line 1 already"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, changed, where):
    wrong = json.dumps(json.loads(REFUSED.to_json()) | changed)
    path = written(tmp_path / "p.jsonl", TOLD.to_json(), wrong)
    with pytest.raises(InputError) as error:
        read_predictions(path)
    assert f"{path}, {where}" in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_none_are_named(tmp_path):
    with pytest.raises(MissingInputError, match="there is no such file; `mulcot test` writes predictions"):
        read_predictions(tmp_path / "p.jsonl")
    for broken in ("{", "[]", '{"post_id": "1"}'):
        with pytest.raises(InputError, match="line 1: "):
            read_predictions(written(tmp_path / "p.jsonl", broken))
    (tmp_path / "p.jsonl").write_bytes(b"\xff")
    with pytest.raises(InputError, match="give a prediction file in UTF-8"):
        read_predictions(tmp_path / "p.jsonl")
