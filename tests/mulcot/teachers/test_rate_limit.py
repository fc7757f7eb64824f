"""The adaptive rate, in simulated time against simulated servers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from mulcot.teachers.rate_limit import RateLimit


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only while everything waits, and then at once."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        select = self._selector.select

        def skip(timeout: float | None = None) -> Any:
            events = select(0)
            if not events and timeout:
                self._now += timeout
            return events

        self._selector.select = skip

    def time(self) -> float:
        return self._now


def simulate(work: Coroutine[Any, Any, None]) -> None:
    loop = SimulatedLoop()
    try:
        loop.run_until_complete(work)
    finally:
        loop.close()


@dataclass
class Server:
    """Lets `rate` requests a second through, `burst` at once after a rest."""

    rate: float
    burst: float
    latency: float
    waits: bool = True
    served: int = 0
    refused_at: list[float] = field(default_factory=list)
    arrived: list[float] = field(default_factory=list)
    tokens: float = field(init=False)
    filled: float = 0.0

    def __post_init__(self) -> None:
        self.tokens = self.burst

    async def ask(self) -> float | None:
        """None for a reply, else the seconds to wait."""
        now = asyncio.get_running_loop().time()
        self.arrived.append(now)
        self.tokens = min(self.burst, self.tokens + (now - self.filled) * self.rate)
        self.filled = now
        if self.tokens < 1:
            self.refused_at.append(now)
            await asyncio.sleep(min(0.02, self.latency))
            return max(1.0, (1 - self.tokens) / self.rate) if self.waits else 0.0
        self.tokens -= 1
        self.served += 1
        await asyncio.sleep(self.latency)
        return None


def a_limit(concurrency: int = 64) -> RateLimit:
    return RateLimit(concurrency, clock=asyncio.get_running_loop().time)


async def use(server: Server, limit: RateLimit, seconds: float, workers: int = 64) -> None:
    """Many posts for so long, each asked about until there is a reply."""
    loop = asyncio.get_running_loop()
    draw = random.Random(0)

    async def work() -> None:
        while loop.time() < seconds:
            async with limit.turn() as sent_at:
                if loop.time() >= seconds:
                    return
                wait = await server.ask()
            if wait is not None:
                if wait:
                    limit.pause(wait)
                limit.refused(sent_at)
                await asyncio.sleep(draw.uniform(0, 0.5))

    await asyncio.gather(*[work() for _ in range(workers)])


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize(
    ("rate", "burst", "latency", "seconds"),
    [
        (8, 8, 0.002, 60),
        (8, 8, 0.2, 60),
        (8, 8, 3.0, 60),
        (8, 1, 0.05, 120),
        (8, 30, 0.05, 120),
        (100, 100, 0.3, 60),
        (0.5, 3, 2.0, 2400),
    ],
)
def test_most_of_a_limit_is_used_and_little_is_refused(
    rate: float, burst: float, latency: float, seconds: float, waits: bool
) -> None:
    server = Server(rate, burst, latency, waits)

    async def work() -> None:
        await use(server, a_limit(), seconds)

    simulate(work())
    share, refusals = server.served / (rate * seconds), len(server.refused_at) / len(server.arrived)
    assert share >= 0.85
    assert refusals <= 0.02


def test_without_refusals_the_rate_grows_out_of_the_way() -> None:
    server = Server(1e6, 1e6, 0.05)

    async def work() -> None:
        await use(server, a_limit(50), 10)

    simulate(work())
    assert server.served >= 50 / 0.05 * 6, "50 places and 0.05 s give 1000 a second; four of ten seconds may pass first"


def test_no_more_than_the_cap_is_under_way() -> None:
    under_way = most = 0

    async def hold(limit: RateLimit) -> None:
        nonlocal under_way, most
        async with limit.turn():
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(5)
            under_way -= 1

    async def work() -> None:
        limit = a_limit(7)
        await asyncio.gather(*[hold(limit) for _ in range(100)])

    simulate(work())
    assert most == 7


def test_nothing_is_sent_before_the_wait_is_over_not_even_what_waits_already() -> None:
    times: list[float] = []

    async def send(limit: RateLimit) -> None:
        async with limit.turn() as sent_at:
            times.append(sent_at)

    async def work() -> None:
        limit = a_limit()
        waiting = [asyncio.create_task(send(limit)) for _ in range(20)]
        while len(times) < 3:
            await asyncio.sleep(0.01)
        limit.pause(30.0)
        limit.pause(10.0)
        limit.refused(times[2])
        await asyncio.gather(*waiting)

    simulate(work())
    assert times[3] - times[2] >= 30.0
    assert times[3] - times[2] < 31.0
    assert times == sorted(times)


def test_a_rare_refusal_does_not_slow_down() -> None:
    """One refusal in 150 whatever the rate, as from a shared machine behind the endpoint."""
    sent = 0

    async def work() -> None:
        nonlocal sent
        limit, loop = a_limit(), asyncio.get_running_loop()

        async def ask() -> None:
            nonlocal sent
            while loop.time() < 60:
                async with limit.turn() as sent_at:
                    sent += 1
                    refused = sent % 150 == 0
                    await asyncio.sleep(0.2)
                if refused:
                    limit.refused(sent_at)

        await asyncio.gather(*[ask() for _ in range(64)])

    simulate(work())
    assert sent >= 60 * 64 / 0.2 / 4, "64 places and 0.2 s would give 320 a second"


def test_a_lower_limit_is_found_and_a_higher_one_too() -> None:
    server = Server(40, 40, 0.1)
    served: dict[int, int] = {}

    async def change() -> None:
        for number, (rate, seconds) in enumerate([(40, 60), (10, 60), (80, 120)]):
            server.rate = server.burst = rate
            await asyncio.sleep(seconds)
            before = server.served
            await asyncio.sleep(60)
            served[number] = server.served - before

    async def work() -> None:
        await asyncio.gather(change(), use(server, a_limit(), 420))

    simulate(work())
    assert served[0] >= 0.85 * 40 * 60
    assert served[1] >= 0.85 * 10 * 60
    assert served[2] >= 0.85 * 80 * 60
    assert len(server.refused_at) <= 0.02 * len(server.arrived)


def test_a_cancelled_request_gives_its_place_back() -> None:
    async def work() -> None:
        limit = a_limit(1)

        async def hold() -> None:
            async with limit.turn():
                await asyncio.sleep(1000)

        holding = asyncio.create_task(hold())
        waiting = asyncio.create_task(hold())
        await asyncio.sleep(1)
        waiting.cancel()
        holding.cancel()
        await asyncio.gather(holding, waiting, return_exceptions=True)
        async with asyncio.timeout(5), limit.turn():
            pass

    simulate(work())
