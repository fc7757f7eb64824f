"""A resumed fit has the metrics of the steps before: those that callbacks watch, and those in a logger's file."""

from __future__ import annotations

import json
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
