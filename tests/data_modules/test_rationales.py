import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_modules.rationales import PostsById, read_rationales
from data_modules.readers.row_log import RowLog
from mulcot.prompts import get_prompt
from mulcot.types import DEFAULT_LABELS, InputError, MissingInputError, Post, Rationale, RationaleRecord

RATIONALE = Rationale("The words are glad.", "A sunny beach.", "None.", "Glad all over.", "positive")
PREDICT, REASON = (get_prompt("msc", use).hash for use in ("teacher_predict", "reasoning"))
RECORD = RationaleRecord("1", RATIONALE, "teacher-predicted", "big", PREDICT, attempts=2, prompt_tokens=7)
POSTS = {
    "1": Post(id="1", text="a", image=Path("a.png"), label="positive"),
    "2": Post(id="2", text="b", image=Path("b.png"), label=None),
}


def another(post_id: str, text: str, **changes: Any) -> RationaleRecord:
    return replace(RECORD, post_id=post_id, rationale=replace(RATIONALE, text_analysis=text), **changes)


def written(path: Path, *lines: RationaleRecord | dict[str, Any] | str) -> Path:
    texts = []
    for line in lines:
        if isinstance(line, RationaleRecord):
            texts.append(line.to_json())
        else:
            texts.append(line if isinstance(line, str) else json.dumps(line))
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def refusal(path: Path, *lines: RationaleRecord | dict[str, Any] | str) -> str:
    with pytest.raises(InputError) as caught:
        read_rationales([written(path, *lines)], POSTS, DEFAULT_LABELS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_was_written_comes_back_in_order(tmp_path: Path) -> None:
    second, third = another("2", "x\u2028y"), another("1", "z", source="assistant", prompt_hash=REASON)
    teacher = written(tmp_path / "teacher.jsonl", RECORD, second)
    augmented = written(tmp_path / "augmented.jsonl", third)
    assert read_rationales([teacher, augmented], POSTS, DEFAULT_LABELS) == {"1": [RECORD, third], "2": [second]}


def test_counts_may_be_left_out(tmp_path: Path) -> None:
    values = json.loads(RECORD.to_json())
    for key in ("attempts", "prompt_tokens", "completion_tokens"):
        del values[key]
    records = read_rationales([written(tmp_path / "r.jsonl", values)], POSTS, DEFAULT_LABELS)
    assert records == {"1": [replace(RECORD, attempts=1, prompt_tokens=0)]}


def test_a_missing_file_names_the_stage_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"gone\.jsonl: .*mulcot predict --config teacher\.yaml.*augment\.yaml"):
        read_rationales([tmp_path / "gone.jsonl"], POSTS, DEFAULT_LABELS)


