"""A fit without a validation has no best epoch: it is refused before its first step where that can be known."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

MAX_STEPS = "trainer.max_steps=3 ends the fit before its first validation, which is due after step 12"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--trainer.max_steps", 3), MAX_STEPS),
        (("--trainer.max_steps", 23, "--trainer.check_val_every_n_epoch", 2), "is due after step 24"),
        (("--trainer.max_steps", 2, "--trainer.val_check_interval", 5), "is due after step 3"),
        (("--trainer.check_val_every_n_epoch", 3), "trainer.max_epochs=2 ends the fit before its first validation"),
        (("--trainer.limit_val_batches", 0), "trainer.limit_val_batches=0 leaves the fit without a validation"),
    ],
)
def test_a_fit_that_would_end_before_its_first_validation_takes_no_step(
    chain: Path,
    resuming: ModuleType,
    capsys: pytest.CaptureFixture[str],
    given: tuple[object, ...],
    told: str,
) -> None:
    stage = f"unvalidated-{abs(hash(told))}"
    assert resuming.run(resuming.fit(chain, stage, *given, "--checkpoints.every_steps", 1)) == 1
    said = capsys.readouterr().err
    assert told in said
    assert "the best epoch" in said
    assert not (chain / stage / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize(
    "given",
    [
        ("--trainer.max_steps", 12),
        ("--trainer.max_steps", 3, "--trainer.val_check_interval", 0.25),
        ("--trainer.max_steps", 14, "--trainer.check_val_every_n_epoch", "null", "--trainer.val_check_interval", 28),
    ],
)
def test_a_fit_that_ends_with_its_first_validation_has_a_best_epoch(
    chain: Path, resuming: ModuleType, given: tuple[object, ...]
) -> None:
    stage = f"validated-{given[1]}"
    assert resuming.run(resuming.fit(chain, stage, *given)) == 0
    assert resuming.step_of(chain / stage / "checkpoints" / "best.ckpt") == given[1]


def test_a_fit_that_ended_before_its_first_validation_says_so_and_can_go_on(
    chain: Path, resuming: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = {"monitor": "loss/total", "stopping_threshold": 1e9, "check_on_train_epoch_end": True}
    callbacks = json.dumps([{"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": stop}])
    late = ("--trainer.check_val_every_n_epoch", 2, "--trainer.callbacks", callbacks)
    assert resuming.run(resuming.fit(chain, "hurried", *late)) == 1
    said = capsys.readouterr().err
    assert "the fit ended at step 12 without a validation, by which the best epoch is chosen: train longer" in said
    assert "trainer.val_check_interval" in said
    last = chain / "hurried" / "checkpoints" / "last.ckpt"
    assert resuming.step_of(last) == 12
    assert resuming.run(resuming.fit(chain, "hurried", *late)) == 0
    assert resuming.step_of(last.with_name("best.ckpt")) == 24
    # Another stage's checkpoint, behind which there is nothing to train.
    assert resuming.run(resuming.fit(chain, "borrowed", *late, "--ckpt_path", last)) == 1
    assert "the fit ended at step 24 without a validation" in capsys.readouterr().err
