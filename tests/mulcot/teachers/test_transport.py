"""The one layer that sends again, and what an endpoint's refusals mean to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any

import pytest

from mulcot.teachers.base import (
    TeacherPausedError,
    TeacherSilentError,
    TeacherStoppedError,
    TeacherUnavailableError,
)
from mulcot.teachers.endpoint_failures import failure_of, retry_after
from mulcot.teachers.rate_limit import RateLimit
from mulcot.teachers.transport import SendingFailedError, Transport
from mulcot.types import InputError


class Clock:
    """A time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


def a_transport(clock: Clock, **settings: Any) -> Transport:
    limit = RateLimit(8, clock=lambda: clock.now, sleep=clock.sleep)
    return Transport("https://host/v1", limit, sleep=clock.sleep, **settings)


def scripted(*steps: str | SendingFailedError) -> tuple[Callable[[], Awaitable[str]], list[int]]:
    """A sending that goes through these steps, the last one for ever, and how often it was called."""
    sent: list[int] = []

    async def send() -> str:
        sent.append(len(sent))
        step = steps[min(len(sent), len(steps)) - 1]
        if isinstance(step, SendingFailedError):
            raise step
        return step

    return send, sent


def test_sent_again_until_there_is_a_reply() -> None:
    clock = Clock()
    send, sent = scripted(SendingFailedError("500"), SendingFailedError("reset"), "good")
    assert asyncio.run(a_transport(clock).ask("key", send)) == "good"
    assert len(sent) == 3


def test_unavailable_after_all_retries_with_the_last_reason() -> None:
    send, sent = scripted(SendingFailedError("500: first"), SendingFailedError("503: later"))
    with pytest.raises(TeacherUnavailableError, match=r"^https://host/v1: no reply after 4 sendings, .*: 503: later$"):
        asyncio.run(a_transport(Clock(), max_retries=3).ask("key", send))
    assert len(sent) == 4


@pytest.mark.parametrize(
    ("verdict", "error"), [("never", TeacherSilentError), ("wrong", InputError), ("paused", TeacherPausedError)]
)
def test_what_is_no_use_is_sent_once(verdict: Any, error: type[Exception]) -> None:
    send, sent = scripted(SendingFailedError("4xx: why", verdict))
    with pytest.raises(error, match=r"^https://host/v1: 4xx: why$") as caught:
        asyncio.run(a_transport(Clock()).ask("key", send))
    assert type(caught.value) is error
    assert len(sent) == 1


def back_offs(key: str, **settings: Any) -> list[float]:
    clock = Clock()
    send, _ = scripted(SendingFailedError("500"))

    async def fail() -> None:
        # A rate out of the way: only back-offs are slept.
        limit = RateLimit(8, clock=lambda: clock.now + 1e6 * len(clock.slept), sleep=clock.sleep)
        with pytest.raises(TeacherUnavailableError):
            await Transport("e", limit, sleep=clock.sleep, **settings).ask(key, send)

    asyncio.run(fail())
    return clock.slept


