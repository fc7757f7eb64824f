"""Signals that end a stage: the fit saves its last step first, and the exit code says what happened."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Mapping
from types import FrameType, TracebackType
from typing import Any, Final

_LOG: Final = logging.getLogger(__name__)
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""Ctrl-C; what a scheduler or `kill` sends; what SLURM sends before a job's time is over (`--signal=USR1@120`); what a
terminal that goes away leaves."""
ONE_KEYSTROKE: Final = 0.3
"""Seconds in which a second SIGINT is the first one again: a terminal and a launcher may both hand it on."""

_RANKS: Final = ("SLURM_PROCID", "RANK", "NODE_RANK", "LOCAL_RANK")
"""Where srun, torchrun and Lightning's own launcher say which process this is."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the run.

    Args:
        number: of the signal.
        said: what became of the work, for the user.
    """

    def __init__(self, number: int, said: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; {said}")
        self.number = number

    @property
    def code(self) -> int:
        """The exit code."""
        return exit_code(self.number)


def same_command(options: Mapping[str, object]) -> str:
    """What goes on where a run ended, for the user: some options would begin anew once more.

    Args:
        options: the values of such options, by name.
    """
    given = [name for name, value in options.items() if value]
    return f"the same command without {' and '.join(given)}" if given else "the same command"


def exit_code(number: int) -> int:
    """The exit code after a signal: 0 after SIGUSR1, where the scheduler starts the job again, else 128 + n.

    Args:
        number: of the signal.
    """
    return 0 if number == signal.SIGUSR1 else 128 + number


class Interruptions:
    """Takes the signals: notes them while `held`, else ends what runs; a second Ctrl-C ends the process at once.

    A context manager, which puts the handlers back that were there, and asks SLURM to start the job again when SIGUSR1
    ended what ran in it. Outside of the main thread it takes no signals.
    """

    def __init__(self) -> None:
        self.received = 0
        """The signal that arrived first, 0 for none."""
        self.held = False
        """Whether whoever asks for `received` saves before it ends."""
        self.are_agreed = False
        """Whether all processes of the stage know of it, and leave together."""
        self.again = same_command({})
        """What goes on where this run was ended."""
        self.requeues = "MULCOT_CHAIN" not in os.environ
        """Whether SLURM is asked to start the job again after SIGUSR1; `mulcot run` does so for all its steps."""
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
        if isinstance(error, Interrupted) and error.number == signal.SIGUSR1 and self.requeues:
            requeue()

    def install(self) -> None:
        """Takes the signals (again): Lightning puts handlers of its own there when it starts."""
        for number, before in self._before.items():
            if before is not signal.SIG_IGN:  # what is ignored stays ignored, as under nohup
                signal.signal(number, self._take)

    def _take(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGHUP:
            leave_terminal()
        if not self.received:
            self.received, self._since = number, now
            if not self.held:
                raise Interrupted(number, f"{self.again} goes on")
        elif number == signal.SIGINT and now - self._since > ONE_KEYSTROKE:
            os._exit(exit_code(number))


def is_first_process(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process speaks for all of a stage, as far as its launcher says which it is.

    Args:
        environment: that of the process.
    """
    return all(environment.get(name, "0") == "0" for name in _RANKS)


def leave_terminal() -> None:
    """Lets what is still to be said go nowhere: to write to a terminal that is gone is an error, and ends a save."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        with contextlib.suppress(OSError):  # closed before
            if stat.S_ISCHR(os.fstat(number).st_mode):
                os.dup2(nowhere, number)
    os.close(nowhere)


def requeue() -> None:
    """Has SLURM start this job again, from its first process; outside of a batch job of SLURM nothing happens."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    by_hand = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if not re.fullmatch(r"[0-9_]+", job) or by_hand or not is_first_process():
        return
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        _LOG.warning("SLURM was not asked to start job %s again: %s", job, error)
        return
    if done.returncode:
        _LOG.warning("SLURM did not put job %s back into its queue: %s", job, done.stderr.strip())
