"""The teacher that replays recorded replies."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mulcot.prompts import RenderedPrompt
from mulcot.teachers.base import TeacherReply, TeacherRequest, TeacherSilentError
from mulcot.teachers.recorded import RecordedTeacher
from mulcot.types import InputError, Post

ROWS: list[Any] = [
    {"id": 1, "label": "positive", "cot": "first"},
    {"id": "b", "label": "neutral", "cot": "second — two\u2028lines"},
    {"id": 3, "cot": ""},
]


def ask(teacher: RecordedTeacher, request: TeacherRequest) -> str:
    return asyncio.run(teacher.complete(request)).text


def request(post_id: str, label: str | None = None) -> TeacherRequest:
    return TeacherRequest(Post(post_id, "text", Path("none.jpg"), label=label), RenderedPrompt(()), "predict")


@pytest.fixture(params=["list", "lines"])
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / "replies"
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    path.write_text(json.dumps(ROWS) if request.param == "list" else f"\n{lines}\n\n", encoding="utf-8")
    return path


def test_predict_gives_the_recorded_reply(path: Path) -> None:
    teacher = RecordedTeacher(path, name="Big-72B")
    assert teacher.name == "Big-72B"
    assert ask(teacher, request("1", "positive")) == "first"
    assert ask(teacher, request("b")) == "second — two\u2028lines"
    assert ask(teacher, request("3", "negative")) == "", "a row without a label is not compared"
    assert asyncio.run(teacher.complete(request("1"))) == TeacherReply("first", 0, 0)


def test_silent_on_everything_else(path: Path) -> None:
    teacher = RecordedTeacher(path)
    with pytest.raises(TeacherSilentError, match="no reply is recorded for post '4'"):
        ask(teacher, request("4"))
    with pytest.raises(TeacherSilentError, match="only one reply"):
        ask(teacher, replace(request("1"), attempt=1))
    with pytest.raises(TeacherSilentError, match="no explanations"):
        ask(teacher, replace(request("1"), use="explain", label="positive"))


def test_recording_of_other_posts_is_an_error(path: Path) -> None:
    with pytest.raises(InputError, match=r"(row|line) \d: the recording of post '1' .* 'positive', .* 'negative'"):
        ask(RecordedTeacher(path), request("1", "negative"))
    assert ask(RecordedTeacher(path, label_field=None), request("1", "negative")) == "first"


def test_parameters_change_with_the_recording(path: Path) -> None:
    before = RecordedTeacher(path).parameters
    assert RecordedTeacher(path).parameters == before
    path.write_text(path.read_text(encoding="utf-8").replace("first", "First"), encoding="utf-8")
    assert RecordedTeacher(path).parameters != before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"id": 1, "cot": "x"}, {"cot": "y"}]', r"replies, row 2, field 'id': .* is missing \(fields here: 'cot'\)"),
        ('{"id": 1, "cot": "x"}\n{"id": 1.5, "cot": "y"}', r"replies, line 2, field 'id': .*, is 1\.5"),
        ('[{"id": true, "cot": "x"}]', r"row 1, field 'id': must be text or a whole number, is True"),
        ('[{"id": 1}]', r"row 1, field 'cot': must be the reply as text, is missing"),
        ('[{"id": 1, "cot": null}]', r"row 1, field 'cot': must be the reply as text, is None"),
        ('[{"id": 1, "cot": "x", "label": []}]', r"row 1, field 'label': must be text or a whole number, is \[\]"),
        ('[{"id": 1, "cot": "x"}, {"id": "1", "cot": "y"}]', r"row 2, field 'id': '1' stands already in .*, row 1"),
        ("[1]", r"replies, row 1: must be a JSON object, is a int"),
        ('{"id": 1, "cot": "x"}\n{"id": ', r"replies, line 2: not JSON \("),
        ('[{"id": 1', r"replies: not JSON \("),
        (b"\xff{}", r"replies: recorded replies must be UTF-8, byte 0 is not"),
    ],
)
def test_bad_file_is_named_with_row_and_field(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "replies"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as error:
        RecordedTeacher(path)
    assert "\n" not in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="replies: cannot read the recorded replies: No such file"):
        RecordedTeacher(tmp_path / "replies")
