"""The layers of a language model, computed in other ways: again in the backward pass, or compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

import torch
from torch import nn

from mulcot.models.parts import base_model
from mulcot.types import InputError

_CACHES: Final = ("cache", "past_key_values")
"""The argument in which a layer gets keys and values of earlier tokens, by version of transformers."""


def checkpoint_activations(model: nn.Module) -> None:
    """Has every layer keep its input alone for the backward pass and compute the rest again there.

    Language model and vision tower; a tower that is not trained keeps nothing anyway. Nothing changes in eval mode.

    Args:
        model: with or without an adapter.

    Raises:
        InputError: the model's layers cannot.
    """
    base: Any = base_model(model)
    # Newer releases of transformers (5.24 for one) have another name for it and warn at the old one.
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise InputError(
            f"model.init_args.activation_checkpointing: {type(base).__name__} cannot do it ({error}); set it to false"
        ) from error
    base.disable_input_require_grads()  # for reentrant checkpoints, which pass no gradient to a frozen base's adapter


def compile_layers(model: nn.Module) -> None:
    """Has `torch.compile` make kernels of every decoder layer of the language model, in place.

    Names of weights stay. All layers share their kernels, which are made for any length. A layer that is given a cache
    of keys and values runs as before: it would be compiled once for every layer and state of the cache.

    Args:
        model: with or without an adapter.

    Raises:
        InputError: the language model has no list of layers.
    """
    decoder: Any = cast(Any, base_model(model)).get_decoder()
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise InputError(
            f"model.init_args.compile_layers: {type(decoder).__name__} has no list of layers; set it to false"
        )
    for layer in layers:
        layer.forward = _compiled(layer.forward)


def _compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    compiled = torch.compile(forward, dynamic=True)

    def run(*args: Any, **kwargs: Any) -> Any:
        cached = any(kwargs.get(name) is not None for name in _CACHES)
        return forward(*args, **kwargs) if cached else compiled(*args, **kwargs)

    return run
