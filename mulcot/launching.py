"""The processes of a stage: how many were started, whether for the first time, and that none is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

from lightning import Trainer
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch.distributed import DistError, PrefixStore, TCPStore

from mulcot.interruptions import SIGNALS, Interruptions, exit_code
from mulcot.types import InputError

_STARTED: Final = {"torchrun": "WORLD_SIZE", "srun": "SLURM_STEP_NUM_TASKS"}
"""By whom, and the environment variable that says how many processes were started."""
_SHARED_STORE: Final = "TORCHELASTIC_USE_AGENT_STORE"
_GONE: Final = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "ncclRemoteError",
    "remote process exit",
)
"""What gloo, NCCL and torch's store say of a process that has ended."""
_LEAVING_SECONDS: Final = 30.0
"""How long processes that leave together may take, to write their logs and give their devices back."""
_TELLING_SECONDS: Final = 5.0
"""How long the other processes have to tell of their own mistakes."""
_LOOK_SECONDS: Final = 0.5
"""How often this process looks at those that it started."""


class StageLauncher(_SubprocessScriptLauncher):
    """Starts the other processes of a stage on this machine, and lets all of them leave in their own time.

    Lightning's own launcher kills the others as soon as a signal ends this process, and this process as soon as it
    notices that another one left with a code that is not 0, as all do after SIGTERM: the exit code and what was still
    to be written were a matter of luck.

    Args:
        cluster_environment: as in the base class.
        num_processes: as in the base class.
        num_nodes: as in the base class.
        interruptions: tells whether the processes leave together.
    """

    def __init__(
        self,
        cluster_environment: ClusterEnvironment,
        num_processes: int,
        num_nodes: int,
        interruptions: Interruptions,
    ) -> None:
        super().__init__(cluster_environment, num_processes, num_nodes)
        self._interruptions = interruptions
        self._others: list[subprocess.Popen[bytes]] = []
        self._is_leaving = threading.Event()

    def _call_children_scripts(self) -> None:
        """As in the base class, whose own watch, which begins after this, is left with nothing to look at."""
        super()._call_children_scripts()
        self._others, self.procs = self.procs, []
        threading.Thread(target=self._watch, daemon=True, name="other-processes").start()

    def kill(self, signum: int) -> None:
        """Lets the others leave, and kills those that do not.

        Args:
            signum: SIGKILL, which Lightning wants to send them at once when a signal has ended this process.
        """
        self._interruptions.install()  # Lightning lets nothing end this process now; a second Ctrl-C still may
        self.hand_on()
        self.end_others(_LEAVING_SECONDS if self._interruptions.are_agreed else _TELLING_SECONDS)

    def hand_on(self) -> None:
        """Tells the others of a signal that this process alone may have got; those that know of one heed no other."""
        if not self._interruptions.are_agreed and not self._is_leaving.is_set():
            self._is_leaving.set()
            for process in self._others:
                process.terminate()

    def end_others(self, seconds: float = _TELLING_SECONDS) -> None:
        """Ends the processes that this one started, when it cannot go on: they would wait for it.

        Args:
            seconds: how long they have to leave by themselves.
        """
        for process in self.wait_for_others(seconds):
            process.kill()

    def wait_for_others(self, seconds: float) -> list[subprocess.Popen[bytes]]:
        """Lets the others leave by themselves, as this process is about to do.

        Args:
            seconds: for how long.

        Returns:
            Those that are still there.
        """
        self._is_leaving.set()
        deadline = time.monotonic() + seconds
        for process in self._others:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        return [process for process in self._others if process.poll() is None]

    def _watch(self) -> None:
        """Ends this process when another one has left before its time: it may wait for that one for ever.

        What this process has to say of it comes first, if it is able to say it. In a collective of NCCL it is not, and
        takes no signals there either.
        """
        while not any(process.poll() for process in self._others):
            if all(process.returncode == 0 for process in self._others):
                return
            time.sleep(_LOOK_SECONDS)
        rank, code = next((i, process.returncode) for i, process in enumerate(self._others, 1) if process.returncode)
        is_signal = code in map(exit_code, SIGNALS)
        if is_signal and not self._interruptions.are_agreed and not self._is_leaving.is_set():
            os.kill(os.getpid(), signal.SIGTERM)  # that one alone was told
        if self._is_leaving.wait(_LEAVING_SECONDS if is_signal else _TELLING_SECONDS):
            return
        for process in self._others:
            process.kill()
        sys.stderr.write(f"mulcot: error: process {rank} of this stage ended with {code}, and this one waits for it\n")
        sys.stderr.flush()
        os._exit(code if is_signal else 1)


def take_launch(trainer: Trainer, interruptions: Interruptions) -> None:
    """Has the processes of a stage started by a `StageLauncher` where Lightning would start them.

    Args:
        trainer: of this process, before it runs.
        interruptions: tells of signals.
    """
    strategy: Any = trainer.strategy
    if type(strategy.launcher) is _SubprocessScriptLauncher:
        theirs = strategy.launcher
        mine = StageLauncher(theirs.cluster_environment, theirs.num_processes, theirs.num_nodes, interruptions)
        strategy._launcher = mine


def check_processes(trainer: Trainer, environment: Mapping[str, str] = os.environ) -> None:
    """Refuses processes that do not know of each other: each would write all files.

    Args:
        trainer: of this process.
        environment: its environment.

    Raises:
        InputError: More or fewer were started than the trainer reckons with.
    """
    by = "torchrun" if "TORCHELASTIC_RUN_ID" in environment else "srun"
    started = int(environment.get(_STARTED[by], trainer.world_size))
    if started != trainer.world_size:
        raise InputError(
            f"{by} started {started} processes and trainer.devices x trainer.num_nodes is {trainer.world_size}: give "
            "--trainer.devices the processes of a machine, --trainer.num_nodes the machines, and --trainer.strategy "
            "ddp (or --config trainer/fsdp2.yaml)"
        )


def leave_used_store(environment: MutableMapping[str, str] = os.environ) -> None:
    """Lets processes that torchrun started again on one machine meet at a new address.

    torchrun keeps its store, in which the processes of the first time left their addresses: whoever comes first would
    connect to a process that is dead (https://github.com/pytorch/pytorch/issues/135712). On several machines the
    processes cannot tell how often others were started; torchrun has `TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1` for them.

    Args:
        environment: that of the process, in which the address is changed.
    """
    one_machine = environment.get("GROUP_WORLD_SIZE") == "1"
    again = environment.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if not (again and one_machine and environment.get(_SHARED_STORE) == "True"):
        return
    used = TCPStore(environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), is_master=False)
    meeting = PrefixStore(f"mulcot/{environment['TORCHELASTIC_RESTART_COUNT']}", used)
    if environment["RANK"] == "0":
        meeting.set("port", str(find_free_network_port()))
    environment["MASTER_PORT"] = meeting.get("port").decode()
    environment[_SHARED_STORE] = "False"


def has_lost_other(error: BaseException) -> bool:
    """Whether another process of the stage has gone, by what a connection to it ended in.

    gloo tells of it in a plain RuntimeError of its transport, NCCL and torch's store in classes of torch. What else
    they raise, such as a network interface that is not there, is told of as it is.

    Args:
        error: what ended this process.
    """
    said = str(error)
    connects = isinstance(error, DistError) or "gloo/transport" in said
    return connects and any(words in said for words in _GONE)
