"""Signals: noted while held, raised otherwise, and SLURM asked to start the job again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mulcot.interruptions import SIGNALS, Interrupted, Interruptions, requeue


@pytest.fixture(autouse=True)
def _heeded() -> Iterator[None]:
    """SIGINT is not ignored, as it is in a shell's background jobs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 0), (signal.SIGHUP, 129)],
    ids=lambda value: str(value),
)
def test_a_signal_is_noted_while_held_and_raised_otherwise(number: signal.Signals, code: int) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with Interruptions() as interruptions:
        interruptions.held = True
        os.kill(os.getpid(), number)
        assert interruptions.received == number
        os.kill(os.getpid(), signal.SIGTERM)  # a scheduler may send another one: the first counts
        assert interruptions.received == number
    with pytest.raises(Interrupted, match=f"stopped by {number.name}") as caught:
        _struck(number)
    assert caught.value.code == code
    assert [signal.getsignal(each) for each in SIGNALS] == before


def _struck(number: signal.Signals) -> None:
    with Interruptions():
        os.kill(os.getpid(), number)
        time.sleep(1)


def test_what_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruptions() as interruptions:
            os.kill(os.getpid(), signal.SIGINT)
            assert interruptions.received == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_ends_a_process_that_holds() -> None:
    script = """
import os, signal, time
from mulcot.interruptions import Interruptions
signal.signal(signal.SIGINT, signal.default_int_handler)
with Interruptions() as interruptions:
    interruptions.held = True
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)  # of one keystroke
    print("on", flush=True)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (130, "on\n")


@pytest.mark.parametrize(
    ("job", "asked"),
    [
        ({"SLURM_JOB_ID": "71"}, "requeue 71"),
        ({"SLURM_JOB_ID": "73", "SLURM_ARRAY_JOB_ID": "71", "SLURM_ARRAY_TASK_ID": "2"}, "requeue 71_2"),
        ({"SLURM_JOB_ID": "71", "SLURM_PROCID": "1"}, ""),
        ({"SLURM_JOB_ID": "71", "SLURM_PROCID": "0", "LOCAL_RANK": "1"}, ""),  # which Lightning started itself
        ({"SLURM_JOB_ID": "71", "SLURM_JOB_NAME": "interactive"}, ""),
        ({}, ""),
    ],
)
def test_slurm_is_asked_once_and_by_its_first_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: dict[str, str], asked: str
) -> None:
    for name in list(os.environ):
        if name.startswith("SLURM_"):
            monkeypatch.delenv(name)
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    command = tmp_path / "scontrol"
    command.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "asked"}\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(Interrupted):
        _struck(signal.SIGUSR1)
    with pytest.raises(Interrupted):
        _struck(signal.SIGTERM)
    given = tmp_path / "asked"
    assert (given.read_text().strip() if given.exists() else "") == asked


def test_without_slurms_program_there_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    requeue()
    assert "SLURM was not asked to start job 5 again" in caplog.text
