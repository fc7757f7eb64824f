"""What is told of an ended stage is true: the command that is named goes on, and none loses what was saved."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from mulcot.launches import note_begin, was_begun_before

SIGTERM_AT_4 = {"hook": "on_train_batch_start", "step": 4, "batch": 9, "number": int(signal.SIGTERM)}


def last_step(resuming: ModuleType, stage: Path) -> int:
    return resuming.step_of(stage / "checkpoints" / "last.ckpt")


def test_what_would_remove_the_checkpoint_that_it_names_removes_nothing(
    chain: Path, broken: Path, resuming: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = resuming.copied(broken, "named-own")
    last = stage / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    wrong = {
        f"--ckpt_path {last}: --fresh would remove it": last,
        f"{chain}/nowhere.ckpt: there is no such checkpoint": chain / "nowhere.ckpt",
        "was begun on other ground": next((chain / "assistant" / "checkpoints").glob("best.ckpt")),
    }
    for told, path in wrong.items():
        assert resuming.run(resuming.fit(chain, stage.name, "--fresh", "--ckpt_path", path)) > 0
        assert told in capsys.readouterr().err
        assert last.read_bytes() == before


def test_a_fit_that_was_begun_anew_goes_on_without_fresh(
    chain: Path, broken: Path, resuming: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = resuming.copied(broken, "anew")
    strike = resuming.strike(**SIGTERM_AT_4)
    assert resuming.run(resuming.fit(chain, stage.name, "--fresh", *strike)) == 143
    said = capsys.readouterr().err
    assert "step 5 is saved in" in said
    assert "and the same command without --fresh goes on from there" in said
    assert resuming.run(resuming.fit(chain, stage.name)) == 0
    assert "going on from step 5" in capsys.readouterr().out


def test_a_named_checkpoint_never_takes_the_place_of_the_stages_own(
    chain: Path, broken: Path, resuming: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ("--ckpt_path", broken / "checkpoints" / "last.ckpt")
    strike = resuming.strike("on_train_batch_start", step=8, batch=17, number=int(signal.SIGTERM))
    assert resuming.run(resuming.fit(chain, "branched", *named, *strike)) == 143
    assert "the same command without --ckpt_path goes on from there" in capsys.readouterr().err
    assert last_step(resuming, chain / "branched") == 9
    assert resuming.run(resuming.fit(chain, "branched", *named)) == 1
    assert "branched/checkpoints/last.ckpt: leave out --ckpt_path to go on from that" in capsys.readouterr().err
    assert last_step(resuming, chain / "branched") == 9
    assert resuming.run(resuming.fit(chain, "branched")) == 0
    assert "going on from step 9" in capsys.readouterr().out


@pytest.mark.slow
def test_a_job_that_slurm_starts_again_goes_on_with_the_very_command(
    chain: Path, broken: Path, resuming: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = resuming.copied(broken, "requeued")
    command = resuming.fit(chain, stage.name, "--fresh")
    monkeypatch.setenv("SLURM_JOB_ID", "70")
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")  # nobody is asked to start it again
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # of a command that stands first in its job's script
    assert resuming.run([*command, *resuming.strike(**SIGTERM_AT_4)]) == 143
    assert "going on" not in capsys.readouterr().out, "this job has not begun it before"
    assert resuming.run(command) == 0
    assert "going on from step 5" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        resuming.run(command)
    assert left.value.code == 0
    assert "was finished before this job was started again" in capsys.readouterr().out
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    assert resuming.run([*command, *resuming.strike(**SIGTERM_AT_4)]) == 143
    assert last_step(resuming, stage) == 5, "another job begins anew"


def test_within_a_chain_the_chain_alone_says_what_begins_anew(tmp_path: Path) -> None:
    job = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}
    note_begin(tmp_path, job)
    assert was_begun_before(tmp_path, job)
    # A step that an earlier life of the job has finished is given --fresh when what it reads has changed since.
    assert not was_begun_before(tmp_path, job | {"MULCOT_CHAIN": "1"})


def wait_for(process: subprocess.Popen[bytes], path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_terminal_that_goes_away_costs_no_step(chain: Path, resuming: ModuleType) -> None:
    command = resuming.fit(chain, "left", "--checkpoints.every_steps", 1, "--checkpoints.every_minutes", "null")
    command += ["--trainer.enable_progress_bar", "true", "--trainer.max_epochs", 500]
    ours, theirs = pty.openpty()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "mulcot", *map(str, command)],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
    ) as process:  # fmt: skip
        os.close(theirs)
        wait_for(process, chain / "left" / "checkpoints" / "last.ckpt")
        os.close(ours)  # whatever it prints from here on is an error
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 129
    saved = last_step(resuming, chain / "left")
    assert resuming.step_of(chain / "left" / "checkpoints" / "previous.ckpt") == saved - 1, "the step under way"


def test_a_signal_during_the_imports_is_heeded(chain: Path) -> None:
    for number, code in ((signal.SIGUSR1, 0), (signal.SIGTERM, 143)):
        with subprocess.Popen(
            [sys.executable, "-m", "mulcot", "fit", "--config", "student.yaml", "--run_dir", str(chain)],
            stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            taken = 1 << (number - 1)
            status, maps = Path(f"/proc/{process.pid}/status"), Path(f"/proc/{process.pid}/maps")
            while not int(status.read_text().partition("SigCgt:")[2].split()[0], 16) & taken:
                assert process.poll() is None
                time.sleep(0.001)
            assert "libtorch_cpu" not in maps.read_text(), "the handlers come before torch"
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (code, f"mulcot: stopped by {number.name}; the same command goes on\n")


def test_the_launch_is_that_of_the_job_or_of_torchrun(tmp_path: Path) -> None:
    note_begin(tmp_path, {})
    assert list(tmp_path.iterdir()) == []
    for started in ({"SLURM_JOB_ID": "7"}, {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "0"}):
        note_begin(tmp_path, started)
        count = "SLURM_RESTART_COUNT" if "SLURM_JOB_ID" in started else "TORCHELASTIC_RESTART_COUNT"
        assert not was_begun_before(tmp_path, started)
        assert was_begun_before(tmp_path, started | {count: "1"})
        assert not was_begun_before(tmp_path, dict.fromkeys(started, "other") | {count: "1"})
        assert not was_begun_before(tmp_path / "absent", started | {count: "1"})
    assert [path.name for path in tmp_path.iterdir()] == [".launch"]
