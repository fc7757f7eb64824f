"""The processes of a stage: how many were started, whether for the first time, and that none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, MutableMapping
from typing import Final

from lightning import Trainer
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch.distributed import DistError, PrefixStore, TCPStore

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
_LEAVING_SECONDS: Final = 5.0
"""How long the other processes have to tell of their own mistakes."""


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


def end_others(trainer: Trainer) -> None:
    """Ends the processes that this one started, when it cannot go on: they would wait for it.

    Args:
        trainer: of this process.
    """
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher):
        return
    deadline = time.monotonic() + _LEAVING_SECONDS
    for process in launcher.procs:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
