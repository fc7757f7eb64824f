"""Running the steps of a chain as processes: in order, several at once, ended together when the user interrupts."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Final

from mulcot.chain_display import PROGRESS_NAME, Display, clock, tail
from mulcot.chain_plan import Step
from mulcot.files import refuse_link, write_atomic
from mulcot.interruptions import ONE_KEYSTROKE, SIGNALS, exit_code, leave_terminal, requeue

LOG_NAME: Final = "log.txt"
KEY_NAME: Final = "command.key"
PATIENCE_SECONDS: Final = 300.0
"""How long an interrupted step may take to end by itself: a fit finishes an optimizer step and saves it."""
NICENESS: Final = 10
_POLL_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to become of a step."""

    why: str | None
    """Why it runs, in one phrase; None when it is finished and is skipped."""
    fresh: bool = False
    """Whether its folder holds a finished run or another configuration's leftovers, so that it starts anew."""
    key: str = ""
    """The key of its command."""


@dataclass(frozen=True, slots=True)
class Steering:
    """What a `Runner` asks of the chain: it knows processes, not manifests."""

    decide: Callable[[Step], Decision]
    """Asked about a step when everything before it has ended, so that the answer regards those results."""
    command: Callable[[Step, Decision], Sequence[str]]
    """The program and arguments of a step's process."""
    check: Callable[[Step], str | None]
    """Asked about a step that ended well: why the next run would not find it finished, None when it would."""


