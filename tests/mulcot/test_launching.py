"""Who is first among the processes of a stage, which of them are refused, and where those that start again meet."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.strategies.launchers import subprocess_script
from torch.distributed import DistBackendError, DistNetworkError, TCPStore

from mulcot import launching
from mulcot.interruptions import Interruptions
from mulcot.launching import StageLauncher, check_processes, has_lost_other, leave_used_store, take_launch
from mulcot.types import InputError

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_JOB_NAME": "mulcot",
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NUM_TASKS": "4",
}
TABLE = {
    "alone": ({}, True),
    "torchrun, first": (TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, True),
    "torchrun, second process": (TORCHRUN | {"RANK": "1", "LOCAL_RANK": "1", "GROUP_RANK": "0"}, False),
    "torchrun, first of the second machine": (TORCHRUN | {"RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),
    "lightning, second process": ({"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "4"}, False),
    "lightning, first of the second machine": ({"NODE_RANK": "1"}, False),
    "srun, first": (SRUN | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}, True),
    "srun, second process": (SRUN | {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"}, False),
    "srun, first of the second machine": (
        SRUN | {"SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1"},
        False,
    ),
    "torchrun below srun, one each a machine": (
        SRUN
        | TORCHRUN
        | {"SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_NODEID": "1"}
        | {"RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1"},
        False,
    ),
}


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Without the environment of whoever started the tests; Lightning keeps the rank in a global."""
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    return monkeypatch


def trainer(**given: object) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(**{"accelerator": "cpu", "enable_model_summary": False} | quiet | given)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*does not match the number of nodes.*")
@pytest.mark.parametrize("case", TABLE)
def test_one_process_of_all_machines_is_first(clean: pytest.MonkeyPatch, case: str) -> None:
    """It alone empties the stage's folder and writes its files: `MulcotCLI` asks the trainer before any is launched."""
    environment, is_first = TABLE[case]
    for name, value in environment.items():
        clean.setenv(name, value)
    asked = trainer(devices=2, num_nodes=2, strategy="ddp")
    assert asked.is_global_zero == is_first
    check_processes(asked)


@pytest.mark.parametrize("environment", [TORCHRUN, SRUN])
def test_processes_that_do_not_know_of_each_other_are_refused(environment: dict[str, str]) -> None:
    by = "torchrun" if environment is TORCHRUN else "srun"
    expected = f"{by} started 4 processes and trainer.devices x trainer.num_nodes is 1: give --trainer.devices"
    with pytest.raises(InputError, match=expected):
        check_processes(trainer(devices=1), environment)
    check_processes(trainer(devices=1), {})
    check_processes(trainer(devices=1), {"SLURM_NTASKS": "4"})  # in a batch script, without srun


