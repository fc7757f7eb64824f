"""Signals that end a stage: the fit saves its last step first, and the exit code says what happened."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Final

_LOG: Final = logging.getLogger(__name__)
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C; what a scheduler or `kill` sends; what SLURM sends before a job's time is over (`--signal=USR1@120`)."""
_ONE_KEYSTROKE: Final = 0.3
"""Seconds in which a second SIGINT is the first one again: a terminal and a launcher may both hand it on."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the run.

    Args:
        number: of the signal.
        said: what became of the work, for the user.
    """

    def __init__(self, number: int, said: str = "the same command goes on") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; {said}")
        self.number = number

    @property
    def code(self) -> int:
        """The exit code."""
        return exit_code(self.number)


def exit_code(number: int) -> int:
    """The exit code after a signal: 0 after SIGUSR1, where the scheduler starts the job again, else 128 + n.

    Args:
        number: of the signal.
    """
    return 0 if number == signal.SIGUSR1 else 128 + number


class Interruptions:
    """Takes the signals: notes them while `held`, else ends what runs; a second Ctrl-C ends the process at once.

    A context manager, which puts the handlers back that were there. Outside of the main thread it does nothing.
    """

    def __init__(self) -> None:
        self.received = 0
        """The signal that arrived first, 0 for none."""
        self.held = False
        """Whether whoever asks for `received` saves before it ends."""
        self.requeues = True
        """Whether SLURM is asked to start the job again after SIGUSR1."""
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruptions:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in SIGNALS}
            self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.held = False
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def install(self) -> None:
        """Takes the signals (again): Lightning puts handlers of its own there when it starts."""
        for number, before in self._before.items():
            if before is not signal.SIG_IGN:  # what is ignored stays ignored, as under nohup
                signal.signal(number, self._take)

    def _take(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self._since = number, now
            if not self.held:
                raise Interrupted(number)
        elif number == signal.SIGINT and now - self._since > _ONE_KEYSTROKE:
            os._exit(exit_code(number))


def requeue() -> None:
    """Has SLURM start this job again, from its first process; outside of a batch job of SLURM nothing happens."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    by_hand = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if not re.fullmatch(r"[0-9_]+", job) or by_hand or os.environ.get("SLURM_PROCID", "0") != "0":
        return
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        _LOG.warning("SLURM was not asked to start job %s again: %s", job, error)
        return
    if done.returncode:
        _LOG.warning("SLURM did not put job %s back into its queue: %s", job, done.stderr.strip())
