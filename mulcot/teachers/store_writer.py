"""Writing to the label store from an event loop: many writes share one forced commit, and the loop does not wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from mulcot.teachers.store import LabelStore

Write = Callable[[], None]
_MANY_NOTES: Final = 500


class GroupCommit:
    """Writes in a thread of its own; while one commit waits for the disk, further writes gather for the next.

    A disk that takes 5 ms for a commit would otherwise allow 100 requests a second, each with two commits. All methods
    are for the event loop's thread. While it is open, nobody else may write to the store.

    Args:
        store: what is written to.
    """

    def __init__(self, store: LabelStore) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mulcot-store")
        self._notes: list[Write] = []
        self._waiting: list[tuple[Write, asyncio.Future[None]]] = []
        self._flusher: asyncio.Task[None] | None = None
        self._error: Exception | None = None

    async def commit(self, write: Write) -> None:
        """Writes; it is on the disk when this returns, with all that was noted before.

        Raises:
            InputError: the store cannot be written; also for a note that was lost before.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Notes keep their place before what is written after them.
        self._waiting += [(note, done) for note in self._notes]
        self._notes = []
        self._waiting.append((write, done))
        self._start()
        await done

    def note(self, write: Write) -> None:
        """Writes with one of the next commits: for what follows from stored replies and can be found out again."""
        self._notes.append(write)
        if len(self._notes) >= _MANY_NOTES:
            self._start()

    async def close(self) -> None:
        """Writes what is left and ends the thread.

        Raises:
            InputError: the store cannot be written.
        """
        try:
            while self._flusher is not None or self._notes or self._waiting:
                self._start()
                if self._flusher is not None:
                    await asyncio.wait([self._flusher])
        finally:
            self._thread.shutdown(wait=True)
        if self._error is not None:
            raise self._error

    def _start(self) -> None:
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush())

    async def _flush(self) -> None:
        """Commits until there is nothing left."""
        loop = asyncio.get_running_loop()
        try:
            while self._waiting or self._notes:
                batch, notes = self._waiting, self._notes
                self._waiting, self._notes = [], []
                error: Exception | None = None
                try:
                    writes = [*(write for write, _ in batch), *notes]
                    await loop.run_in_executor(self._thread, self._store.write_all, writes)
                except Exception as raised:  # handed to whoever waits for these writes, else to `close`
                    error = raised
                    self._error = self._error or (None if batch else raised)
                for done in {done for _, done in batch}:
                    if done.done():  # whoever waited was cancelled; the write stands all the same
                        continue
                    if error is None:
                        done.set_result(None)
                    else:
                        done.set_exception(error)
        finally:
            self._flusher = None
