"""A model whose weights are spread over processes (FSDP2), and the moments at which they are whole again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar, cast

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from mulcot.models.parts import base_model
from mulcot.types import InputError

_ROOT: Final = "mulcot_root"
"""The attribute of a Hugging Face model that holds its `_Root`, in a tuple, so that it is no part of the model."""
Result = TypeVar("Result")


class _Root(nn.Module):
    """What FSDP2 takes for the model: a body's pass is one call of it, whatever of the model runs in that.

    The stage calls neither the model's forward, which would project every token, nor the head's. So everything that
    is outside the layers (a tied embedding and head, norms, projections of losses) belongs to this module: whole from
    the pass on until its backward is over, while the head is read as a tensor and losses use the projections.

    Args:
        model: the Hugging Face model, an adapter's layers inside it.
        beside: what else of the stage is trained.
    """

    def __init__(self, model: nn.Module, beside: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.beside = beside
        self.is_whole = False

    def forward(self, run: Callable[[], Result]) -> Result:
        """What `run` gives, with the weights that are not a layer's own whole."""
        return run()


def shard(model: nn.Module, beside: nn.Module, mesh: DeviceMesh) -> None:
    """Spreads the weights over the processes, in place: every layer by itself, then all that is left together.

    Frozen weights are spread, too. Weights keep their types: autocast casts as it does elsewhere, and gradients are
    averaged in the type of what is trained.

    Args:
        model: with or without an adapter.
        beside: what else of the stage is trained.
        mesh: of one dimension.

    Raises:
        InputError: the model is quantised, or does not say which of its modules are layers.
    """
    base = base_model(model)
    if getattr(base, "is_loaded_in_4bit", False) or getattr(base, "is_loaded_in_8bit", False):
        raise InputError(
            "model.init_args.quantise: quantised weights cannot be spread over processes; set it to null, or take "
            "trainer/ddp.yaml"
        )
    names = set(base._no_split_modules or ())
    layers = [module for module in base.modules() if type(module).__name__ in names]
    if not layers:
        raise InputError(f"{type(base).__name__} does not say what its layers are; take trainer/ddp.yaml")
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    if embedding.weight is not head.weight:
        fully_shard(embedding, mesh=mesh, reshard_after_forward=True)
    root = _Root(base, beside)
    fully_shard(root, mesh=mesh, reshard_after_forward=False)
    setattr(base, _ROOT, (root,))


def is_sharded(model: nn.Module) -> bool:
    """Whether the model's weights are spread over processes, so that all have to make the same passes."""
    return _root(model) is not None


def within(model: nn.Module, run: Callable[[], Result]) -> Result:
    """Runs a pass of a model; of one whose weights are spread the whole of it must go through this.

    Args:
        model: with or without an adapter.
        run: the pass; what it gives back holds the tensors that are needed, and no other.
    """
    root = _root(model)
    return run() if root is None else cast(Result, root(run))


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Keeps all weights whole on every process, which then may make passes that the others do not make.

    For evaluation: batches differ in number, and a rationale takes as many passes as it has tokens. It takes the memory
    of the weights, without gradients and optimizer states. All processes enter and leave together. Nothing is done for
    a model that is whole anyway.

    Args:
        model: with or without an adapter.
    """
    root = _root(model)
    if root is None or root.is_whole:
        yield
        return
    root(lambda: None)  # FSDP2 takes what runs first for the root
    parts = [module for module in root.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    root.is_whole = True
    try:
        yield
    finally:
        root.is_whole = False
        for part in parts:
            part.set_reshard_after_forward(cast(nn.Module, part) is not root, recurse=False)
            part.reshard()


def _root(model: nn.Module) -> _Root | None:
    found = getattr(base_model(model), _ROOT, None)
    return None if found is None else cast(_Root, found[0])
