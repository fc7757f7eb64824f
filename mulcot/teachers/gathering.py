"""One thread that answers questions in batches, for work that would hold up an event loop: running a model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")

Work = Callable[[Sequence[Q], Callable[[], bool]], Sequence[A | Exception]]
"""Answers a batch: an answer or an error for each question. It may give up once what it is given says True, which means
that nobody waits for any of the answers any more."""


class Gatherer(Generic[Q, A]):
    """Gathers questions from any thread into batches, which a thread of its own answers one after the other.

    A batch is begun when it is full, or when its first question has waited long enough; what comes while the thread
    is busy is the next batch. The thread starts with the first question, and again with one after `close`.

    Args:
        work: Answers a batch, in that thread.
        size: The most questions of a batch.
        wait_seconds: How long a question waits at most for others to join it, while the thread is idle.
    """

    def __init__(self, work: Work[Q, A], size: int, wait_seconds: float) -> None:
        self._work = work
        self._size = size
        self._wait_seconds = wait_seconds
        self._queue: SimpleQueue[tuple[Q, Future[A]] | None] = SimpleQueue()
        self._open: set[Future[A]] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def ask(self, question: Q) -> Future[A]:
        """Hands a question over; a cancelled future is not answered if its batch has not begun."""
        future: Future[A] = Future()
        with self._lock:
            self._open.add(future)
            future.add_done_callback(self._open.discard)
            self._queue.put((question, future))
            if self._thread is None:
                # A daemon: a process that is told to end does not wait for a model.
                self._thread = threading.Thread(target=self._run, name="mulcot-model", daemon=True)
                self._thread.start()
        return future

    def close(self) -> None:
        """Cancels what was not answered yet and waits for the thread to end."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is None:
                return
            for future in list(self._open):
                future.cancel()
            self._queue.put(None)
            thread.join()

    def _run(self) -> None:
        while batch := self._next_batch():
            self._answer(batch)

    def _next_batch(self) -> list[tuple[Q, Future[A]]]:
        """The next batch; an empty one ends the thread."""
        batch: list[tuple[Q, Future[A]]] = []
        until = 0.0
        while len(batch) < self._size:
            try:
                item = self._queue.get(timeout=max(0.0, until - time.monotonic()) if batch else None)
            except Empty:
                break
            if item is None:
                return []  # closed: whatever was gathered so far is cancelled
            if not batch:
                until = time.monotonic() + self._wait_seconds
            batch = [gathered for gathered in (*batch, item) if not gathered[1].cancelled()]
        return batch

    def _answer(self, batch: Sequence[tuple[Q, Future[A]]]) -> None:
        questions, futures = zip(*batch, strict=True)
        answers: Sequence[A | Exception]
        try:
            answers = self._work(questions, lambda: all(future.cancelled() for future in futures))
            if len(answers) != len(futures):
                raise RuntimeError(f"{len(answers)} answers to {len(futures)} questions")
        except Exception as error:  # belongs to those who wait for an answer; the thread goes on
            answers = [error] * len(futures)
        for future, answer in zip(futures, answers, strict=True):
            # From here on it can no longer be cancelled, so that nothing comes between this and the answer.
            if not future.set_running_or_notify_cancel():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
