"""What is read out of a reply's body, and the names under which a model may answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mulcot.teachers.base import TeacherReply
from mulcot.teachers.endpoint_replies import is_same_model, read_reply
from mulcot.teachers.transport import SendingFailedError


def read(body: bytes | dict[str, Any]) -> TeacherReply:
    return read_reply(body if isinstance(body, bytes) else json.dumps(body).encode(), "m", str)


def completion(message: Any = None, **more: Any) -> dict[str, Any]:
    choice = {"message": {"content": "text"} if message is None else message, "finish_reason": "stop"}
    return {"model": "m", "choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}} | more


def test_good_reply() -> None:
    assert read(completion()) == TeacherReply("text", 7, 3, "stop")
    assert read(completion({"content": "\ud83d half"})).text == "\ud83d half", "unchanged, for the stage to mend"
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, {"type": "other"}, 5]
    assert read(completion({"content": parts})).text == "ab"


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "filtered"),
        ("tool_calls", "unknown"),
        (None, "unknown"),
        ([], "unknown"),
    ],
)
def test_finish(reason: Any, finish: str) -> None:
    choice = {"message": {"content": "text"}, "finish_reason": reason}
    assert read(completion(choices=[choice])).finish == finish


@pytest.mark.parametrize("message", [{}, {"content": None}, {"content": ""}, {"content": 5}, [], "text"])
def test_no_text_is_an_empty_reply_that_was_read_whole(message: Any) -> None:
    assert read(completion(message)) == TeacherReply("", 7, 3, "stop")


def test_refusal_counts_as_filtered_and_is_kept() -> None:
    assert read(completion({"content": None, "refusal": "I cannot."})) == TeacherReply("I cannot.", 7, 3, "filtered")
    assert read(completion({"content": "text", "refusal": None})).finish == "stop"


@pytest.mark.parametrize("choices", [[], None, {}, "x", [None], [5]])
def test_no_choice_is_a_reply_that_is_kept_whole(choices: Any) -> None:
    body = completion(choices=choices)
    assert read(body) == TeacherReply(json.dumps(body), 7, 3, "unknown")


@pytest.mark.parametrize(
    "usage", [None, [], {}, {"prompt_tokens": None}, {"prompt_tokens": -1, "completion_tokens": True}]
)
def test_missing_usage_counts_nothing(usage: Any) -> None:
    reply = read(completion(usage=usage))
    assert (reply.prompt_tokens, reply.completion_tokens) == (0, 0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<!doctype html>\n<p>Sign in", "200 with a body that is not JSON, which begins '<!doctype html> <p>Sign in'"),
        (b'{"choices": [{"mess', "not JSON"),
        (b'{"choices": "\xff\xfe"}', "not JSON"),
        (b"", "not JSON, which begins 'no message'"),
        (b"[" * 200_000, "not JSON"),
        (b"[1]", "200 with a JSON list, not a chat completion"),
        (b"null", "200 with a JSON NoneType"),
    ],
)
def test_malformed_body_is_sent_again(body: bytes, message: str) -> None:
    with pytest.raises(SendingFailedError) as caught:
        read(body)
    assert message in str(caught.value)
    assert caught.value.verdict == "again"
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        ({"code": 429, "message": "slow"}, "again"),
        ({"code": 402, "message": "pay"}, "paused"),
        ({"code": 401, "message": "who"}, "wrong"),
        ({"code": "odd", "message": "?"}, "again"),
        ("down", "again"),
    ],
)
def test_error_behind_a_200_counts_as_the_status_that_it_names(error: Any, verdict: str) -> None:
    with pytest.raises(SendingFailedError) as caught:
        read({"error": error})
    assert caught.value.verdict == verdict


@pytest.mark.parametrize(
    ("served", "asked"),
    [
        ("gpt-4o", "gpt-4o"),
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("gpt-4-0613", "gpt-4"),
        ("claude-x-20250219", "claude-x-latest"),
        ("gemini-2.0-flash-001", "gemini-2.0-flash"),
        ("qwen/qwen2.5-vl-72b-instruct", "Qwen/Qwen2.5-VL-72B-Instruct"),
        ("Qwen2.5-VL-72B-Instruct", "Qwen/Qwen2.5-VL-72B-Instruct"),
        ("openai/gpt-4o-2024-08-06", "gpt-4o"),
    ],
)
def test_same_model(served: str, asked: str) -> None:
    assert is_same_model(served, asked)


@pytest.mark.parametrize(
    ("served", "asked"),
    [
        ("gpt-4o-mini", "gpt-4o"),
        ("gpt-4o-mini-2024-07-18", "gpt-4o"),
        ("gpt-4o", "gpt-4o-2024-08-06"),
        ("gpt-4o-2024-08-06", "gpt-4o-2024-05-13"),
        ("gpt-4-32k", "gpt-4"),
        ("other/model", "some/model"),
        ("qwen2.5-vl-7b", "qwen2.5-vl-72b"),
    ],
)
def test_other_model(served: str, asked: str) -> None:
    assert not is_same_model(served, asked)


def test_reply_of_another_model_says_both_names() -> None:
    with pytest.raises(SendingFailedError, match=r"answers as model 'other' instead of 'm': .* reply_model") as caught:
        read(completion(model="other"))
    assert caught.value.verdict == "wrong"
    assert read(completion(model=None)).text == "text"
    nameless = completion()
    del nameless["model"]
    assert read(nameless).text == "text"