class Runner:
    """Runs steps as processes."""

    def __init__(self, steering: Steering, display: Display, *, jobs: int, threads: int, lock: int, again: str) -> None:
        """Get ready.

        Args:
            steering: What it asks of the chain.
            display: Where it says what happens.
            jobs: How many steps run at the same time.
            threads: How many threads each of them uses.
            lock: A file descriptor that the processes inherit, so that a lock on it lives as long as any of them.
            again: What goes on where a signal ended it, for the user.
        """
        self._steering, self._display, self._jobs, self._lock = steering, display, jobs, lock
        self._again = again
        self._environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "MULCOT_CHAIN": "1",
        }
        self._running: list[_Process] = []
        self._failed: list[tuple[Step, int]] = []
        self._stopping = False
        self._awaited: set[str] = set()

    def run(self, steps: Sequence[Step]) -> int:
        """Run these steps, each after those of its `after` that are among them.

        When one fails, the running ones are let finish and no other starts.

        Returns:
            0, the exit code of the step that failed first, or 128 + n after signal n; 0 after SIGUSR1, after which
            the same job is to run again.
        """
        waiting = list(steps)
        self._awaited = {name for step in steps if not step.always for name in step.after}
        with _caught_signals() as caught, self._display:
            try:
                while (waiting and not self._failed) or self._running:
                    self._reap()
                    if caught:
                        self._stop(caught)
                        self._display.say(f"interrupted: finished steps are kept, {self._again} goes on from here")
                        break
                    if not self._failed:
                        self._start_ready(waiting, caught)
                    if self._running:
                        time.sleep(_POLL_SECONDS)
            except BaseException:  # an error of our own, such as a full disk, leaves no process behind
                self._stop([signal.SIGTERM])
                raise
        if caught:
            if caught[0] == signal.SIGUSR1:
                requeue()
            return exit_code(caught[0])
        for step, _ in self._failed:
            self._explain(step)
        return self._failed[0][1] if self._failed else 0

    def _start_ready(self, waiting: list[Step], caught: list[int]) -> None:
        """Start, or skip, every step that can and for which there is room, unless a signal comes in between."""
        while len(self._running) < self._jobs and not caught:
            pending = {step.name for step in waiting} | {process.step.name for process in self._running}
            ready = next((step for step in waiting if not pending.intersection(step.after)), None)
            if ready is None:
                return
            decision = self._steering.decide(ready)
            waiting.remove(ready)
            if decision.why is None:
                self._display.say(f"{ready.name}: finished before, skipped")
            else:
                self._start(ready, decision)

    def _start(self, step: Step, decision: Decision) -> None:
        step.folder.mkdir(parents=True, exist_ok=True)
        (step.folder / PROGRESS_NAME).unlink(missing_ok=True)  # of an earlier run
        write_atomic(step.folder / KEY_NAME, decision.key + "\n")
        self._display.started(step.name, decision.why or "", terminal=step.inherit)
        mode = "wb" if decision.fresh else "ab"  # a resumed step goes on with its log
        with nullcontext() if step.inherit else refuse_link(step.folder / LOG_NAME).open(mode) as log:
            popen = subprocess.Popen(
                list(self._steering.command(step, decision)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=None if log is None else subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,  # the terminal's Ctrl-C reaches us alone, and the whole group can be ended
                pass_fds=(self._lock,),
            )
        if step.name not in self._awaited:
            # What nothing waits for gives way to what holds the rest up, as soon as there are more steps than cores.
            with suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, popen.pid, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
        self._running.append(_Process(step, decision, popen, time.monotonic()))

    def _reap(self) -> None:
        for process in list(self._running):
            self._display.look(process.step.name, process.step.folder)
            code = process.ended()
            if code is not None:
                self._running.remove(process)
                self._ended(process, code)

    def _ended(self, process: "_Process", code: int) -> None:
        step, took = process.step, clock(time.monotonic() - process.began)
        if not (step.folder / KEY_NAME).exists():  # a fresh start may have emptied the folder
            write_atomic(step.folder / KEY_NAME, process.decision.key + "\n")
        note = self._steering.check(step) if code == 0 else None
        if self._stopping and (code or note):  # after SIGUSR1 a step leaves with 0
            line = f"interrupted after {took}"
        elif code == 0:
            line = f"finished in {took}" + (f", but {note}" if note else "")
        else:
            line = f"failed with exit code {code} after {took}"
            self._failed.append((step, code))
        self._display.ended(step.name, line, terminal=step.inherit)

    def _stop(self, caught: list[int]) -> None:
        """Hand the signal on, wait, and kill what is still there when patience or the user's (Ctrl-C again) ends."""
        self._stopping = True
        deadline = time.monotonic() + PATIENCE_SECONDS
        for process in self._running:
            process.signal(caught[0])
        while self._running:
            if signal.SIGINT in caught[1:] or time.monotonic() > deadline:
                for process in self._running:
                    process.signal(signal.SIGKILL)
            time.sleep(_POLL_SECONDS)
            self._reap()

    def _explain(self, step: Step) -> None:
        if step.inherit:
            return
        log = step.folder / LOG_NAME
        self._display.say(f"The end of {log}:")
        for line in tail(log):
            self._display.say(f"  {line}")


@dataclass(frozen=True, slots=True)
class _Process:
    """A running step, the leader of its process group."""

    step: Step
    decision: Decision
    popen: subprocess.Popen[bytes]
    began: float

    def signal(self, number: int) -> None:
        """Send a signal to the step and to all that it started."""
        with suppress(ProcessLookupError):  # it has just ended
            os.killpg(self.popen.pid, number)

    def ended(self) -> int | None:
        """The exit code, 128 + n after signal n; None while it runs."""
        state = os.waitid(os.P_PID, self.popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if state is None:
            return None
        if (state.si_code, state.si_status) != (os.CLD_EXITED, 0):
            # Its workers may have survived it. While it is not waited for, the group's number cannot be another's.
            self.signal(signal.SIGKILL)
        code = self.popen.wait()
        return code if code >= 0 else 128 - code


@contextmanager
def _caught_signals() -> Iterator[list[int]]:
    """The signals that arrived so far, while they do nothing else; afterwards they do what they did before."""
    caught: list[int] = []
    first = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if number == signal.SIGHUP:
            leave_terminal()
        if caught and number == signal.SIGINT and now - first < ONE_KEYSTROKE:
            return  # the terminal's Ctrl-C, handed on once more by what started us
        first = first if caught else now
        caught.append(number)

    # What is ignored stays ignored: `nohup mulcot run` outlives its terminal.
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
