"""Getting one whole reply out of an endpoint that fails: the one layer that sends again."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Final, Literal, TypeVar

from mulcot.teachers.base import (
    TeacherPausedError,
    TeacherSilentError,
    TeacherStoppedError,
    TeacherUnavailableError,
)
from mulcot.teachers.rate_limit import RateLimit
from mulcot.types import InputError

Verdict = Literal["again", "never", "wrong", "paused"]
"""What follows from a failed sending: it is sent again; there will be no reply to this question; something is
configured wrongly, for all questions; no question can be answered for long."""

GO_ON: Final = "then start the same command again, which goes on where it stopped"
_FIRST_BACK_OFF: Final = 0.5
_REFUSED_AT_FIRST: Final = 5
"""An endpoint that has refused so many questions, and answered none, refuses what they have in common."""
_log = logging.getLogger(__name__)
T = TypeVar("T")


class SendingFailedError(Exception):
    """One sending brought no whole reply; the message says why, on one line and without any secret.

    Args:
        message: Why.
        verdict: What follows from it.
        wait: The seconds that the endpoint asks to wait, None where it does not say.
        is_rate: Whether the endpoint found that it is asked too fast (429).
    """

    def __init__(
        self, message: str, verdict: Verdict = "again", wait: float | None = None, is_rate: bool = False
    ) -> None:
        super().__init__(message)
        self.verdict: Verdict = verdict
        self.wait = wait
        self.is_rate = is_rate


class Transport:
    """Sends questions: each again until a reply was read whole, with a deadline for every sending. For one event loop.

    Args:
        endpoint: The endpoint's address for messages.
        limit: The rate and the number of requests under way; shared by all questions.
        deadline: Seconds for one sending, from its start to the last byte of the reply.
        max_retries: How often a question is sent again.
        max_backoff: The longest back-off in seconds. A back-off is drawn evenly from nothing up to a bound that
            doubles from half a second; a wait that the endpoint asks for comes before it.
        longest_wait: The longest wait in seconds that is waited for; a longer one pauses the run.
        give_up_after: After so many questions in a row whose retries were all in vain, the run pauses.
        sleep: Waits for a number of seconds.
    """

    def __init__(
        self,
        endpoint: str,
        limit: RateLimit,
        deadline: float = 120.0,
        max_retries: int = 8,
        max_backoff: float = 30.0,
        longest_wait: float = 600.0,
        give_up_after: int = 5,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._endpoint = endpoint
        self._limit = limit
        self._deadline = deadline
        self._max_retries = max_retries
        self._max_backoff = max_backoff
        self._longest_wait = longest_wait
        self._give_up_after = give_up_after
        self._sleep = sleep
        self._given_up = 0
        self._refused: int | None = 0
        """Questions that were refused for good so far; None once there was a reply."""
        self._pauses: list[str] = []
        self._stopped = False
        self._waiting: set[asyncio.Task[object]] = set()

    def stop(self) -> None:
        """Sends nothing any more: what waits for its turn or backs off ends at once, what is under way goes on."""
        self._stopped = True
        for task in list(self._waiting):
            task.cancel()

    async def ask(self, key: str, send: Callable[[], Awaitable[T]]) -> T:
        """The reply to one question.

        Args:
            key: The question's idempotency key; the back-off is drawn by it, so that a run can be repeated.
            send: Sends it once; raises `SendingFailedError` where there is no whole reply.

        Raises:
            TeacherSilentError: The endpoint refuses this question.
            TeacherUnavailableError: All retries were in vain, or it would have to be sent again after `stop`.
            TeacherStoppedError: It would have to be sent after `stop`.
            TeacherPausedError: The quota is exhausted, the endpoint asks for a very long wait or is down.
            InputError: The key, the model or the address is wrong, or no question at all is taken.
        """
        task = asyncio.current_task()
        assert task is not None
        sendings: list[str] = []
        try:
            return await self._ask(key, send, task, sendings)
        except asyncio.CancelledError:
            if not (self._stopped and task in self._waiting):
                raise
            task.uncancel()  # it was `stop` that cancelled it, or came first
        finally:
            self._waiting.discard(task)
        if sendings:
            raise TeacherUnavailableError(
                f"{self._endpoint}: the run was stopped before it was sent again, the last time: {sendings[-1]}"
            )
        raise TeacherStoppedError("the run was stopped before this was sent")

    async def _ask(
        self, key: str, send: Callable[[], Awaitable[T]], task: asyncio.Task[object], sendings: list[str]
    ) -> T:
        """Sends until there is a reply; notes in `sendings` what came of each sending that failed."""
        pauses = len(self._pauses)
        for sending in count():
            self._waiting.add(task)
            if self._stopped:
                raise asyncio.CancelledError
            try:
                reply = await self._send(send, task)
            except SendingFailedError as error:
                failure = error
            else:
                self._given_up, self._refused = 0, None
                return reply
            self._refuse(failure)
            sendings.append(str(failure))
            if sending == self._max_retries:
                raise self._give_up(sending + 1, failure)
            bound = min(self._max_backoff, _FIRST_BACK_OFF * 2.0**sending)
            back_off = random.Random(f"{key} {sending}").uniform(0.0, bound)
            _log.debug("question %s, sending %d: %s; again in %.2f s", key[:16], sending + 1, failure, back_off)
            self._waiting.add(task)
            if self._stopped:
                raise asyncio.CancelledError
            await self._sleep(back_off)
            if len(self._pauses) > pauses:  # another question found out meanwhile that it is no use
                raise TeacherPausedError(self._pauses[-1])
        raise AssertionError("the loop above ends by itself")

    async def _send(self, send: Callable[[], Awaitable[T]], task: asyncio.Task[object]) -> T:
        """One sending, in its turn."""
        async with self._limit.turn() as sent_at:
            if self._stopped:
                raise asyncio.CancelledError
            self._waiting.discard(task)  # from here on it may be billed, and its reply is waited for
            try:
                async with asyncio.timeout(self._deadline):
                    return await send()
            except TimeoutError:
                failure = SendingFailedError(f"no whole reply within {self._deadline:g} s")
            except SendingFailedError as error:
                failure = error
            self._slow_down(failure, sent_at)
        raise failure

    def _slow_down(self, failure: SendingFailedError, sent_at: float) -> None:
        """What a failure means for all questions; while it still holds its place, so that no other is sent first."""
        if failure.wait is not None and failure.wait > self._longest_wait:
            until = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + failure.wait))
            failure.verdict = "paused"
            failure.args = (f"{failure}; it asks to wait {failure.wait:.0f} s: wait until {until}, {GO_ON}",)
        if failure.verdict != "again":
            return
        if failure.wait is not None:
            self._limit.pause(failure.wait)
        if failure.is_rate:
            self._limit.refused(sent_at)

    def _refuse(self, failure: SendingFailedError) -> None:
        """Raises what a failure means for its question, unless it is sent again."""
        message = f"{self._endpoint}: {failure}"
        if failure.verdict == "never":
            self._given_up = 0  # whoever refuses is up
            if self._refused is not None:
                self._refused += 1
                if self._refused >= _REFUSED_AT_FIRST:
                    raise InputError(
                        f"{message}; the first {self._refused} questions of this run were all refused: correct the "
                        f"teacher's parameters or the model, {GO_ON}"
                    )
            raise TeacherSilentError(message)
        if failure.verdict == "wrong":
            raise InputError(message)
        if failure.verdict == "paused":
            raise self._pause(message)

    def _give_up(self, sendings: int, failure: SendingFailedError) -> TeacherUnavailableError | TeacherPausedError:
        self._given_up += 1
        message = f"{self._endpoint}: no reply after {sendings} sendings, the last time: {failure}"
        if self._given_up < self._give_up_after:
            return TeacherUnavailableError(message)
        return self._pause(
            f"{message}; {self._given_up} questions in a row went unanswered: see that the endpoint works, {GO_ON}"
        )

    def _pause(self, message: str) -> TeacherPausedError:
        self._pauses.append(message)
        return TeacherPausedError(message)
