"""What a running chain shows: a live line for every running step on a terminal, plain lines elsewhere."""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

PROGRESS_NAME: Final = "progress.json"
TAIL_LINES: Final = 25
_TAIL_BYTES: Final = 64 * 1024


def clock(seconds: float) -> str:
    """A duration as `m:ss`, or `h:mm:ss` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def tail(log: Path) -> list[str]:
    """The last lines of a log, without the control characters that could rewrite the terminal."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return [
        "".join(letter for letter in line if letter.isprintable() or letter == "\t") for line in lines[-TAIL_LINES:]
    ]


class Display:
    """Says what becomes of the steps. Use it as a context manager around the run."""

    def __init__(self, console: Console) -> None:
        """Show on this console: live where it is a terminal, plain lines where it is not."""
        self._console = console
        self._bars: dict[str, TaskID] = {}
        self._phases: dict[str, str] = {}
        self._aside = 0  # how many steps have the terminal to themselves
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[amount]}", markup=False),
            _Rate(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=False),
            _Elapsed(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> "Display":
        """Begin to show."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was, the lines said so far above."""
        self._progress.stop()

    def say(self, line: str) -> None:
        """A line that stays: never wrapped, cut or taken for markup."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def started(self, name: str, why: str, *, terminal: bool) -> None:
        """A step is about to start; `why` says what made it necessary, `terminal` that its output goes there."""
        self._bars[name] = self._progress.add_task(name, total=None, amount="", begun=time.monotonic())
        if terminal:
            self._aside += 1
            self._progress.stop()
        if terminal or not self._console.is_terminal:
            self.say(f"{name}: started" if why == "never finished" else f"{name}: started ({why})")

    def ended(self, name: str, line: str, *, terminal: bool) -> None:
        """A step has ended, well or not, as `line` says."""
        self._progress.remove_task(self._bars.pop(name))
        self._progress.refresh()  # else the line below would be printed above the bar as it was
        self._phases.pop(name, None)
        self.say(f"{name}: {line}")
        if terminal:
            self._aside -= 1
            if self._aside == 0:
                self._progress.start()

    def look(self, name: str, folder: Path) -> None:
        """Bring a running step's line up to date with the `progress.json` that it writes."""
        found = _read_progress(folder / PROGRESS_NAME) if self._console.is_terminal else None
        if found is None:
            return
        phase, done, total, unit = found
        if self._phases.get(name) != phase:  # a rate over two phases would mean nothing
            self._phases[name] = phase
            self._progress.reset(self._bars[name], total=total)
        amount = f"{done:g}/{total:g} {unit}"
        self._progress.update(
            self._bars[name], description=f"{name} {phase}", completed=done, total=total, amount=amount
        )


class _Elapsed(ProgressColumn):
    """Time since the step started, over all its phases."""

    def render(self, task: Task) -> Text:
        return Text(clock(time.monotonic() - task.fields["begun"]), style="progress.elapsed")


class _Rate(ProgressColumn):
    """Units a second, or seconds a unit where they are slow."""

    def render(self, task: Task) -> Text:
        if not task.speed:
            return Text("")
        return Text(f"{task.speed:.1f}/s" if task.speed >= 1 else f"{1 / task.speed:.1f} s each")


def _read_progress(path: Path) -> tuple[str, float, float, str] | None:
    """Phase, done, total and unit; None when there is nothing to show yet, or the file is being written just now."""
    try:
        values = json.loads(path.read_bytes())
        return str(values["phase"]), float(values["done"]), float(values["total"]), str(values.get("unit", ""))
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None