def test_back_off_is_drawn_by_the_key_below_a_doubling_bound() -> None:
    slept = back_offs("key")
    assert len(slept) == 8
    assert slept == back_offs("key"), "a run can be repeated"
    assert slept != back_offs("other"), "and two questions do not come back together"
    bounds = [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert all(0 <= seconds <= bound for seconds, bound in zip(slept, bounds, strict=True))
    assert max(back_offs("key", max_backoff=0.25)) <= 0.25
    drawn = [back_offs(f"key {number}", max_retries=1)[0] for number in range(300)]
    assert min(drawn) < 0.05, "full jitter goes down to nothing"
    assert max(drawn) > 0.45
    assert 0.2 < sum(drawn) / len(drawn) < 0.3


def test_deadline_ends_a_sending_and_the_next_one_may_succeed() -> None:
    sent = []

    async def send() -> str:
        sent.append(0)
        if len(sent) == 1:
            await asyncio.Event().wait()
        return "good"

    assert asyncio.run(a_transport(Clock(), deadline=0.05).ask("key", send)) == "good"
    assert len(sent) == 2


def test_wait_that_is_asked_for_holds_every_question_back() -> None:
    clock = Clock()
    transport = a_transport(clock)
    at: dict[str, list[float]] = {"first": [], "second": []}

    def sender(name: str) -> Callable[[], Awaitable[str]]:
        async def send() -> str:
            at[name].append(clock.now)
            if name == "first" and len(at[name]) == 1:
                raise SendingFailedError("503", wait=40.0)
            return "good"

        return send

    async def work() -> None:
        first = asyncio.create_task(transport.ask("first", sender("first")))
        while not at["first"]:
            await asyncio.sleep(0)
        await asyncio.gather(first, transport.ask("second", sender("second")))

    asyncio.run(work())
    assert at["first"][1] >= at["first"][0] + 40
    assert at["second"][0] >= at["first"][0] + 40


def test_very_long_wait_pauses() -> None:
    send, sent = scripted(SendingFailedError("429: slow down", wait=7200.0, is_rate=True))
    clock = Clock()
    with pytest.raises(TeacherPausedError, match=r"429: slow down; it asks to wait 7200 s: wait until .* goes on"):
        asyncio.run(a_transport(clock).ask("key", send))
    assert len(sent) == 1
    assert clock.slept == []


def test_endpoint_that_is_down_pauses_after_some_questions_and_a_reply_starts_the_count_anew() -> None:
    transport = a_transport(Clock(), max_retries=1, give_up_after=3)
    down, _ = scripted(SendingFailedError("the connection failed"))
    up, _ = scripted("good")
    refused, _ = scripted(SendingFailedError("422", "never"))

    async def work() -> list[type[BaseException] | str]:
        ends: list[type[BaseException] | str] = []
        for send in (down, down, up, down, down, refused, down, down, down):
            try:
                ends.append(await transport.ask("key", send))
            except (TeacherSilentError, TeacherUnavailableError, TeacherPausedError) as error:
                ends.append(type(error))
        return ends

    lost, paused = TeacherUnavailableError, TeacherPausedError
    assert asyncio.run(work()) == [lost, lost, "good", lost, lost, TeacherSilentError, lost, lost, paused]


def test_pause_reaches_the_questions_that_are_waiting_to_be_sent_again() -> None:
    async def work() -> list[BaseException | str]:
        clock = Clock()
        transport = a_transport(clock)
        quota = asyncio.Event()
        sent: list[int] = []

        async def failing() -> str:
            sent.append(0)
            await quota.wait()
            raise SendingFailedError("500")

        async def exhausted() -> str:
            quota.set()
            raise SendingFailedError("429: quota", "paused")

        waiting = [asyncio.create_task(transport.ask(f"key {number}", failing)) for number in range(4)]
        while len(sent) < 4:
            await asyncio.sleep(0)
        paused = asyncio.create_task(transport.ask("last", exhausted))
        return await asyncio.gather(*waiting, paused, return_exceptions=True)

    ends = asyncio.run(work())
    assert [type(end) for end in ends] == [TeacherPausedError] * 5


def test_after_stop_only_what_is_under_way_still_comes() -> None:
    async def work() -> None:
        limit = RateLimit(2)
        transport = Transport("https://host/v1", limit, max_backoff=1000.0)
        arrived, answer = asyncio.Event(), asyncio.Event()
        again, sent_again = scripted(SendingFailedError("503"))
        never, sent_never = scripted("too late")

        async def under_way() -> str:
            arrived.set()
            await answer.wait()
            return "good"

        asked = [asyncio.create_task(transport.ask(str(key), send)) for key, send in enumerate((under_way, again))]
        await arrived.wait()
        while not sent_again:
            await asyncio.sleep(0.001)
        limit.pause(1000.0)
        asked.append(asyncio.create_task(transport.ask("waits for its turn", never)))
        await asyncio.sleep(0.01)
        transport.stop()
        asked.append(asyncio.create_task(transport.ask("comes too late", never)))
        await asyncio.sleep(0.01)
        assert [task.done() for task in asked] == [False, True, True, True]
        answer.set()
        assert await asked[0] == "good"
        with pytest.raises(TeacherUnavailableError, match="stopped before it was sent again, the last time: 503"):
            await asked[1]
        for task in asked[2:]:
            with pytest.raises(TeacherStoppedError):
                await task
        assert (len(sent_again), len(sent_never)) == (1, 0)

    asyncio.run(work())


def test_a_sending_that_fails_after_stop_is_not_repeated() -> None:
    async def work() -> None:
        transport = Transport("https://host/v1", RateLimit(1))

        async def send() -> str:
            transport.stop()
            raise SendingFailedError("reset")

        with pytest.raises(TeacherUnavailableError, match="stopped before it was sent again"):
            await transport.ask("key", send)

    asyncio.run(work())


@pytest.mark.parametrize(("replies_before", "ends"), [(0, InputError), (1, TeacherSilentError)])
def test_endpoint_that_refuses_the_first_questions_refuses_what_they_have_in_common(
    replies_before: int, ends: type[Exception]
) -> None:
    async def work() -> None:
        transport = a_transport(Clock())
        good, _ = scripted("good")
        refused, sent = scripted(SendingFailedError("400: no such parameter", "never"))
        for number in range(replies_before):
            await transport.ask(f"good {number}", good)
        for number in range(4):
            with pytest.raises(TeacherSilentError):
                await transport.ask(f"refused {number}", refused)
        with pytest.raises(ends, match="400: no such parameter") as caught:
            await transport.ask("the last", refused)
        assert type(caught.value) is ends
        assert len(sent) == 5

    asyncio.run(work())


def test_cancelling_a_question_ends_it_and_frees_its_place() -> None:
    async def work() -> str:
        transport = Transport("e", RateLimit(1))
        hanging = asyncio.create_task(transport.ask("a", asyncio.Event().wait))
        await asyncio.sleep(0.05)
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        send, _ = scripted("good")
        async with asyncio.timeout(30):
            return await transport.ask("b", send)

    assert asyncio.run(work()) == "good"


def body(message: str = "why", **more: Any) -> bytes:
    return json.dumps({"error": {"message": message, **more}}).encode()


STATUSES = [
    *[(status, "never") for status in (400, 406, 413, 415, 422, 451)],
    *[(status, "wrong") for status in (301, 302, 307, 308, 401, 403, 404, 405)],
    *[(status, "again") for status in (408, 409, 425, 429, 500, 501, 502, 503, 504, 520, 529, 599)],
    (402, "paused"),
]


@pytest.mark.parametrize(("status", "verdict"), STATUSES)
def test_class_of_every_status(status: int, verdict: str) -> None:
    failure = failure_of(status, {"location": "https://elsewhere/"}, body(), str)
    assert failure.verdict == verdict
    assert str(failure).startswith(f"{status}: ")
    assert failure.is_rate == (status == 429)


def test_codes_that_say_more_than_the_status() -> None:
    assert failure_of(429, {"retry-after": "1"}, body(code="insufficient_quota"), str).verdict == "paused"
    assert failure_of(429, {}, body(type="insufficient_quota"), str).verdict == "paused"
    assert failure_of(400, {}, body(code="model_not_found"), str).verdict == "wrong"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (body("too long"), "400: too long"),
        (b'{"error": "as text"}', "400: as text"),
        (b'{"message": "on top"}', "400: on top"),
        (b'{"detail": "as FastAPI does"}', "400: as FastAPI does"),
        (b"<h1>Bad\r\n\tRequest</h1>\x1b[31m", "400: <h1>Bad Request</h1> [31m"),
        (b"\xff\xfe", "400: \ufffd\ufffd"),
        (b"", "400: no message"),
        (b'{"error": null}', '400: {"error": null}'),
        (b"[" * 100_000, "400: " + "[" * 300 + "…"),
        (b'"text"', "400: text"),
    ],
)
def test_servers_words_stand_on_one_line_and_are_cut(content: bytes, said: str) -> None:
    assert str(failure_of(400, {}, content, str)) == said


def test_secret_is_taken_out_before_the_message_is_cut() -> None:
    failure = failure_of(400, {}, body("x" * 290 + " sk-very-secret"), lambda text: text.replace("sk-very-secret", "*"))
    assert str(failure).endswith("x *")
    redirect = failure_of(302, {"location": "http://a/?k=SECRET"}, b"", lambda text: text.replace("SECRET", "*"))
    assert "http://a/?k=*" in str(redirect)


NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "12"}, 12.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": " 3 "}, 3.0),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "20", "retry-after": "1"}, 0.02),
        ({"retry-after-ms": "soon", "retry-after": "1"}, 1.0),
        ({"retry-after": formatdate(NOW + 90, usegmt=True)}, 90.0),
        ({"retry-after": formatdate(NOW - 90, usegmt=True)}, 0.0),
        ({"retry-after": formatdate(NOW + 7000, usegmt=True), "date": formatdate(NOW + 6970, usegmt=True)}, 30.0),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:50 -0000"}, 30.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e400"}, None),
    ],
)
def test_retry_after_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, NOW) == seconds
    if "date" not in str(headers) and headers.get("retry-after", "").replace(".", "").isdigit():
        assert failure_of(503, headers, b"", str).wait == seconds
