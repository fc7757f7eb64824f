"""An event loop in a thread of its own, so that work goes on while a trainer fetches the next batch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class BackgroundLoop:
    """Runs coroutines in one event loop that outlives the calls that hand them over.

    Args:
        slots: How many may be under way; `submit` waits while there are that many.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._free = threading.Semaphore(slots)
        self._under_way: set[Future[Any]] = set()
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        started = threading.Event()
        # A daemon: a process that is told to end does not wait for a teacher.
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), name="mulcot", daemon=True)
        self._thread.start()
        started.wait()

    def submit(self, work: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        """Starts `work()` in the loop, as soon as there is room for it.

        Raises:
            BaseException: The first error that an earlier coroutine raised; nothing is started any more.
        """
        self._take_slot()
        future = asyncio.run_coroutine_threadsafe(work(), self._loop)
        self._under_way.add(future)
        future.add_done_callback(self._done)
        return future

    def finish(self) -> None:
        """Waits until everything that was submitted has ended; to be called once.

        Raises:
            BaseException: The first error that a coroutine raised, at once.
        """
        for _ in range(self._slots):
            self._take_slot()

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Cancels what is still under way, runs `last()` and ends the thread.

        Raises:
            BaseException: What `last()` raises.
        """
        for future in list(self._under_way):
            future.cancel()
        try:
            asyncio.run_coroutine_threadsafe(last(), self._loop).result()
        finally:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    async def _serve(self, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        started.set()
        await self._stop.wait()

    def _take_slot(self) -> None:
        self._free.acquire()
        if self._error is not None:
            self._free.release()
            raise self._error

    def _done(self, future: Future[Any]) -> None:
        self._under_way.discard(future)
        if not future.cancelled() and self._error is None:
            self._error = future.exception()
        self._free.release()
