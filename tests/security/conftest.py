"""How hostile input is given: in a process of its own whose memory is measured, with a mark that must not appear."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import mulcot.export
import mulcot.infer
import mulcot.lightning_cli  # noqa: F401 (loaded before anything is measured)
from mulcot.cli import main
from mulcot.models import Lora, load_model, load_processor

SECONDS = 60
"""After so long a case counts as one that hangs."""


@dataclass(frozen=True)
class Outcome:
    """What became of a call."""

    code: int
    """The exit code; 0 for a function that returned."""
    errors: list[str]
    """Lines on standard error that begin as an error of mulcot, or the unexpected exception."""
    peak_mb: int
    """By how much the peak of the resident memory rose, in MiB."""


def measured(call: Callable[[], int]) -> Outcome:
    """Runs a call in a fork, which shares what is imported and whose memory is its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        # The peak of this process begins anew: that of its parent is none of its own.
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        before = _peak()
        shown = io.StringIO()
        try:
            with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(io.StringIO()):
                code = call()
            errors = [line for line in shown.getvalue().splitlines() if line.startswith("mulcot: error: ")]
        except BaseException as error:  # handed to the parent, whose test it fails
            code, errors = 99, [f"{type(error).__name__}: {error}"]
        with os.fdopen(writing, "w") as file:
            json.dump([code, errors, (_peak() - before) >> 20], file)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        content = file.read()
    _, status = os.waitpid(child, 0)
    assert content, f"the process died or hung: status {status}"
    return Outcome(*json.loads(content))


def _peak() -> int:
    """Bytes of the highest resident memory of this process."""
    with contextlib.suppress(OSError, StopIteration):
        with open("/proc/self/status") as file:
            line = next(line for line in file if line.startswith("VmHWM:"))
        return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@dataclass(frozen=True)
class Refused:
    """Runs a verb on hostile input and insists that it is refused by name, at once, and without a trace."""

    folder: Path
    """Watched: no file may appear in it."""

    def __call__(self, *args: object, name: str, limit_mb: int = 100, code: int = 1) -> str:
        """The error, of one line.

        Args:
            args: the command line.
            name: what the error must name.
            limit_mb: how much memory it may take beyond what the process has.
            code: the exit code.
        """
        before = self._files()
        outcome = measured(lambda: main([str(arg) for arg in args]))
        assert (outcome.code, len(outcome.errors)) == (code, 1), outcome
        assert name in outcome.errors[0], outcome
        assert outcome.peak_mb < limit_mb, outcome
        assert self._files() == before
        return outcome.errors[0]

    def _files(self) -> set[Path]:
        """All but folders: a verb may make the one that it was told to write to."""
        return {path for path in self.folder.rglob("*") if path.is_symlink() or not path.is_dir()}


@pytest.fixture(scope="session")
def warm(embedded: Path) -> None:
    """Everything imported that reads a model, so that no case is charged for it."""
    model = str(embedded / "models" / "student")
    load_processor(model)
    load_model(model, lora=Lora(r=1))


@pytest.fixture(name="measured")
def measured_fixture() -> Callable[[Callable[[], int]], Outcome]:
    return measured


@pytest.fixture
def refused(tmp_path: Path, warm: None) -> Refused:
    return Refused(tmp_path)


class Bomb:
    """Unpickled with code execution, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


@pytest.fixture
def bomb(tmp_path: Path) -> Bomb:
    return Bomb(tmp_path / "ran")
