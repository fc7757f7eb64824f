"""A fit that is killed or told to end, and gone on with, ends where an undisturbed one ends: bit by bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from mulcot.soft_labels import SoftLabelCache

KILLS = int(os.environ.get("MULCOT_KILLS", "8"))
"""Fits that are killed; `make soak` kills 40."""


# -- kills --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [False, True])
def test_a_fit_that_broke_off_in_an_accumulation_window_ends_as_an_undisturbed_one(
    chain: Path, resuming: ModuleType, whole: dict[bool, Path], adapter: bool
) -> None:
    """All weights, and an adapter, whose dropout draws from the generators of which a checkpoint keeps the states."""
    stage = resuming.begun(chain, f"halved{adapter}", adapter=adapter)
    torch.manual_seed(1234)  # another process would not have the generators where this one left them
    random.seed(1234)
    assert resuming.run(resuming.fit(chain, stage.name, adapter=adapter)) == 0
    assert resuming.differences(whole[adapter], stage) == []
    assert sorted(path.name for path in (stage / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt", "sha256.json"]


def moments(kills: int) -> Iterator[tuple[str, dict[str, Any], bool, int]]:
    """Where fits are killed: in turns adapter or not, with and without workers, at steps drawn by chance."""
    draw = random.Random(kills)
    for number in range(kills):
        hook, given = [
            ("on_train_batch_start", {"step": draw.randrange(24)}),  # an even batch: between two steps
            ("on_before_optimizer_step", {"step": draw.randrange(24)}),
            ("on_after_backward", {"step": draw.randrange(24)}),  # within an accumulation window
            ("on_validation_batch_start", {"step": draw.choice([12, 24]), "batch": draw.randrange(3)}),
            ("on_validation_end", {"step": draw.choice([12, 24])}),
            ("saving", {"step": draw.randrange(2, 25)}),
            ("on_train_batch_end", {"step": draw.randrange(24)}),
            ("on_train_epoch_end", {"step": draw.choice([12, 24])}),
        ][(number // 4 if kills >= 32 else number) % 8]
        yield hook, given, number % 2 == 1, number // 2 % 2 * 2


@pytest.mark.slow
def test_kills_at_random_moments(chain: Path, resuming: ModuleType, whole: dict[bool, Path], tmp_path: Path) -> None:
    found = {}
    with resuming.program(tmp_path) as program:
        for number, (hook, given, adapter, workers) in enumerate(moments(KILLS)):
            stage = f"killed{number}"
            command = resuming.fit(chain, stage, *resuming.strike(hook, **given), adapter=adapter, workers=workers)
            code = program.run(*command)
            assert code == -signal.SIGKILL, (hook, given, code, program.said[-3000:])
            code = program.run(*resuming.fit(chain, stage, adapter=adapter, workers=2 - workers))
            assert code == 0, (hook, given, program.said[-3000:])
            name = f"{number}: {hook} {given} {'adapter' if adapter else 'all weights'}, {workers} workers"
            found[name] = resuming.differences(whole[adapter], chain / stage)
            left = [path for path in (chain / stage).rglob("*") if path.name.endswith(".tmp")]
            assert left == []
    equal = sum(not differences for differences in found.values())
    print(f"\n{equal} of {len(found)} killed and resumed fits are bitwise equal to the undisturbed one")
    assert {name: differences for name, differences in found.items() if differences} == {}


@pytest.mark.slow
def test_a_plateau_and_validations_within_an_epoch_go_on_too(chain: Path, resuming: ModuleType) -> None:
    args = (
        "--model.init_args.optimizer.schedule", "plateau", "--model.init_args.optimizer.plateau_patience", 0,
        "--trainer.val_check_interval", 0.5, "--checkpoints.every_steps", 1, "--inspection.histogram_every", 5,
        "--trainer.log_every_n_steps", 2,
    )  # fmt: skip
    assert resuming.run(resuming.fit(chain, "plateau0", *args)) == 0
    at = [("on_validation_batch_start", 6), ("on_train_batch_start", 6), ("on_train_epoch_end", 12)]
    for number, (hook, step) in enumerate([*at, ("on_validation_end", 18), ("on_train_batch_end", 19)]):
        stage = f"plateau{number + 1}"
        with pytest.raises(RuntimeError, match="pulled the plug"):
            resuming.run(resuming.fit(chain, stage, *resuming.strike(hook, step=step, number=0), *args))
        assert resuming.run(resuming.fit(chain, stage, *args)) == 0
        assert resuming.differences(chain / "plateau0", chain / stage) == [], (hook, step)


@pytest.mark.slow
def test_samples_and_soft_labels_are_gone_on_with(chain: Path, resuming: ModuleType, tmp_path: Path) -> None:
    common = ["--run_dir", chain, "--trainer.enable_progress_bar", "false", "--data.init_args.eval_batch_size", 8]
    augment = ["predict", "--config", "augment.yaml", "--model.init_args.max_new_tokens", 24, *common]
    augment += ["--model.init_args.samples_per_post", 2]
    soft = ["predict", "--config", "soft_labels.yaml", *common]
    with resuming.program(tmp_path) as program:
        for verb, name, files in (
            (augment, "augmented", ("rationales-train.jsonl", "rejects-train.jsonl", "metrics.json")),
            (soft, "softened", ()),
        ):
            assert program.run(*verb, "--stage", f"{name}-whole") == 0
            strikes = [resuming.strike("on_predict_batch_end", batch=batch) for batch in (1, 0, 2)]
            for strike in strikes:
                assert program.run(*verb, "--stage", name, *strike) == -signal.SIGKILL
            assert program.run(*verb, "--stage", name) == 0, program.said[-2000:]
            for file in files:
                assert (chain / name / file).read_bytes() == (chain / f"{name}-whole" / file).read_bytes(), file
    assert not (chain / "augmented" / "samples").exists()
    assert _soft_labels(chain / "softened") == _soft_labels(chain / "softened-whole")


def _soft_labels(stage: Path) -> dict[str, Any]:
    cache = SoftLabelCache(stage / "cache")
    return {"tokens": cache.tokens, "kept": cache.kept_mass, "error": cache.rounding_error}


# -- signals ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 0), (signal.SIGINT, 130)], ids=lambda value: str(value)
)
@pytest.mark.parametrize(
    ("hook", "given", "step"),
    [
        ("on_train_batch_start", {"step": 7, "batch": 15}, 8),  # within the eighth step
        ("on_validation_batch_start", {"step": 12, "batch": 1}, 12),
        ("on_validation_end", {"step": 12}, 12),
    ],
)
def test_a_signal_saves_the_step_and_says_so(
    chain: Path,
    resuming: ModuleType,
    whole: dict[bool, Path],
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
    hook: str,
    given: dict[str, Any],
    step: int,
) -> None:
    stage = f"{number.name}-{hook}"
    rare = ("--checkpoints.every_steps", "null", "--checkpoints.every_minutes", "null")
    strike = resuming.strike(hook, number=int(number), **given)
    assert resuming.run(resuming.fit(chain, stage, *strike, *rare)) == code
    said = capsys.readouterr().err
    assert f"mulcot: stopped by {number.name}; step {step} is saved in {chain / stage}/checkpoints/last.ckpt" in said
    assert "Traceback" not in said
    assert resuming.step_of(chain / stage / "checkpoints" / "last.ckpt") == step
    assert resuming.run(resuming.fit(chain, stage)) == 0
    assert resuming.differences(whole[False], chain / stage) == []


@pytest.mark.slow
def test_signals_to_the_whole_group_spare_the_workers_and_a_second_ctrl_c_ends_at_once(
    chain: Path, resuming: ModuleType, whole: dict[bool, Path], tmp_path: Path
) -> None:
    with resuming.program(tmp_path) as program:
        group = program.start(*resuming.fit(chain, "grouped", workers=2))
        wait_for(lambda: (chain / "grouped" / "checkpoints" / "last.ckpt").exists())
        os.killpg(group, signal.SIGTERM)
        assert program.ended() == 143, program.said[-2000:]
        assert program.run(*resuming.fit(chain, "grouped", workers=2)) == 0
        assert resuming.differences(whole[False], chain / "grouped") == []
        strike = resuming.strike("on_train_batch_start", step=4, number=int(signal.SIGINT), seconds=1.0)
        began = time.monotonic()
        assert program.run(*resuming.fit(chain, "twice", *strike)) == 130
        assert time.monotonic() - began < 20, "it did not wait for the step"
        assert resuming.step_of(chain / "twice" / "checkpoints" / "last.ckpt") == 3


@pytest.mark.slow
def test_two_processes_leave_together_and_go_on(chain: Path, resuming: ModuleType, tmp_path: Path) -> None:
    """One of them alone gets the signal; a run of one process may not go on from theirs unasked."""
    two = ("--trainer.devices", 2, "--trainer.strategy", "ddp")
    strike = resuming.strike("on_train_batch_start", step=7, batch=15, number=int(signal.SIGTERM), rank=1)

    def program(stage: str, *args: object) -> tuple[int, str]:
        command = map(str, resuming.fit(chain, stage, *two, *args))
        done = subprocess.run(
            [sys.executable, "-m", "mulcot", *command], capture_output=True, text=True, timeout=600, check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*sys.path])},
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    assert program("pair")[0] == 0
    code, said = program("parted", *strike)
    assert code == 143, said[-3000:]
    last = chain / "parted" / "checkpoints" / "last.ckpt"
    assert resuming.step_of(last) == 8
    assert resuming.run(resuming.fit(chain, "parted")) == 1
    code, said = program("parted")
    assert code == 0, said[-3000:]
    assert resuming.differences(chain / "pair", chain / "parted") == []


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)
