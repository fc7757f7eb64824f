"""What tests of resuming share: fits that are killed at a chosen moment, and what two fits must have in common."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mulcot.cli import main

HERE = Path(__file__).parent
QUICK = ("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1")
LORA = json.dumps({"r": 4, "alpha": 8, "dropout": 0.3})


class SignalAt(Callback):
    """Sends this process a signal, once the fit has come to a place.

    Args:
        hook: the place: the name of a hook of Lightning, or `saving`, in the midst of writing a checkpoint.
        step: the first optimizer step, counted from 0, at which the place is meant.
        batch: the micro-batch of the epoch, or the validation batch, that is meant; null means any.
        number: the signal; 0 raises an error instead, which ends the fit without a save as well.
        rank: of the process that is meant, of several.
        seconds: after which a second signal of the kind is sent, while the fit stands still; null sends one.
    """

    def __init__(
        self,
        hook: str,
        step: int = 0,
        batch: int | None = None,
        number: int = int(signal.SIGKILL),
        seconds: float | None = None,
        rank: int = 0,
    ) -> None:
        self.hook, self.step, self.batch, self.number, self.seconds = hook, step, batch, number, seconds
        self.rank = rank
        self.is_done = False
        if hook == "saving":
            self.fsync, os.fsync = os.fsync, self._fsync
        else:
            setattr(self, hook, self._strike)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.trainer = trainer

    def _strike(self, trainer: Any, pl_module: Any, *given: Any) -> None:
        is_batch = self.batch is None or (len(given) > 1 and self.batch in given[1:3])
        if trainer.global_step < self.step or not is_batch or self.is_done or trainer.global_rank != self.rank:
            return
        self.is_done = True
        if not self.number:
            raise RuntimeError("pulled the plug")
        os.kill(os.getpid(), self.number)
        if self.seconds is not None:
            threading.Timer(self.seconds, os.kill, (os.getpid(), self.number)).start()
            time.sleep(self.seconds + 20)

    def _fsync(self, handle: int) -> None:
        trainer = getattr(self, "trainer", None)
        if trainer is not None and trainer.global_step >= self.step and not self.is_done:
            self.is_done = "ckpt" in os.readlink(f"/proc/self/fd/{handle}")
            if self.is_done:
                os.kill(os.getpid(), self.number)
        self.fsync(handle)


class SpoiltGradient(Callback):
    """Makes one gradient infinite, at a step that is counted from 0."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step == self.step:
            weight = next(each for each in pl_module.parameters() if each.grad is not None)
            weight.grad.view(-1)[0] = float("inf")


