"""A fit that is killed or told to end, and gone on with, ends where an undisturbed one ends: bit by bit."""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from mulcot.cli import main
from mulcot.locks import locked

KILLS = int(os.environ.get("MULCOT_KILLS", "8"))
"""Fits that are killed; `make soak` kills 40."""


@pytest.fixture(scope="session")
def resuming() -> ModuleType:
    """The module tests/resuming.py."""
    folder = str(Path(__file__).resolve().parents[1])
    if folder not in sys.path:
        sys.path.append(folder)  # commands of this process import `resuming.SignalAt` too
    return importlib.import_module("resuming")


@pytest.fixture(scope="session")
def whole(chain: Path, resuming: ModuleType) -> dict[bool, Path]:
    """An undisturbed fit of all weights, and one of an adapter."""
    for adapter in (False, True):
        assert run(resuming.fit(chain, f"whole{adapter}", adapter=adapter)) == 0
    return {adapter: chain / f"whole{adapter}" for adapter in (False, True)}


def run(command: list[object]) -> int:
    return main([str(word) for word in command])


def step_of(path: Path) -> int:
    return int(torch.load(path, weights_only=True, mmap=True)["global_step"])


def begun(resuming: ModuleType, chain: Path, stage: str, *args: object, adapter: bool = False) -> Path:
    """A fit that was saved at its third and sixth step and broke off in the seventh, between its micro-batches."""
    with pytest.raises(RuntimeError, match="pulled the plug"):
        run(
            resuming.fit(
                chain,
                stage,
                *resuming.strike("on_train_batch_start", step=6, batch=13, number=0),
                *args,
                adapter=adapter,
            )
        )
    folder = chain / stage
    assert [step_of(folder / "checkpoints" / name) for name in ("previous.ckpt", "last.ckpt")] == [3, 6]
    assert not (folder / "manifest.json").exists()
    return folder


@pytest.fixture(scope="session")
def broken(chain: Path, resuming: ModuleType) -> Path:
    """Such a fit of all weights, to be copied."""
    return begun(resuming, chain, "broken")


def copied(broken: Path, stage: str) -> Path:
    target = broken.with_name(stage)
    shutil.copytree(broken, target)
    return target


