"""What the FSDP2 strategy refuses; tests/test_sharded.py shows what it computes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

from mulcot.checkpoints import DurableCheckpointIO
from mulcot.models import load_model, shard
from mulcot.sharded_strategy import ShardedStrategy
from mulcot.types import InputError


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path, made = tmp_path / "last.ckpt", tmp_path / "made"
    torch.save({"state_dict": {}, "callbacks": Hostile(made)}, path)
    strategy = ShardedStrategy()
    strategy.checkpoint_io = DurableCheckpointIO()
    with pytest.raises(InputError, match=r"last\.ckpt: refused, because loading it would run code"):
        strategy.load_checkpoint(path, weights_only=False)
    assert not made.exists()
    torch.load(path, weights_only=False)  # it is what it seems to be
    assert made.is_dir()


def test_checkpoints_are_single_files_and_a_process_waits_as_long_as_it_is_told() -> None:
    strategy = ShardedStrategy(timeout_minutes=2)
    assert isinstance(strategy, ModelParallelStrategy)
    assert strategy._save_distributed_checkpoint is False
    assert strategy._timeout is not None
    assert strategy._timeout.total_seconds() == 120


def test_quantised_weights_and_models_without_layers_are_refused(embedded: Path) -> None:
    model = load_model(str(embedded / "models" / "student"))
    model.is_loaded_in_8bit = True
    with pytest.raises(InputError, match=r"model\.init_args\.quantise: quantised weights cannot be spread"):
        shard(model, nn.ModuleDict(), None)  # type: ignore[arg-type]
    model.is_loaded_in_8bit = False
    model._no_split_modules = None
    with pytest.raises(InputError, match="does not say what its layers are"):
        shard(model, nn.ModuleDict(), None)  # type: ignore[arg-type]
