"""Questions gathered into batches that one thread answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError

import pytest

from mulcot.teachers.gathering import Gatherer

PATIENCE = 60.0
"""Seconds after which a test gives up; nothing here takes a hundredth of it."""


class Doubler:
    """Doubles numbers, keeps the batches, and can be held up before each of them."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.go_on.set()
        self.gave_up = threading.Event()

    def __call__(self, questions: Sequence[int], nobody_waits: Callable[[], bool]) -> list[int | Exception]:
        self.batches.append(list(questions))
        self.begun.release()
        while not self.go_on.wait(0.005):
            if nobody_waits():
                self.gave_up.set()
                break
        if 13 in questions:
            raise ValueError("unlucky")
        return [KeyError(number) if number < 0 else 2 * number for number in questions]

    def hold(self) -> None:
        self.go_on.clear()

    def wait_for_batch(self) -> None:
        assert self.begun.acquire(timeout=PATIENCE)


@pytest.fixture
def work() -> Doubler:
    return Doubler()


@pytest.fixture
def make(work: Doubler) -> Iterator[Callable[..., Gatherer[int, int]]]:
    made = []

    def make(size: int, wait_seconds: float = 3600.0) -> Gatherer[int, int]:
        made.append(Gatherer(work, size, wait_seconds))
        return made[-1]

    yield make
    for gatherer in made:
        gatherer.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "mulcot-model"]


def test_a_full_batch_does_not_wait(work: Doubler, make: Callable[..., Gatherer[int, int]]) -> None:
    gatherer = make(3)
    assert [future.result(PATIENCE) for future in [gatherer.ask(number) for number in (1, 2, 3)]] == [2, 4, 6]
    assert work.batches == [[1, 2, 3]]


def test_a_batch_that_stays_small_is_begun_after_the_wait(
    work: Doubler, make: Callable[..., Gatherer[int, int]]
) -> None:
    assert make(3, wait_seconds=0.01).ask(1).result(PATIENCE) == 2
    assert make(3, wait_seconds=0.0).ask(4).result(PATIENCE) == 8
    assert work.batches == [[1], [4]]


def test_what_comes_while_it_is_busy_is_the_next_batch(work: Doubler, make: Callable[..., Gatherer[int, int]]) -> None:
    gatherer = make(2, wait_seconds=0.0)
    work.hold()
    first = gatherer.ask(1)
    work.wait_for_batch()
    later = [gatherer.ask(number) for number in (2, 3, 4)]
    work.go_on.set()
    assert [future.result(PATIENCE) for future in [first, *later]] == [2, 4, 6, 8]
    assert work.batches == [[1], [2, 3], [4]]


def test_a_cancelled_question_is_not_asked(work: Doubler, make: Callable[..., Gatherer[int, int]]) -> None:
    gatherer = make(2)
    cancelled = gatherer.ask(1)
    assert cancelled.cancel()
    assert [future.result(PATIENCE) for future in [gatherer.ask(2), gatherer.ask(3)]] == [4, 6]
    assert work.batches == [[2, 3]]


def test_work_learns_that_nobody_waits_only_when_all_are_gone(
    work: Doubler, make: Callable[..., Gatherer[int, int]]
) -> None:
    gatherer = make(2)
    work.hold()
    first, second = gatherer.ask(1), gatherer.ask(2)
    work.wait_for_batch()
    assert first.cancel()
    assert not work.gave_up.wait(0.05), "somebody still waits"
    assert second.cancel()
    assert work.gave_up.wait(PATIENCE)


def test_an_error_goes_to_whom_it_concerns_and_the_thread_goes_on(
    work: Doubler, make: Callable[..., Gatherer[int, int]]
) -> None:
    gatherer = make(2)
    good, bad = gatherer.ask(1), gatherer.ask(-1)
    assert good.result(PATIENCE) == 2
    assert isinstance(bad.exception(PATIENCE), KeyError)
    whole = [gatherer.ask(13), gatherer.ask(2)]
    assert [str(future.exception(PATIENCE)) for future in whole] == ["unlucky"] * 2
    assert [future.result(PATIENCE) for future in [gatherer.ask(5), gatherer.ask(6)]] == [10, 12]


def test_a_wrong_number_of_answers_is_an_error() -> None:
    gatherer: Gatherer[int, int] = Gatherer(lambda questions, nobody_waits: [1], 2, 3600.0)
    futures = [gatherer.ask(1), gatherer.ask(2)]
    assert [str(future.exception(PATIENCE)) for future in futures] == ["1 answers to 2 questions"] * 2
    gatherer.close()


def test_close_cancels_what_waits_and_a_later_question_starts_anew(
    work: Doubler, make: Callable[..., Gatherer[int, int]]
) -> None:
    gatherer = make(2, wait_seconds=0.0)
    work.hold()
    futures = [gatherer.ask(1)]
    work.wait_for_batch()
    futures += [gatherer.ask(2), gatherer.ask(3)]
    gatherer.close()
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(0)
    assert work.batches == [[1]]
    work.go_on.set()
    assert gatherer.ask(7).result(PATIENCE) == 14
    gatherer.close()
    gatherer.close()
