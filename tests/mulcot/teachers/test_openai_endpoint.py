"""The teacher behind an endpoint: what it sends, what it tells to whom, and when it connects."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image

from mulcot.teachers import OpenAITeacher
from mulcot.teachers.base import (
    TeacherPausedError,
    TeacherReply,
    TeacherRequest,
    TeacherSilentError,
    TeacherUnavailableError,
)
from mulcot.teachers.limits import Prices
from mulcot.types import RATIONALE_KEYS, InputError

CANARY = "sk-canary/3f9a+Zz=71"
QUICK: dict[str, Any] = {
    "model": "fault-model", "api_key_env": None, "max_backoff": 0.01, "max_retries": 2, "deadline": 20.0,
}  # fmt: skip


async def ask(teacher: OpenAITeacher, request: TeacherRequest) -> TeacherReply | Exception:
    """How one question ends."""
    try:
        return await teacher.complete(request)
    except (TeacherSilentError, TeacherUnavailableError, InputError) as error:
        return error


def end_of(end: TeacherReply | Exception) -> str:
    """The class of an end, `reply` for a good one."""
    if isinstance(end, Exception):
        return type(end).__name__
    return "reply" if end.finish == "stop" and end.text else "no text"


# --- What is sent


def sent_by(
    fault_server: ModuleType, request: TeacherRequest, **settings: Any
) -> tuple[dict[str, Any], dict[str, str]]:
    """The body and the headers of one request."""
    headers: list[dict[str, str]] = []

    async def work() -> dict[str, Any]:
        async with fault_server.FaultServer(plan=lambda asked: headers.append(asked.headers)) as server:
            teacher = OpenAITeacher(server.url, **{**QUICK, **settings})
            await teacher.complete(request)
            await teacher.close()
            body = server.log[0].body
            assert isinstance(body, dict)
            return body

    return asyncio.run(work()), headers[0]


def test_request_holds_picture_prompt_sampling_and_schema(
    fault_server: ModuleType, request_of: Callable[..., TeacherRequest]
) -> None:
    request = request_of(attempt=2, sample=3)
    body, headers = sent_by(fault_server, request, max_pixels=10_000, top_p=0.9, labels=["good", "bad"], seed=5)
    shown, written = body["messages"][0]["content"]
    assert written == {"type": "text", "text": request.prompt.text}
    kind, _, data = shown["image_url"]["url"].partition(";base64,")
    with Image.open(BytesIO(base64.b64decode(data))) as image:
        assert (kind, image.format, image.size) == ("data:image/jpeg", "JPEG", (200, 50))
    assert (body["temperature"], body["top_p"], body["max_tokens"], body["seed"]) == (0.7, 0.9, 1024, 3007)
    schema = body["response_format"]["json_schema"]
    assert body["response_format"]["type"] == "json_schema"
    assert schema["strict"] is True
    assert list(schema["schema"]["properties"]) == list(RATIONALE_KEYS) == schema["schema"]["required"]
    assert list(RATIONALE_KEYS)[-1] == "Prediction", "the reasons come before the label"
    assert schema["schema"]["properties"]["Prediction"]["enum"] == ["good", "bad"]
    assert schema["schema"]["additionalProperties"] is False
    assert headers["idempotency-key"] == "key-0"
    assert headers["accept-encoding"] == "identity"
    assert "authorization" not in headers


def test_request_without_what_is_switched_off(
    fault_server: ModuleType, request_of: Callable[..., TeacherRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", CANARY)
    body, headers = sent_by(
        fault_server, request_of(), api_key_env="A_KEY", structured="off", temperature=None, seed=None,
        max_pixels=None, max_tokens_name="max_completion_tokens", max_tokens=9,
    )  # fmt: skip
    assert set(body) == {"model", "messages", "max_completion_tokens"}
    assert [part["type"] for part in body["messages"][0]["content"]] == ["text"]
    assert headers["authorization"] == f"Bearer {CANARY}"


def test_question_without_a_key_is_named_by_its_content(
    fault_server: ModuleType, request_of: Callable[..., TeacherRequest]
) -> None:
    names = [
        sent_by(fault_server, replace(request, idempotency_key=""))[1]["idempotency-key"]
        for request in (request_of(0), request_of(0), request_of(1))
    ]
    assert names[0] == names[1] != names[2]


def test_parameters_are_what_a_reply_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", CANARY)
    given: dict[str, Any] = {"base_url": "https://host:8443/v1", "model": "m", "api_key_env": "A_KEY"}
    before = OpenAITeacher(**given).parameters
    assert before["endpoint"] == "host:8443/v1"
    assert CANARY not in json.dumps(dict(before))
    other: dict[str, Any] = {
        "base_url": "https://host/v1", "labels": ["a", "b"], "structured": "off", "max_pixels": 5, "temperature": 0.1,
        "top_p": 0.5, "max_tokens": 7, "max_tokens_name": "max_completion_tokens", "seed": 9,
    }  # fmt: skip
    for name, value in other.items():
        assert OpenAITeacher(**{**given, name: value}).parameters != before, name
    same: dict[str, Any] = {"deadline": 1, "max_retries": 0, "concurrency": 1, "max_backoff": 0, "give_up_after": 1}
    assert OpenAITeacher(**{**given, **same}).parameters == before


def test_name_costs_and_prices() -> None:
    given: dict[str, Any] = {"base_url": "https://host/v1", "model": "m", "api_key_env": None}
    teacher = OpenAITeacher(**given)
    assert (teacher.name, teacher.costs, teacher.prices) == ("m", True, None)
    priced = OpenAITeacher(**given, price_per_million_prompt=0.15, price_per_million_completion=0.6)
    assert priced.prices == Prices(0.15, 0.6)
    with pytest.raises(InputError, match="give both, or neither"):
        OpenAITeacher(**given, price_per_million_prompt=0.15)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_pixels", 0),
        ("max_tokens", 0),
        ("concurrency", 0),
        ("deadline", 0),
        ("deadline", float("nan")),
        ("give_up_after", 0),
        ("max_retries", -1),
        ("temperature", -0.1),
        ("price_per_million_prompt", -1),
        ("model", " "),
    ],
)
def test_impossible_argument_is_named(name: str, value: Any) -> None:
    given: dict[str, Any] = {"base_url": "https://host/v1", "model": "m", "api_key_env": None}
    with pytest.raises(InputError, match=f"^{name}: "):
        OpenAITeacher(**{**given, name: value})


# --- What is told to whom


def test_unreadable_picture_is_named_and_nothing_is_sent(
    fault_server: ModuleType, request_of: Callable[..., TeacherRequest], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")

    async def work() -> None:
        async with fault_server.FaultServer() as server:
            teacher = OpenAITeacher(server.url, **QUICK)
            request = request_of()
            with pytest.raises(InputError, match=r"bad\.jpg: it holds no JPEG"):
                await teacher.complete(replace(request, post=replace(request.post, image=bad)))
            await teacher.close()
            assert server.log == []

    asyncio.run(work())


def test_nobody_listens(request_of: Callable[..., TeacherRequest], fault_server: ModuleType) -> None:
    async def work() -> list[TeacherReply | Exception]:
        async with fault_server.FaultServer() as server:
            url = server.url
        teacher = OpenAITeacher(url, **{**QUICK, "max_retries": 1, "give_up_after": 3})
        ends = [await ask(teacher, request_of(number)) for number in range(3)]
        await teacher.close()
        return ends

    ends = asyncio.run(work())
    assert [type(end) for end in ends] == [TeacherUnavailableError, TeacherUnavailableError, TeacherPausedError]
    assert "the connection failed (ConnectError: " in str(ends[-1])
    assert "3 questions in a row went unanswered" in str(ends[-1])


def test_works_in_one_event_loop_after_the_other_and_after_close(
    fault_server: ModuleType, request_of: Callable[..., TeacherRequest]
) -> None:
    with fault_server.in_thread() as server:
        teacher = OpenAITeacher(server.url, **QUICK)

        async def work() -> list[str]:
            ends = [await ask(teacher, request_of(0))]
            await teacher.close()
            await teacher.close()
            ends.append(await ask(teacher, request_of(1)))
            await teacher.close()
            return [end_of(end) for end in ends]

        assert asyncio.run(work()) == ["reply", "reply"]
        assert asyncio.run(work()) == ["reply", "reply"]


def test_connections_are_used_again_and_are_no_more_than_requests_under_way(
    request_of: Callable[..., TeacherRequest], fault_server: ModuleType
) -> None:
    async def work() -> list[int]:
        opened = []
        async with fault_server.FaultServer(delay=0.25) as server:
            teacher = OpenAITeacher(server.url, **{**QUICK, "concurrency": 3})
            for at_once in (1, 1, 9, 1):
                replies = [teacher.complete(request_of(number)) for number in range(at_once)]
                assert all(reply.text for reply in await asyncio.gather(*replies))
                opened.append(server.connections)
            await teacher.close()
        return opened

    assert asyncio.run(work()) == [1, 1, 3, 3]


async def serve(reply: Callable[[bytes], bytes], use: Callable[[str], Awaitable[None]]) -> None:
    """A server that answers what it reads with the bytes of `reply`, while `use` has its address."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        body = reply(head)
        writer.write(body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        await use(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")


def test_compressed_body_is_not_unpacked(request_of: Callable[..., TeacherRequest]) -> None:
    body = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\n\x1f\x8b\x08"

    async def use(url: str) -> None:
        teacher = OpenAITeacher(url, **QUICK)
        end = await ask(teacher, request_of())
        await teacher.close()
        assert end_of(end) == "TeacherUnavailableError"
        assert "compressed body" in str(end)

    asyncio.run(serve(lambda head: body, use))


ECHOES = {
    "in a 401": (401, CANARY),
    "in a 400, quoted": (400, quote(CANARY, safe="")),
    "in a 500, as base64": (500, base64.b64encode(CANARY.encode()).decode()),
    "in a page": (200, f"<p>{CANARY}</p>"),
    "as the model": (200, json.dumps({"model": CANARY, "choices": []})),
    "in a redirect": (302, f"http://127.0.0.1/?key={CANARY}"),
    "as no HTTP": (0, CANARY),
}


@pytest.mark.parametrize("echo", ECHOES)
def test_key_is_shown_nowhere_even_if_the_server_repeats_it(
    echo: str,
    request_of: Callable[..., TeacherRequest],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name in ("", "openai", "openai._base_client", "httpx2", "httpcore2", "httpcore2.http11", "asyncio", "mulcot"):
        caplog.set_level(logging.DEBUG, logger=name)
    monkeypatch.setenv("A_KEY", CANARY)
    status, said = ECHOES[echo]
    redirects = 300 <= status < 400
    head = f"HTTP/1.1 {status} Reply\r\n{f'location: {said}' if redirects else f'x-key: {CANARY}'}\r\n"
    content = "" if redirects else said
    whole = said if status == 0 else f"{head}content-length: {len(content)}\r\n\r\n{content}"
    seen: list[bytes] = []

    def reply(head: bytes) -> bytes:
        seen.append(head)
        return whole.encode() + b"\r\n" * (status == 0)

    async def use(url: str) -> None:
        teacher = OpenAITeacher(url, **{**QUICK, "api_key_env": "A_KEY"})
        end = await ask(teacher, request_of())
        await teacher.close()
        assert isinstance(end, Exception)
        shown = "".join(traceback.TracebackException.from_exception(end, capture_locals=True).format())
        shown += f"{end!r} {teacher!r} {vars(teacher)} {end.__context__!r} {end.__cause__!r}"
        shown += "".join(f"{record.getMessage()} {record.args}" for record in caplog.records)
        shown += "".join(capfd.readouterr())
        for form in (CANARY, quote(CANARY, safe=""), base64.b64encode(CANARY.encode()).decode()):
            assert form not in shown

    asyncio.run(serve(reply, use))
    assert f"Bearer {CANARY}".encode() in seen[0], "it was sent, so it might have been shown"
    assert any("sending 1" in record.getMessage() for record in caplog.records) == (len(seen) > 1)


def test_importing_the_teachers_imports_no_client() -> None:
    code = "import sys, mulcot.teachers; print(sorted({'openai', 'httpx2', 'torch'} & sys.modules.keys()))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert out.stdout == "[]\n"
