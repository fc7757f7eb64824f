"""A resumed fit has the metrics of the steps before: those that callbacks watch, and those in a logger's file."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path
from types import ModuleType

import pytest
import torch

_CALLBACKS = "lightning.pytorch.callbacks."
STOPPING = {
    "class_path": _CALLBACKS + "EarlyStopping",
    "init_args": {"monitor": "val/selection", "patience": 50, "mode": "max"},
}


def watching(folder: Path, *others: dict[str, object]) -> tuple[str, str]:
    """The options that put two callbacks which watch a metric into a fit."""
    keeping = {
        "class_path": _CALLBACKS + "ModelCheckpoint",
        "init_args": {"dirpath": str(folder), "monitor": "val/accuracy", "mode": "max", "filename": "mine"},
    }
    return "--trainer.callbacks", json.dumps([STOPPING, keeping, *others])


@pytest.mark.slow
def test_callbacks_that_watch_a_metric_find_it_after_a_validation(
    chain: Path, resuming: ModuleType, tmp_path: Path
) -> None:
    """At the end of an epoch Lightning asks them, before and after a resume; the last save was before that."""
    rare = ("--checkpoints.every_steps", "null")
    plug = {"class_path": "resuming.SignalAt", "init_args": {"hook": "on_train_batch_start", "step": 15, "number": 0}}
    assert resuming.run(resuming.fit(chain, "watched", *watching(tmp_path / "watched"), *rare)) == 0
    with pytest.raises(RuntimeError, match="pulled the plug"):
        resuming.run(resuming.fit(chain, "watched-on", *watching(tmp_path / "on", plug), *rare))
    assert resuming.step_of(chain / "watched-on" / "checkpoints" / "last.ckpt") == 12
    assert resuming.run(resuming.fit(chain, "watched-on", *watching(tmp_path / "on"), *rare)) == 0
    assert resuming.differences(chain / "watched", chain / "watched-on") == []
    mine = [torch.load(tmp_path / name / "mine.ckpt", weights_only=True) for name in ("watched", "on")]
    assert mine[0]["global_step"] == mine[1]["global_step"]
    assert all(torch.equal(value, mine[1]["state_dict"][name]) for name, value in mine[0]["state_dict"].items())


def test_the_file_of_a_csv_logger_is_set_aside(
    chain: Path, resuming: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: object
) -> None:
    place = {"save_dir": str(tmp_path), "name": "", "version": "csv"}
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": place}
    given = ("--trainer.logger", json.dumps(logger))
    for step in (6, 7):
        strike = resuming.strike("on_train_batch_start", step=step, batch=2 * step, number=int(signal.SIGTERM))
        assert resuming.run(resuming.fit(chain, "csv", *given, *strike)) == 143
    with pytest.raises(RuntimeError, match="pulled the plug"):  # before anything new is saved
        resuming.run(resuming.fit(chain, "csv", *given, *resuming.strike("on_train_start", number=0)))
    assert resuming.run(resuming.fit(chain, "csv", *given)) == 0
    said = capsys.readouterr()
    folder = tmp_path / "csv"
    assert f"{folder}/metrics.csv is kept as metrics-before-step-6.csv" in said.out
    assert "will be deleted" not in said.err + "".join(str(warning.message) for warning in recwarn)
    steps = {path.name: _steps(path) for path in sorted(folder.glob("*.csv"))}
    assert steps["metrics-before-step-6.csv"] == {0, 1, 2, 3, 4, 5}
    assert steps["metrics.csv"] | set().union(*steps.values()) == set(range(24))

    asked = ["test", "--config", "student.yaml", *resuming.QUICK, "--run_dir", chain, "--stage", "csv", *given]
    whole = (folder / "metrics.csv").read_bytes()
    assert resuming.run(asked) == 0
    assert (folder / "metrics-before-test.csv").read_bytes() == whole
    assert resuming.run(resuming.fit(chain, "csv", *given, "--fresh", "--trainer.max_epochs", 1)) == 0
    assert "test/accuracy" in (folder / "metrics-before-fit.csv").read_text().splitlines()[0]
    assert _steps(folder / "metrics.csv") == set(range(12))


def _steps(path: Path) -> set[int]:
    with path.open(newline="") as file:
        return {int(row["step"]) for row in csv.DictReader(file) if row["loss/total"]}