class SpoiltWeight(Callback):
    """Makes one weight infinite, after as many steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *given: Any) -> None:
        if trainer.global_step == self.step:
            with torch.no_grad():
                next(each for each in pl_module.parameters() if each.requires_grad).view(-1)[0] = float("inf")


def strike(hook: str, **init_args: Any) -> tuple[str, str]:
    """The options that put a `SignalAt` into a fit."""
    given = [{"class_path": "resuming.SignalAt", "init_args": {"hook": hook, **init_args}}]
    return "--trainer.callbacks", json.dumps(given)


# Imports take seconds: one process has them done and forks for every command, which then leads a process group.
_FORKS = """
import json, os, signal, sys
import mulcot.stage_process, stages, mulcot.models
from mulcot.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        log = os.open(json.loads(line)[0], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for handle in (1, 2):
            os.dup2(log, handle)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        try:
            code = main(json.loads(line)[1:])
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Program:
    """Runs `mulcot` commands one after the other, each in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self.log = process, log

    def start(self, *args: object) -> int:
        """Starts a command; its process, the leader of a group."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([str(self.log), *map(str, args)]) + "\n")
        self._process.stdin.flush()
        return self._number()

    def ended(self) -> int:
        """Waits for the command; its exit code, minus n after signal n."""
        return self._number()

    def run(self, *args: object) -> int:
        """Both."""
        self.start(*args)
        return self.ended()

    @property
    def said(self) -> str:
        """What the last command printed."""
        return self.log.read_text()

    def _number(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


@contextmanager
def program(folder: Path, **environment: str) -> Iterator[Program]:
    """A `Program` with its log in a folder."""
    given = os.environ | {"OMP_NUM_THREADS": "1", **environment}
    given["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent), given.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, "-c", _FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=given
    ) as process:
        try:
            yield Program(process, folder / "log.txt")
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)


def fit(chain: Path, stage: str, *args: object, adapter: bool = False, workers: int = 0) -> list[object]:
    """The command of a fit with 24 steps of two micro-batches in two epochs, saved at every third step."""
    options: dict[str, object] = {
        "run_dir": chain, "stage": stage, "test_after_fit": "false", "checkpoints.every_steps": 3,
        "data.init_args.posts_per_step": 4, "data.init_args.eval_batch_size": 4,
        "data.init_args.num_workers": workers, "trainer.max_epochs": 2, "trainer.accumulate_grad_batches": 2,
    }  # fmt: skip
    if adapter:
        options |= {"model.init_args.pretrained": chain / "student", "model.init_args.lora": LORA}
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    return ["fit", "--config", "student.yaml", *QUICK, *flags, *args]


def run(command: list[object]) -> int:
    """Runs a command in this process; its exit code."""
    return main([str(word) for word in command])


def step_of(path: Path) -> int:
    """The optimizer steps behind a checkpoint."""
    return int(torch.load(path, weights_only=True, mmap=True)["global_step"])


def begun(chain: Path, stage: str, *args: object, adapter: bool = False) -> Path:
    """A fit that was saved at its third and sixth step and broke off in the seventh, between its micro-batches."""
    plug = strike("on_train_batch_start", step=6, batch=13, number=0)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        run(fit(chain, stage, *plug, *args, adapter=adapter))
    folder = chain / stage
    assert [step_of(folder / "checkpoints" / name) for name in ("previous.ckpt", "last.ckpt")] == [3, 6]
    assert not (folder / "manifest.json").exists()
    return folder


def copied(stage: Path, name: str) -> Path:
    """A stage with another name in its run."""
    target = stage.with_name(name)
    shutil.copytree(stage, target)
    return target


def logged(stage: Path) -> dict[str, dict[int, set[float]]]:
    """Every scalar's values by step; a step that was logged twice with one value has one."""
    events = EventAccumulator(str(stage / "tensorboard"), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    events.Reload()
    found: dict[str, dict[int, set[float]]] = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            found.setdefault(tag, {}).setdefault(event.step, set()).add(event.value)
    return found


def differences(one: Path, other: Path) -> list[str]:
    """In what two finished fits differ: weights, optimizer, schedule, generators, best epoch, logged values."""
    return [*_of_checkpoints(one, other), *_of_values(logged(one), logged(other))]


def _of_checkpoints(one: Path, other: Path) -> Iterator[str]:
    for name in ("last.ckpt", "best.ckpt"):
        mine, theirs = (torch.load(stage / "checkpoints" / name, weights_only=True) for stage in (one, other))
        states = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "callback_metrics")
        for key in ("epoch", "global_step", *states):
            for place, *values in _pairs(mine[key], theirs[key], key):
                if "path" not in place and "best_k_models" not in place and "dirpath" not in place:
                    yield f"{name}: {place}: {str(values)[:200]}"


def _pairs(one: Any, other: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key in one:
            yield from _pairs(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from _pairs(*pair, f"{place}.{number}")
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or not torch.equal(one, other):
            yield place, one, other
    elif one != other:
        yield place, one, other


def _of_values(one: dict[str, dict[int, set[float]]], other: dict[str, dict[int, set[float]]]) -> Iterator[str]:
    if one.keys() != other.keys():
        yield f"logged: {sorted(one.keys() ^ other.keys())}"
        return
    for tag, values in one.items():
        if values != other[tag]:
            at = sorted(step for step in values.keys() | other[tag].keys() if values.get(step) != other[tag].get(step))
            yield f"{tag}: at {at}: {[(values.get(step), other[tag].get(step)) for step in at[:3]]}"
