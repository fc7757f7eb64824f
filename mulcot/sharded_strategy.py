"""FSDP2 as a strategy of Lightning: weights, gradients and optimizer states spread over processes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, cast

from lightning import Trainer
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from mulcot.models import gathered, is_sharded, shard, spread_like, whole_on_first


class ShardedStage(Protocol):
    """What is spread of a stage."""

    model: nn.Module
    """The model that is trained."""
    projections: nn.ModuleDict
    """What is trained beside it."""


class ShardedStrategy(ModelParallelStrategy):
    """Fully sharded data parallel training (FSDP2), where weights, gradients and optimizer states need more memory.

    Each process keeps its share of everything and gathers one layer at a time. While a fit evaluates, every process
    holds the whole weights, and outside of a fit nothing is spread. An assistant beside the student is whole on every
    process: it has neither gradients nor optimizer states, and `assistant_dtype` and `assistant_quantise` shrink it.

    Checkpoints are those of any other strategy, one file with whole tensors, written and read by the Trainer's
    CheckpointIO: Lightning's own format for this strategy has pickled metadata, and it reads a single file past the
    CheckpointIO. So a fit can go on with any strategy and number of processes.

    Args:
        timeout_minutes: how long a process waits for the others before it gives up.
    """

    def __init__(self, timeout_minutes: float = default_pg_timeout.total_seconds() / 60) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            timeout=timedelta(minutes=timeout_minutes),
        )
        self._evaluating = ExitStack()

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning hands the optimizers' states over."""
        return True

    def setup_environment(self) -> None:
        """Starts the processes' group: all of them share the data, on whatever node."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        """Spreads the model that is to be trained, once it is loaded."""
        stage = cast(ShardedStage, self.lightning_module)
        if trainer.training and not is_sharded(stage.model):
            shard(stage.model, stage.projections, self.device_mesh["data_parallel"])
        super().setup(trainer)

    def on_validation_start(self) -> None:
        """Has the weights whole until the end: processes have different batches."""
        self._evaluating.enter_context(gathered(cast(ShardedStage, self.lightning_module).model))

    def on_validation_end(self) -> None:
        """See `on_validation_start`; Lightning asks the strategy last, when callbacks have no more questions."""
        self._evaluating.close()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: the stage itself puts what is trained into a checkpoint."""
        return {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state, gathered tensor by tensor, on the process that writes it."""
        return cast(dict[str, Any], tree_map_only(Tensor, whole_on_first, optimizer.state_dict()))

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint as every other strategy does."""
        return super(ModelParallelStrategy, self).load_checkpoint(checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Puts this process's parts of a checkpoint's weights in place."""
        assert self.lightning_module is not None
        places = dict(self.lightning_module.named_parameters())
        state = {name: spread_like(places.get(name), value) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Puts this process's parts of the optimizers' states in place."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            spread = {
                number: {name: _spread(weights[number], value) for name, value in values.items()}
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": spread})


def _spread(weight: Tensor, value: Any) -> Any:
    """A moment as its weight is spread; a number, such as the count of steps, as it is."""
    return spread_like(weight, value) if isinstance(value, Tensor) and value.shape == weight.shape else value