def test_processes_that_start_again_meet_elsewhere() -> None:
    """The store of torchrun still holds addresses of the processes that died."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    found: list[dict[str, str]] = [{}, {}]

    def start(rank: int, restarts: int, machines: int = 1) -> None:
        environment = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": str(restarts),
            "GROUP_WORLD_SIZE": str(machines),
            "RANK": str(rank),
        }
        leave_used_store(environment)
        found[rank] = environment

    ports = {store.port}
    for restarts in (1, 2):
        threads = [threading.Thread(target=start, args=(rank, restarts)) for rank in (1, 0)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
        assert found[0]["MASTER_PORT"] == found[1]["MASTER_PORT"]
        assert {each["TORCHELASTIC_USE_AGENT_STORE"] for each in found} == {"False"}
        ports.add(int(found[0]["MASTER_PORT"]))
    assert len(ports) == 3
    for restarts, machines in ((0, 1), (1, 2)):
        start(0, restarts, machines)
        assert found[0]["MASTER_PORT"] == str(store.port)
        assert found[0]["TORCHELASTIC_USE_AGENT_STORE"] == "True"


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (RuntimeError("[/x/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:1: Connection reset by peer."), True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:12127"), True),
        (DistBackendError("NCCL error in: x.cpp:1, remote process exited or there was a network error\n"), True),
        (DistNetworkError("failed to recv, got 0 bytes: Connection reset by peer"), True),
        (RuntimeError("[/x/gloo/transport/tcp/device.cc:84] Unable to find interface for: eth9"), False),
        (DistBackendError("NCCL error in: x.cpp:1, invalid usage"), False),
        (RuntimeError("the teacher: Connection reset by peer"), False),
        (ConnectionResetError(104, "Connection reset by peer"), False),
    ],
)
def test_a_process_that_is_gone_is_told_from_other_errors(error: Exception, is_lost: bool) -> None:
    assert has_lost_other(error) == is_lost


# -- processes that this one starts -------------------------------------------------------------------------------

WAITS = "mulcot: error: process 1 of this stage ended with"


def stage_of_two(
    folder: Path,
    first: Callable[[StageLauncher], object],
    other: str,
    are_agreed: bool,
    handler: str = "signal.SIG_DFL",
) -> tuple[int, str]:
    """Runs a first process, which begins when the other one has; its exit code, and what was said.

    Args:
        folder: where both run.
        first: what the first process does; forked, for its imports take seconds.
        other: the program of the one that it starts.
        are_agreed: whether both know of a signal.
        handler: what that one does with SIGTERM.
    """
    begins = f"import os, signal, sys, time\nsignal.signal(signal.SIGTERM, {handler})\nopen('begun', 'w').close()"
    (folder / "other.py").write_text(f"{begins}\n{other}\n")
    forked = os.fork()
    if not forked:
        code: Any = 1
        try:
            os.chdir(folder)
            log = os.open("log", os.O_WRONLY | os.O_CREAT)
            os.dup2(log, 2)
            sys.stderr = os.fdopen(2, "w")
            launching._LEAVING_SECONDS, launching._TELLING_SECONDS = 6.0, 2.0
            subprocess_script._basic_subprocess_cmd = lambda: [sys.executable, "other.py"]
            interruptions = Interruptions()
            interruptions.are_agreed = are_agreed
            launcher = StageLauncher(LightningEnvironment(), 2, 1, interruptions)

            def run() -> None:
                while not Path("begun").exists():
                    time.sleep(0.02)
                first(launcher)

            launcher.launch(run)
            code = 0
        except SystemExit as left:
            code = left.code
        finally:
            os._exit(code)
    _, status = os.waitpid(forked, 0)
    return os.waitstatus_to_exitcode(status), (folder / "log").read_text()


def ends_itself(code: int, seconds: float = 0) -> Callable[[StageLauncher], object]:
    """What a process does that an error ends, after a while."""

    def run(launcher: StageLauncher) -> None:
        time.sleep(seconds)
        launcher.end_others()
        sys.exit(code)

    return run


def hangs(launcher: StageLauncher) -> None:
    """As in a collective of a device, where signals wait."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(90)


KILLED = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "first", "are_agreed", "code", "waits"),
    [
        ("sys.exit(143)", ends_itself(143, seconds=3), True, 143, False),  # it has more to write
        ("sys.exit(143)", hangs, True, 143, True),
        ("sys.exit(143)", hangs, False, 143, True),
        ("sys.exit(130)", lambda launcher: time.sleep(90), False, -signal.SIGTERM, False),  # it is told as well
        (KILLED, hangs, False, 1, True),
        ("sys.exit(2)", hangs, False, 1, True),
        ("sys.exit(2)", ends_itself(3), False, 3, False),  # it tells of its own mistake
        ("pass", lambda launcher: time.sleep(3), False, 0, False),
    ],
)
def test_when_another_process_has_left_this_one_has_its_say_and_does_not_wait_for_ever(
    clean: pytest.MonkeyPatch,
    tmp_path: Path,
    other: str,
    first: Callable[[StageLauncher], object],
    are_agreed: bool,
    code: int,
    waits: bool,
) -> None:
    found, said = stage_of_two(tmp_path, first, other, are_agreed)
    assert (found, WAITS in said) == (code, waits), said


DONE = "open('done', 'w').close()"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("are_agreed", "handler", "seconds", "is_done"),
    [
        (True, "signal.SIG_DFL", 4, True),  # it may not be told again
        (True, "signal.SIG_DFL", 60, False),
        (False, f"lambda *_: sys.exit({DONE})", 60, True),
        (False, "signal.SIG_IGN", 60, False),
    ],
)
def test_others_may_leave_in_their_own_time(
    clean: pytest.MonkeyPatch, tmp_path: Path, are_agreed: bool, handler: str, seconds: float, is_done: bool
) -> None:
    """Lightning asks the launcher to kill them as soon as a signal has ended the first process."""

    def first(launcher: StageLauncher) -> None:
        launcher.kill(signal.SIGKILL)
        sys.exit(130)

    began = time.monotonic()
    code, said = stage_of_two(tmp_path, first, f"time.sleep({seconds})\n{DONE}", are_agreed, handler)
    assert code == 130, said
    assert (tmp_path / "done").exists() == is_done
    assert time.monotonic() - began < 30


def test_only_what_lightning_would_start_itself_is_started_so(clean: pytest.MonkeyPatch) -> None:
    asked = trainer(devices=2, strategy="ddp")
    take_launch(asked, Interruptions())
    assert type(asked.strategy.launcher) is StageLauncher
    for other in (trainer(devices=1), trainer(devices=2, strategy="ddp_spawn")):
        before = other.strategy.launcher
        take_launch(other, Interruptions())
        assert other.strategy.launcher is before