# -- kills --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [False, True])
def test_a_fit_that_broke_off_in_an_accumulation_window_ends_as_an_undisturbed_one(
    chain: Path, resuming: ModuleType, whole: dict[bool, Path], adapter: bool
) -> None:
    """All weights, and an adapter, whose dropout draws from the generators of which a checkpoint keeps the states."""
    stage = begun(resuming, chain, f"halved{adapter}", adapter=adapter)
    torch.manual_seed(1234)  # another process would not have the generators where this one left them
    random.seed(1234)
    assert run(resuming.fit(chain, stage.name, adapter=adapter)) == 0
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
        ][number // 4 % 8 if kills >= 32 else number]
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
@pytest.mark.parametrize("schedule", ["plateau", "cosine"])
def test_a_schedule_and_validations_within_an_epoch_go_on_too(chain: Path, resuming: ModuleType, schedule: str) -> None:
    args = (
        "--model.init_args.optimizer.schedule", schedule, "--model.init_args.optimizer.plateau_patience", 0,
        "--trainer.val_check_interval", 0.5, "--checkpoints.every_steps", 1, "--inspection.histogram_every", 5,
        "--trainer.log_every_n_steps", 2,
    )  # fmt: skip
    assert run(resuming.fit(chain, f"{schedule}0", *args)) == 0
    at = [("on_validation_batch_start", 6), ("on_train_batch_start", 6), ("on_train_epoch_end", 12)]
    for number, (hook, step) in enumerate([*at, ("on_validation_end", 18), ("on_train_batch_end", 19)]):
        stage = f"{schedule}{number + 1}"
        with pytest.raises(RuntimeError, match="pulled the plug"):
            run(resuming.fit(chain, stage, *resuming.strike(hook, step=step, number=0), *args))
        assert run(resuming.fit(chain, stage, *args)) == 0
        assert resuming.differences(chain / f"{schedule}0", chain / stage) == [], (hook, step)


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
    from mulcot.soft_labels import SoftLabelCache

    cache = SoftLabelCache(stage / "cache")
    return {"tokens": cache.tokens, "kept": cache.kept_mass, "error": cache.rounding_error}


# -- signals ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
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
    assert run(resuming.fit(chain, stage, *strike, *rare)) == code
    said = capsys.readouterr().err
    assert f"mulcot: stopped by {number.name}; step {step} is saved in {chain / stage}/checkpoints/last.ckpt" in said
    assert "Traceback" not in said
    assert step_of(chain / stage / "checkpoints" / "last.ckpt") == step
    assert run(resuming.fit(chain, stage)) == 0
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
        assert step_of(chain / "twice" / "checkpoints" / "last.ckpt") == 3


@pytest.mark.slow
def test_two_processes_leave_together_and_go_on(chain: Path, resuming: ModuleType, tmp_path: Path) -> None:
    """One of them alone gets the signal; a run of one process may not go on from theirs unasked."""
    two = ("--trainer.devices", 2, "--trainer.strategy", "ddp")
    strike = resuming.strike("on_train_batch_start", step=7, number=int(signal.SIGTERM), rank=1)

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
    assert step_of(last) == 8
    assert run(resuming.fit(chain, "parted")) == 1
    code, said = program("parted")
    assert code == 0, said[-3000:]
    assert resuming.differences(chain / "pair", chain / "parted") == []


def wait_for(condition: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


# -- changed ground -----------------------------------------------------------------------------------------------

CHANGES: list[tuple[str, list[object], str]] = [
    ("seed", ["--seed_everything", 3], "seed_everything was 0, is 3"),
    ("batch", ["--data.init_args.posts_per_step", 6], "data.init_args.posts_per_step was 4, is 6"),
    ("batch", ["--trainer.accumulate_grad_batches", 1], "trainer.accumulate_grad_batches was 2, is 1"),
    ("data", ["--data.init_args.limit", 40], "data.init_args.limit was none, is 40"),
    ("data", ["--data.init_args.rationales_per_post", 2], "data.init_args.rationales_per_post was 1, is 2"),
    ("precision", ["--trainer.precision", "bf16-mixed"], "trainer.precision was 32-true, is bf16-mixed"),
    ("losses", ["--model.init_args.lambda_soft", 0.5], "model.init_args.lambda_soft was 0.3, is 0.5"),
    ("losses", ["--losses.kl", "null"], "losses.kl.class_path was"),
    ("optimizer", ["--model.init_args.optimizer.learning_rate", 0.001], "learning_rate was 0.004, is 0.001"),
    ("schedule", ["--trainer.max_epochs", 3], "trainer.max_epochs was 2, is 3"),
]


@pytest.mark.parametrize(("group", "change", "told"), CHANGES, ids=[f"{group}-{told}" for group, _, told in CHANGES])
def test_other_ground_is_refused_with_old_and_new(
    broken: Path, resuming: ModuleType, capsys: pytest.CaptureFixture[str], group: str, change: list[object], told: str
) -> None:
    assert run(resuming.fit(broken.parent, broken.name, *change)) == 1
    said = capsys.readouterr().err
    assert f"broken/checkpoints/last.ckpt (step 6) was begun on other ground: {group}: " in said
    assert told in said
    assert f"--allow_changed {group}" in said


@pytest.mark.slow
@pytest.mark.parametrize(("group", "change", "told"), CHANGES, ids=[f"{group}-{told}" for group, _, told in CHANGES])
def test_other_ground_that_is_allowed_is_gone_on_upon(
    broken: Path, resuming: ModuleType, group: str, change: list[object], told: str
) -> None:
    stage = copied(broken, f"allowed-{abs(hash(told))}")
    assert run(resuming.fit(broken.parent, stage.name, *change, "--allow_changed", group)) == 0
    # Where posts or steps are others, the epoch's steps are planned and taken anew, behind the six that were taken.
    steps = {"posts_per_step": 6 + 8 + 8, "accumulate": 6 + 24, "limit": 6 + 20, "per_post": 6 + 24, "epochs": 36}
    expected = next((count for name, count in steps.items() if name in str(change[0])), 24)
    assert step_of(stage / "checkpoints" / "last.ckpt") == expected


def test_another_model_or_adapter_is_refused(
    chain: Path, broken: Path, resuming: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    for group, change in (("adapter", {"adapter": True}), ("model", {})):
        other = [] if change else ["--model.init_args.pretrained", chain / "models" / "assistant"]
        assert run(resuming.fit(chain, broken.name, *other, **change)) == 1
        assert f"{group}: " in capsys.readouterr().err
    other = ["--model.init_args.pretrained", chain / "models" / "assistant", "--allow_changed", "model"]
    assert run(resuming.fit(chain, copied(broken, "misfit").name, *other)) == 1
    assert "the checkpoint's weights do not fit this model" in capsys.readouterr().err


def test_a_rationale_file_that_changed_is_other_ground(
    chain: Path, broken: Path, resuming: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    path = chain / "augment" / "rationales-train.jsonl"
    content = path.read_bytes()
    try:
        path.write_bytes(content + (chain / "teacher" / "rationales-train.jsonl").read_bytes().split(b"\n")[0] + b"\n")
        assert run(resuming.fit(chain, broken.name)) == 1
    finally:
        path.write_bytes(content)
    assert "data: augment/rationales-train.jsonl was " in capsys.readouterr().err


def test_an_unknown_change_cannot_be_allowed(
    chain: Path, resuming: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(resuming.fit(chain, "broken", "--allow_changed", "data,sed")) == 1
    assert "there is no 'sed'; it may name seed, batch, data" in capsys.readouterr().err


# -- damage -------------------------------------------------------------------------------------------------------


def test_a_damaged_last_checkpoint_is_named_and_the_previous_one_taken(
    chain: Path,
    broken: Path,
    resuming: ModuleType,
    whole: dict[bool, Path],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stage = copied(broken, "damaged")
    last = stage / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    assert run(resuming.fit(chain, "damaged")) == 0
    assert "last.ckpt: the checkpoint is damaged" in caplog.text
    assert "The fit goes on from" in caplog.text
    assert "previous.ckpt (step 3)" in caplog.text
    assert resuming.differences(whole[False], stage) == []
    stage = copied(broken, "ruined")
    for path in (stage / "checkpoints").glob("*.ckpt"):
        path.write_bytes(b"")
    assert run(resuming.fit(chain, "ruined")) == 1
    said = capsys.readouterr().err
    assert "last.ckpt: the checkpoint is damaged" in said
    assert "previous.ckpt: the checkpoint is damaged" in said


def test_a_checkpoint_of_a_later_or_an_earlier_version_is_refused(
    chain: Path, broken: Path, resuming: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, change, told in (
        ("later", {"format": 2}, "a later version of mulcot wrote it (format 2, this one reads 1)"),
        ("earlier", {"ground": None, "format": 1}, "was begun by another version of mulcot"),
    ):
        last = copied(broken, name) / "checkpoints" / "last.ckpt"
        checkpoint = torch.load(last, weights_only=True)
        checkpoint["mulcot"] |= change
        torch.save(checkpoint, last)
        (last.parent / "sha256.json").unlink()
        assert run(resuming.fit(chain, name)) == 1
        assert told in capsys.readouterr().err


def test_an_adapters_checkpoint_holds_the_adapter_alone(chain: Path, resuming: ModuleType) -> None:
    stage = begun(resuming, chain, "small", adapter=True)
    last = stage / "checkpoints" / "last.ckpt"
    trained = sum(value.numel() for value in torch.load(last, weights_only=True)["state_dict"].values())
    assert trained > 1000
    assert last.stat().st_size <= 1.1 * 12 * trained + 1e6


# -- the stage's folder -------------------------------------------------------------------------------------------


def test_two_fits_do_not_work_in_one_folder(
    chain: Path, broken: Path, resuming: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(broken / ".lock", "taken"):
        assert run(resuming.fit(chain, broken.name)) == 75
    said = capsys.readouterr().err
    assert f"{broken}: another process works on this stage" in said
    assert f"process {os.getpid()} on" in said


def test_what_a_killed_process_left_is_swept_at_the_start(chain: Path, broken: Path, resuming: ModuleType) -> None:
    stage = copied(broken, "swept")
    left = [stage / ".0123456789abcdef.tmp", stage / "checkpoints" / ".last.ckpt.0123abcd.tmp"]
    kept = [stage / "mine.tmp", stage / ".mine.tmp"]
    for path in (*left, *kept):
        path.write_bytes(b"half")
    with pytest.raises(RuntimeError, match="pulled the plug"):
        run(resuming.fit(chain, "swept", *resuming.strike("on_train_start", number=0)))
    assert [path.exists() for path in (*left, *kept)] == [False, False, True, True]


# -- numbers, memory, disk ----------------------------------------------------------------------------------------


def test_a_gradient_that_is_no_number_stops_before_the_step(
    chain: Path, resuming: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil = json.dumps([{"class_path": "resuming.SpoiltGradient", "init_args": {"step": 4}}])
    assert run(resuming.fit(chain, "spoilt", "--trainer.callbacks", spoil)) == 1
    said = capsys.readouterr().err
    assert "step 5: the gradient of model." in said
    assert "is not a finite number, though every loss is, on the posts train-" in said
    assert "the step was not taken" in said
    checkpoint = torch.load(chain / "spoilt" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    assert all(bool(value.isfinite().all()) for value in checkpoint["state_dict"].values())


def test_memory_that_runs_out_says_what_to_lower(
    chain: Path, resuming: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.student.StudentStage.training_step", lambda *_: torch.empty(2**60))
    assert run(resuming.fit(chain, "greedy")) == 1
    said = capsys.readouterr().err
    assert "out of memory (" in said
    for name in ("accumulate_grad_batches", "max_tokens", "activation_checkpointing", "quantise", "eval_max_tokens"):
        assert name in said
