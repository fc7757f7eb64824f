"""What a loaded vision-language model is made of: its body, its head, its vision tower, what of it is trained."""

from __future__ import annotations

from typing import Any, Final, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from mulcot.losses import Head
from mulcot.types import InputError

_TURNED_BYTES: Final = 256 * 2**20


def vision_parameters(model: PreTrainedModel) -> list[nn.Parameter]:
    """The parameters outside the language model and the head: the vision tower and its projection."""
    head = model.get_output_embeddings()
    inside = {id(p) for module in (model.get_decoder(), head) if module is not None for p in module.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in inside]


def base_model(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face model below an adapter's wrapper; the adapter's layers stay in place inside it."""
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


def merge_adapter(model: nn.Module) -> nn.Module:
    """The model with its adapter, if it has one, merged into the weights."""
    return cast(Any, model).merge_and_unload() if isinstance(model, PeftModel) else model


def merged_if_exact(model: nn.Module) -> nn.Module:
    """The model with its adapter merged where that changes nothing but rounding of fp32; else the model as it is.

    An adapter beside the weights takes a third of the time of a small model's pass. In bf16 the sum would be rounded to
    the weights' eight bits, and quantised weights would be quantised again.

    Args:
        model: of which no adapter is to be trained or saved any more.
    """
    if not isinstance(model, PeftModel) or any(
        parameter.dtype != torch.float32 for parameter in model.parameters() if parameter.ndim > 1
    ):
        return model
    return merge_adapter(model)


def head(model: nn.Module) -> nn.Module:
    """The output projection from hidden states to logits."""
    return cast(nn.Module, base_model(model).get_output_embeddings())


def head_parts(model: nn.Module) -> Head:
    """The output projection as tensors, for the chunked head; of a tied head the weight is the embedding.

    Raises:
        InputError: it is not a plain linear layer (an adapter is on it, or it is quantised or sharded), so that its
            weight alone does not say what it computes.
    """
    layer = head(model)
    weight = cast(Tensor, layer.weight)
    # A subclass of either (bitsandbytes, torchao, parametrizations, DTensor) computes something else.
    if type(layer) is not nn.Linear or type(weight) is not nn.Parameter or not weight.is_floating_point():
        package = type(layer).__module__.partition(".")[0]
        raise InputError(
            f"the model's head is no plain linear layer but {type(layer).__name__} of {package} with {weight.dtype} "
            f"weights ({type(weight).__name__}): keep adapters, quantisation and sharding off it"
        )
    return Head(weight, layer.bias, _softcap(model))


def logits(model: nn.Module, hidden: Tensor, turned: Tensor | None = None) -> Tensor:
    """The logits `[..., vocab]` of hidden states `[..., hidden]`, whatever the head is made of.

    Args:
        model: the model.
        hidden: its last hidden states.
        turned: see `turned_head`.
    """
    layer = head(model)
    scores: Tensor = layer(hidden) if turned is None else hidden @ turned
    softcap = _softcap(model)
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def turned_head(model: nn.Module) -> Tensor | None:
    """The head's weight `[hidden, vocab]`, copied for many products with a few hidden states each.

    On a CPU they take a third less time than with the weight as it lies (MKL, 16 rows, fp32; for one row half). None
    where that is not known, or the copy would take more than 256 MiB.

    Args:
        model: the model.
    """
    layer = head(model)
    weight = cast(Tensor, layer.weight)
    plain = type(layer) is nn.Linear and type(weight) is nn.Parameter and layer.bias is None
    if not plain or weight.device.type != "cpu" or weight.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return None
    return weight.detach().t().contiguous() if weight.nbytes <= _TURNED_BYTES else None


def _softcap(model: nn.Module) -> float | None:
    softcap = getattr(base_model(model).config.get_text_config(), "final_logit_softcapping", None)
    return None if softcap is None else float(softcap)


def head_rows(model: nn.Module) -> int:
    """Rows of the head: how many ids a next token can have."""
    return int(cast(Tensor, head(model).weight).shape[0])


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name; tied ones once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