@pytest.mark.parametrize("key", ["post_id", "source", "model", "prompt_hash", "rationale"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    values = json.loads(RECORD.to_json())
    del values[key]
    assert f"r.jsonl, line 2, field '{key}': it is missing" in refusal(tmp_path / "r.jsonl", another("1", "x"), values)


@pytest.mark.parametrize(
    "key", ["Text_analysis", "Image_analysis", "Conflict_resolution", "Final_conclusion", "Prediction"]
)
@pytest.mark.parametrize(("value", "problem"), [(None, "it is missing"), ("", "it is empty"), (3, "3 is no text")])
def test_a_rationale_without_a_part_is_named(tmp_path: Path, key: str, value: object, problem: str) -> None:
    values = json.loads(RECORD.to_json())
    values["rationale"][key] = value
    assert f"r.jsonl, line 1, field '{key}': {problem}" in refusal(tmp_path / "r.jsonl", values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "human"}, "field 'source': unknown source 'human'; use one of 'teacher-predicted'"),
        ({"attempts": 0}, "field 'attempts': 0 is no count; write a whole number from 1 up"),
        ({"prompt_tokens": -1}, "field 'prompt_tokens': -1 is no count; write a whole number from 0 up"),
        ({"completion_tokens": True}, "field 'completion_tokens': True is no count"),
        ({"rationale": "text"}, "line 1: 'text' is no JSON object"),
        ({"modle": "big"}, "line 1: unknown key 'modle'; the keys are post_id, rationale, source, model"),
        ({"post_id": 1}, "field 'post_id': 1 is no text"),
        ({"post_id": "3"}, "field 'post_id': there is no post '3' in the data"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert message in refusal(tmp_path / "r.jsonl", {**json.loads(RECORD.to_json()), **changes})


@pytest.mark.parametrize("line", ["{", "[1]", "nul"])
def test_a_line_that_is_no_object(tmp_path: Path, line: str) -> None:
    message = refusal(tmp_path / "r.jsonl", RECORD, "", line)
    assert "r.jsonl, line 3: " in message
    assert "JSON" in message


def test_a_prediction_must_be_a_label_and_the_gold_one(tmp_path: Path) -> None:
    wrong = replace(RECORD, rationale=replace(RATIONALE, prediction="neutral"))
    message = refusal(tmp_path / "r.jsonl", wrong)
    assert "line 1, field 'Prediction': 'neutral' contradicts the gold label 'positive' of post '1'" in message
    assert read_rationales([written(tmp_path / "r.jsonl", replace(wrong, post_id="2"))], POSTS, DEFAULT_LABELS)
    strange = replace(RECORD, post_id="2", rationale=replace(RATIONALE, prediction="Positive"))
    assert "'Positive' is no label of the data set" in refusal(tmp_path / "r.jsonl", strange)


def test_the_same_rationale_does_not_count_twice(tmp_path: Path) -> None:
    message = refusal(tmp_path / "r.jsonl", RECORD, another("1", "x"), replace(RECORD, attempts=9))
    assert "r.jsonl, line 3, field 'rationale': post '1' has the same rationale at " in message
    assert "r.jsonl, line 1;" in message
    path = written(tmp_path / "r.jsonl", RECORD)
    with pytest.raises(InputError, match="or name the file once"):
        read_rationales([path, path], POSTS, DEFAULT_LABELS)
    same_words = replace(RECORD, post_id="2")
    assert len(read_rationales([written(path, RECORD, same_words)], POSTS, DEFAULT_LABELS)) == 2


def test_a_rationale_of_another_prompt_version_is_refused_unless_it_is_asked_for(tmp_path: Path) -> None:
    old = replace(RECORD, prompt_hash="0123456789abcdef")
    message = refusal(tmp_path / "old.jsonl", RECORD, old)
    assert "old.jsonl, line 2, field 'prompt_hash': '0123456789abcdef' is another version of the prompt" in message
    assert message.endswith("or accept them with data.init_args.other_prompts=true")
    kept = read_rationales([tmp_path / "old.jsonl"], POSTS, DEFAULT_LABELS, RowLog("skip"))
    assert kept == {"1": [RECORD]}
    written(tmp_path / "old.jsonl", old)
    assert read_rationales([tmp_path / "old.jsonl"], POSTS, DEFAULT_LABELS, other_prompts=True) == {"1": [old]}


def test_an_assistant_s_rationale_answers_the_reasoning_prompt(tmp_path: Path) -> None:
    assert "field 'prompt_hash'" in refusal(tmp_path / "a.jsonl", another("1", "z", source="assistant"))


def test_wrong_lines_are_left_out_and_listed(tmp_path: Path) -> None:
    log = RowLog("skip")
    path = written(tmp_path / "r.jsonl", "{", RECORD, another("7", "x"), {"post_id": "1"}, RECORD, another("2", "y"))
    assert read_rationales([path], POSTS, DEFAULT_LABELS, log) == {"1": [RECORD], "2": [another("2", "y")]}
    assert [(error.row.number, error.field) for error in log.bad] == [
        (1, None),
        (3, "post_id"),
        (4, "source"),
        (5, "rationale"),
    ]


def test_posts_are_found_by_id() -> None:
    posts = list(POSTS.values())
    by_id = PostsById(posts, [post.id for post in posts])
    assert dict(by_id) == POSTS
    assert by_id.position == {"1": 0, "2": 1}
