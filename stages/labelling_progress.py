"""How far labelling is, while dialogues end: a bar on a terminal, plain lines elsewhere, and `progress.json`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mulcot.files import write_atomic
from mulcot.teachers.limits import Budget

LINE_SECONDS: Final = 5.0
"""How often there is a line where there is no terminal."""
FILE_SECONDS: Final = 0.5


class LabellingProgress:
    """Counts posts as they are settled; may be told so from any thread.

    Args:
        file: `progress.json` of the stage; None for none.
        budget: what was spent so far.
        total: the posts there are; None where it is not known yet.
        console: where it is shown; None shows nothing.
        clock: the time in seconds.
    """

    def __init__(
        self,
        file: Path | None,
        budget: Budget,
        total: int | None,
        console: Console | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = file
        self._budget = budget
        self._total = total
        self._console = console
        self._clock = clock
        self._lock = Lock()
        self._began = clock()
        self._requests_before = budget.requests
        self._last_line = self._began
        self._last_file = self._began - FILE_SECONDS
        self._posts = self._rationales = self._accepted = 0
        self._bar: tuple[Progress, TaskID] | None = None
        if console is not None and console.is_terminal:
            columns = (
                TextColumn("labelling"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("posts, {task.fields[state]}", markup=False),
                TimeRemainingColumn(compact=True),
            )
            progress = Progress(*columns, console=console, transient=True)
            self._bar = (progress, progress.add_task("posts", total=total, state="starting"))
            progress.start()

    def settled(self, accepted: int, rationales: int) -> None:
        """One more post is done, with so many of its rationales accepted."""
        with self._lock:
            self._posts += 1
            self._accepted += accepted
            self._rationales += rationales
            now = self._clock()
            if now - self._last_file >= FILE_SECONDS:
                self._last_file = now
                self._write()
            if self._bar is not None:
                self._bar[0].update(self._bar[1], completed=self._posts, total=self._total, state=self._state(now))
            elif self._console is not None and now - self._last_line >= LINE_SECONDS:
                self._last_line = now
                self._say(now)

    def expect(self, total: int) -> None:
        """There are so many posts."""
        with self._lock:
            self._total = total

    def close(self) -> None:
        """Shows the last state and leaves the terminal as it was."""
        with self._lock:
            self._write()
            if self._bar is not None:
                self._bar[0].stop()
            elif self._console is not None and self._posts:
                self._say(self._clock())
            self._console = self._bar = None

    def _state(self, now: float) -> str:
        """Acceptance, rate and spend in words."""
        accepted = f"{self._accepted / self._rationales:.0%} accepted" if self._rationales else "none accepted"
        seconds = max(now - self._began, 1e-9)
        requests = self._budget.requests - self._requests_before
        rate = f"{self._posts / seconds:.1f} posts/s, {requests / seconds:.1f} requests/s"
        money = f", ${self._budget.usd:,.2f}" if self._budget.prices is not None else ""
        return f"{accepted}, {rate}{money}"

    def _say(self, now: float) -> None:
        assert self._console is not None
        of = "" if self._total is None else f"/{self._total:,}"
        left = ""
        if self._total is not None and 0 < self._posts < self._total:
            seconds = (self._total - self._posts) * (now - self._began) / self._posts
            left = f", {_duration(seconds)} left"
        line = f"labelled {self._posts:,}{of} posts, {self._state(now)}{left}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _write(self) -> None:
        if self._file is None:
            return
        accepted = f"{self._accepted / self._rationales:.0%}" if self._rationales else "0%"
        money = f", ${self._budget.usd:,.2f}" if self._budget.prices is not None else ""
        # The chain's display shows the unit behind the counts, and with it what else there is to know.
        unit = f"posts, {accepted} accepted{money}"
        total = self._total if self._total is not None else self._posts
        values = {"phase": "label", "done": self._posts, "total": total, "unit": unit}
        write_atomic(self._file, json.dumps(values))


def stderr_console() -> Console:
    """Where progress is shown."""
    return Console(file=sys.stderr)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
