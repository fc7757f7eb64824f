"""The teacher behind an endpoint against every fault of the fault server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from mulcot.generation.parsing import RationaleRefusedError, parse_rationale
from mulcot.teachers import OpenAITeacher
from mulcot.teachers.base import TeacherReply, TeacherRequest, TeacherSilentError, TeacherUnavailableError
from mulcot.types import DEFAULT_LABELS, InputError

QUICK: dict[str, Any] = {
    "model": "fault-model", "api_key_env": None, "max_backoff": 0.01, "max_retries": 2, "deadline": 20.0,
}  # fmt: skip
SLOW_FAULTS = ("slow-drip", "hang")
"""Faults that only the deadline ends."""


async def ask(teacher: OpenAITeacher, request: TeacherRequest) -> TeacherReply | Exception:
    """How one question ends."""
    try:
        return await teacher.complete(request)
    except (TeacherSilentError, TeacherUnavailableError, InputError) as error:
        return error


def end_of(end: TeacherReply | Exception) -> str:
    """The class of an end: of an error its name, of a reply whether the stage can use it."""
    if isinstance(end, Exception):
        return type(end).__name__
    if end.finish != "stop":
        return f"refused by the stage ({end.finish})"
    try:
        label = parse_rationale(end.text, DEFAULT_LABELS).prediction
    except RationaleRefusedError:
        return "refused by the stage"
    return "reply" if label == "neutral" else "reply with another label"


# --- Every fault of the server: how the question ends and how often it is sent, (always, on the first sending only).

AGAIN = (("TeacherUnavailableError", 3), ("reply", 2))
SILENT = (("TeacherSilentError", 1), ("TeacherSilentError", 1))
WRONG = (("InputError", 1), ("InputError", 1))
PAUSED = (("TeacherPausedError", 1), ("TeacherPausedError", 1))


def read_whole(end: str) -> tuple[tuple[str, int], tuple[str, int]]:
    """The reply is there and the transport has done its part; what it is worth is for the stage to say."""
    return (end, 1), (end, 1)


TABLE = {
    **dict.fromkeys(["408", "409", "425", "429", "500", "502", "503", "529"], AGAIN),
    **dict.fromkeys(["429-seconds", "429-date", "429-ms-header", "429-nonsense", "503-seconds"], AGAIN),
    **dict.fromkeys(["reset-before", "reset-inside", "short-body", "truncated-json", "html", "bad-utf8"], AGAIN),
    **dict.fromkeys(["slow-drip", "hang", "oversized", "restart"], AGAIN),
    **dict.fromkeys(["400", "413", "422"], SILENT),
    **dict.fromkeys(["401", "403", "404", "redirect", "wrong-model"], WRONG),
    **dict.fromkeys(["429-long", "429-quota"], PAUSED),
    **dict.fromkeys(
        ["late-duplicate", "dated-model", "no-usage", "fences", "prose", "other-post"], read_whole("reply")
    ),
    **dict.fromkeys(["empty-content", "null-content", "label-outside"], read_whole("refused by the stage")),
    **dict.fromkeys(["contradiction", "whitespace-loop"], read_whole("refused by the stage")),
    **dict.fromkeys(["empty-choices", "no-choices"], read_whole("refused by the stage (unknown)")),
    **dict.fromkeys(["content-filter", "refusal"], read_whole("refused by the stage (filtered)")),
    "length": read_whole("refused by the stage (length)"),
    "wrong-label": read_whole("reply with another label"),
}


def test_table_has_every_fault(fault_server: ModuleType) -> None:
    assert set(TABLE) == set(fault_server.FAULTS)


@pytest.mark.parametrize("first_only", [False, True], ids=["always", "first-only"])
@pytest.mark.parametrize("fault", TABLE)
def test_every_fault(
    fault: str, first_only: bool, fault_server: ModuleType, request_of: Callable[..., TeacherRequest]
) -> None:
    expected, sendings = TABLE[fault][first_only]
    # Short only where no reply is waited for: a loaded machine may take its time over a good one.
    deadline = (2.0 if first_only else 0.2) if fault in SLOW_FAULTS else 20.0
    settings = {**QUICK, "deadline": deadline}

    async def work() -> None:
        faults = {fault: 1.0}
        async with fault_server.FaultServer(
            faults=faults, first_only=first_only, retry_after=0.05, restart_after=0.0
        ) as server:
            teacher = OpenAITeacher(server.url, **settings)
            end = await ask(teacher, request_of())
            await teacher.close()
            assert end_of(end) == expected, end
            sent = [sending.idempotency_key for sending in server.log]
            if fault == "restart":  # while the server is away nobody counts
                assert set(sent) == {"key-0"}
                return
            assert sent == ["key-0"] * sendings
            assert server.bill == (0 if fault in fault_server.STATUS_FAULTS and expected != "reply" else 1)

    asyncio.run(work())


def test_restart_of_the_server_loses_no_question(
    fault_server: ModuleType, request_of: Callable[..., TeacherRequest]
) -> None:
    async def work() -> None:
        faults = {"restart": 0.2}
        async with fault_server.FaultServer(faults=faults, restart_after=0.3, delay=0.01) as server:
            teacher = OpenAITeacher(server.url, **{**QUICK, "max_retries": 30, "max_backoff": 0.3})
            ends = await asyncio.gather(*[ask(teacher, request_of(number)) for number in range(40)])
            await teacher.close()
            assert [end_of(end) for end in ends] == ["reply"] * 40
            assert server.restarts > 0
            assert server.bill == 40

    asyncio.run(work())


@pytest.mark.parametrize("late", [0.0, 0.03])
def test_second_copy_of_a_reply_is_not_taken_for_the_reply_to_the_next_question(
    late: float, fault_server: ModuleType, request_of: Callable[..., TeacherRequest]
) -> None:
    async def work() -> None:
        async with fault_server.FaultServer(faults={"late-duplicate": 0.5}, late=late, delay=0.005) as server:
            teacher = OpenAITeacher(server.url, **{**QUICK, "concurrency": 4, "max_retries": 8})
            requests = [request_of(number) for number in range(40)]
            ends = await asyncio.gather(*[ask(teacher, request) for request in requests])
            await teacher.close()
            for request, end in zip(requests, ends, strict=True):
                assert isinstance(end, TeacherReply), end
                assert request.post.text in end.text
            assert server.bill == 40

    asyncio.run(work())


def test_rate_of_the_server_is_kept(fault_server: ModuleType, request_of: Callable[..., TeacherRequest]) -> None:
    async def work() -> None:
        async with fault_server.FaultServer(rate=40, burst=5, retry_after=0.3) as server:
            teacher = OpenAITeacher(server.url, **{**QUICK, "max_retries": 8})
            ends = await asyncio.gather(*[ask(teacher, request_of(number)) for number in range(40)])
            await teacher.close()
            assert [end_of(end) for end in ends] == ["reply"] * 40
            waits = [(sending.at, sending.retry_after) for sending in server.log if sending.status == 429]
            assert waits, "the server did refuse"
            for at, seconds in waits:
                # What was under way when the refusal came cannot be called back.
                early = [sending for sending in server.log if at + 0.1 < sending.at < at + seconds - 0.01]
                assert not early

    asyncio.run(work())
