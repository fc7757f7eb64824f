"""What tests of several processes share: how they are started, callbacks that look into them, and what they leave."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed.tensor import DTensor

from mulcot.types import InputError

HERE = Path(__file__).parent
TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
SPREAD = ("--trainer.devices", "2", "--trainer.strategy.class_path", "mulcot.sharded_strategy.ShardedStrategy")
STEPS = 50
FIFTY = ("--trainer.max_steps", STEPS, "--trainer.max_epochs", "9")
_FOR_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def fit(run: Path, stage: str, *more: object) -> list[str]:
    """A fit of the student with the assistant beside it, every step logged: six steps an epoch, the last one small."""
    given = {
        "--run_dir": run,
        "--stage": stage,
        "--model.init_args.assistant": run / "models" / "assistant",
        "--model.init_args.online_assistant": "true",
        "--data.init_args.soft_labels": "null",
        "--data.init_args.rationales": json.dumps([f"{run}/teacher/rationales-train.jsonl"]),
        "--data.init_args.posts_per_step": 9,
        "--model.init_args.max_new_tokens": 12,
        "--model.init_args.optimizer.learning_rate": 3e-4,
        "--inspection.enabled": "false",
        "--trainer.accelerator": "cpu",
        "--trainer.enable_progress_bar": "false",
        "--trainer.log_every_n_steps": 1,
    }
    return ["fit", "--config", "student.yaml", *(str(word) for pair in given.items() for word in pair), *map(str, more)]


def call(*command: object, code: int | None = 0, seconds: float = 300, torchrun: tuple[str, ...] = ()) -> str:
    """Runs `mulcot` with these arguments in processes of its own; none of them is left when it returns.

    Args:
        command: the arguments.
        code: the exit code that is expected; None for any but 0.
        seconds: within which it must end.
        torchrun: arguments of `torchrun`, where that starts the processes.
    """
    program = [sys.executable, "-m", *(("torch.distributed.run", *torchrun, "-m") if torchrun else ())]
    paths = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [*program, "mulcot", *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}, start_new_session=True,
    )  # fmt: skip
    try:
        shown, _ = process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode != 0 if code is None else process.returncode == code, shown[-6000:]
    return shown


def callbacks(*given: tuple[str, dict[str, Any]]) -> tuple[str, str]:
    """The option that puts callbacks of this file into a fit, each as its class and its arguments."""
    return "--trainer.callbacks", json.dumps(
        [{"class_path": f"ranks.{name}", "init_args": arguments} for name, arguments in given]
    )


def losses(stage: Path) -> dict[str, list[float]]:
    """Every loss of every step; of a step that was taken again the last time counts."""
    events = EventAccumulator(str(stage / "tensorboard"))
    events.Reload()
    names = [tag for tag in events.Tags()["scalars"] if tag.startswith("loss/")]
    taken = {name: {event.step: event.value for event in events.Scalars(name)} for name in names}
    return {name: [values[step] for step in sorted(values)] for name, values in taken.items()}


def weights(stage: Path, name: str = "last") -> dict[str, torch.Tensor]:
    """The trained weights of a checkpoint."""
    path = stage / "checkpoints" / f"{name}.ckpt"
    return dict(torch.load(path, weights_only=True, map_location="cpu")["state_dict"])


class Dies(Callback):
    """Ends one process, once, before it takes a step.

    Args:
        marker: a file that says that it has happened.
        step: the step, counted from 0.
        rank: the process.
        killed: with SIGKILL; else by an error.
    """

    def __init__(self, marker: str, step: int, rank: int, killed: bool = False) -> None:
        self.marker, self.step, self.rank, self.killed = Path(marker), step, rank, killed

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.global_step, trainer.global_rank) != (self.step, self.rank) or self.marker.exists():
            return
        self.marker.touch()
        if self.killed:
            os.kill(os.getpid(), signal.SIGKILL)
        raise InputError(f"post seven is wrong on rank {self.rank}")


class LeavesSlowly(Callback):
    """Sends the second process SIGTERM after a step, and has one process take its time to leave.

    Args:
        marker: a file that says that the process had its time.
        rank: the process that takes it.
        seconds: the time.
    """

    def __init__(self, marker: str, rank: int, seconds: float = 8.0) -> None:
        self.marker, self.rank, self.seconds = Path(marker), rank, seconds

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.global_step, trainer.global_rank) == (1, 1):
            os.kill(os.getpid(), signal.SIGTERM)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if trainer.global_rank == self.rank:
            time.sleep(self.seconds)
            self.marker.touch()


class Writes(Callback):
    """Lists the files below a folder that each process writes, in `<out>/<local rank>.json`.

    Args:
        folder: the folder.
        out: where the lists go.
    """

    def __init__(self, folder: str, out: str) -> None:
        self.folder, self.out = folder, Path(out)
        self.found: set[str] = set()
        sys.addaudithook(self._heard)
        atexit.register(self._tell)

    def _heard(self, event: str, given: tuple[Any, ...]) -> None:
        """Takes Python's own reports: (path, mode, flags) of a file that is opened, (from, to) of a renamed one."""
        if event == "os.rename":
            path = given[1]
        elif event == "open" and given[2] & _FOR_WRITING:
            path = given[0]
        else:
            return
        if isinstance(path, str | Path) and str(path).startswith(self.folder):
            self.found.add(str(path))

    def _tell(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / f"{os.environ.get('LOCAL_RANK', '0')}.json"
        path.write_text(json.dumps(sorted(self.found)))


class Shares(Callback):
    """Says how much of the trained weights each process holds while it trains, in `<out>/<rank>.json`.

    Args:
        out: where that goes.
    """

    def __init__(self, out: str) -> None:
        self.out = Path(out)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        trained = [weight for weight in pl_module.parameters() if weight.requires_grad]
        mine = sum((weight.to_local() if isinstance(weight, DTensor) else weight).numel() for weight in trained)
        moments = sum(
            (value.to_local() if isinstance(value, DTensor) else value).numel()
            for state in optimizer.state.values()
            for name, value in state.items()
            if name.startswith("exp_avg")
        )
        self.out.mkdir(parents=True, exist_ok=True)
        content = {"mine": mine, "all": sum(weight.numel() for weight in trained), "moments": moments}
        (self.out / f"{trainer.global_rank}.json").write_text(json.dumps(content))
