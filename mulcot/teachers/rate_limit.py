"""How fast an endpoint may be asked, found out from its refusals: a token bucket that adapts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

_FIRST_RATE: Final = 16.0
_FIRST_DOUBLING: Final = 0.5
"""Requests per second at the start, and the seconds in which that doubles until there is a refusal: a limit that is far
lower than what could be sent is met by a few requests too many, not by all that may be under way at once."""
_BACK_OFF: Final = 0.9
"""Where probing begins again: at this share of the limit that was measured last."""
_QUICK_BACK_OFF: Final = 0.8
"""The limit is lowered to this share of itself when it proves too high before it could be measured again."""
_PLATEAU_SECONDS: Final = 20.0
_PLATEAU_REQUESTS: Final = 60
"""How long the way back up to the measured limit takes: the longer of these seconds and of these requests."""
_SURE_REQUESTS: Final = 8
_SURE_SECONDS: Final = 1.0
"""A limit measured over less is a guess, from which the rate doubles instead of creeping."""
_TRUST: Final = 1.5
"""A limit is no more than so many times what the server let through on average."""
_ONCE_SECONDS: Final = 0.1
"""Refusals so shortly after the rate was lowered do not lower it again."""
_TOLERATED: Final = 100
"""One refusal in more requests than these lowers no limit: going slower would cost more than the refusal did."""
_SLACK_SECONDS: Final = 0.05
"""How far the bucket fills: what a late timer missed is made up for, and an idle time is not."""


@dataclass(slots=True)
class _Epoch:
    """The time since a refusal that lowered the rate. The server's own bucket was empty at both ends of it."""

    start: float
    """When that refusal came, or when the first request was sent."""
    grows_from: float
    """When the rate begins to rise: after the wait that the server asked for."""
    limit: float | None = None
    """Requests per second that the server let through before; None before any refusal."""
    is_sure: bool = False
    """Whether `limit` was measured well enough to stay near it."""
    doubling: float = _FIRST_DOUBLING
    """Seconds in which the rate doubles where the limit is a guess."""
    sent: int = 0
    """Requests sent since `start`, without those known to be refused."""
    last_rate: float = 0.0
    """The rate at its end."""

    def rate(self, now: float) -> float:
        """Requests per second: rising from below the limit, level near it, then faster and faster past it."""
        elapsed = max(0.0, now - self.grows_from)
        if self.limit is None or not self.is_sure:
            first = _FIRST_RATE if self.limit is None else _BACK_OFF * self.limit
            return first * 2.0 ** min(elapsed / self.doubling, 64.0)
        plateau = max(_PLATEAU_SECONDS, _PLATEAU_REQUESTS / self.limit)
        return self.limit * (1.0 + (1.0 - _BACK_OFF) * (elapsed / plateau - 1.0) ** 3)


class RateLimit:
    """Gives out turns to send a request, in the order of asking.

    Until the first refusal (429) the rate rises without bound. Each refusal then measures the limit, by what was let
    through since the one before; the rate goes back to 0.9 of it and feels its way up along a cubic curve, so that most
    of the time is spent close to the limit. Requests that were under way when the rate was lowered count once. For one
    event loop.

    Args:
        concurrency: How many requests may be under way at once.
        clock: The time in seconds; monotonic.
        sleep: Waits for a number of seconds by that clock.
    """

    def __init__(
        self,
        concurrency: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._slots = asyncio.Semaphore(concurrency)
        self._queue = asyncio.Lock()
        self._not_before = self._last = float("-inf")
        self._epoch: _Epoch | None = None
        self._before: _Epoch | None = None

    @property
    def rate(self) -> float:
        """The requests per second that are sent at most right now."""
        return _FIRST_RATE if self._epoch is None else self._epoch.rate(self._clock())

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[float]:
        """Waits until a request may be sent, holds its place while it is under way, and gives the time of sending."""
        async with self._slots:
            async with self._queue:
                # Looked at again after each sleep: a refusal may have come meanwhile.
                while (wait := self._due() - self._clock()) > 0:
                    await self._sleep(wait)
                now = self._clock()
                self._last = max(self._due(), now - _SLACK_SECONDS)
                if self._epoch is None:
                    self._epoch = _Epoch(now, now)
                self._epoch.sent += 1
            yield now

    def pause(self, seconds: float) -> None:
        """Sends nothing for so long: the server asked for it."""
        self._not_before = max(self._not_before, self._clock() + seconds)

    def refused(self, sent_at: float) -> None:
        """Learns from a 429; what its Retry-After says goes to `pause` before.

        Args:
            sent_at: What `turn` gave to the request.
        """
        epoch, now = self._epoch, self._clock()
        assert epoch is not None, "nothing is refused before it was sent"
        if sent_at < epoch.start:
            self._correct(sent_at)
            return
        epoch.sent -= 1
        if epoch.limit is not None and now < epoch.start + _ONCE_SECONDS:
            return
        epoch.last_rate = epoch.rate(now)
        self._before = epoch
        self._epoch = _Epoch(now, max(now, self._not_before))
        self._measure()

    def _correct(self, sent_at: float) -> None:
        """A request that was still under way at the last measurement was no request that the server let through."""
        if self._before is not None and sent_at >= self._before.start:
            self._before.sent -= 1
            self._measure()

    def _measure(self) -> None:
        before, epoch = self._before, self._epoch
        assert before is not None
        assert epoch is not None
        lasted = epoch.start - before.start
        mean = max(before.sent, 1) / max(lasted, _SURE_SECONDS)
        is_long = before.limit is not None and lasted >= _SURE_SECONDS and before.sent >= _SURE_REQUESTS
        has_risen = (
            is_long and before.is_sure and before.last_rate > _TRUST * mean
        )  # far past an old limit, which has gone up
        if before.limit is not None and is_long and not has_risen:
            # A server that saves up what is not used grants the mean, one that does not the last rate.
            epoch.limit, epoch.is_sure = min((mean + 2 * before.last_rate) / 3, _TRUST * mean), True
            if before.sent >= _TOLERATED:
                epoch.limit = max(epoch.limit, before.limit)
        elif before.limit is not None and before.is_sure and not has_risen:
            epoch.limit, epoch.is_sure = _QUICK_BACK_OFF * before.limit, True
        else:
            # Next to nothing is known: the rate is halved, and doubles again.
            epoch.limit, epoch.is_sure = max(mean, before.last_rate / 2), False
            epoch.doubling = max(2.0, 2 * _SURE_REQUESTS / epoch.limit)

    def _due(self) -> float:
        return max(self._not_before, self._last + 1.0 / self.rate)
