"""What a loaded vision-language model is made of: its body, its head, its vision tower, what of it is trained."""

from __future__ import annotations

from typing import Any, cast

from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from mulcot.losses import Head
from mulcot.types import InputError


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


def hidden_states(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The last hidden states `[B, L, hidden]`, before the head, so that the head sees only what it must."""
    body = base_model(model).model
    return cast(Tensor, body(**inputs, use_cache=False).last_hidden_state)


def hidden_layers(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """The hidden states `[B, L, hidden]` behind the embedding and behind every layer; the head sees the last one."""
    body = base_model(model).model
    return tuple(body(**inputs, use_cache=False, output_hidden_states=True).hidden_states)


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
    softcap = getattr(base_model(model).config.get_text_config(), "final_logit_softcapping", None)
    return Head(weight, layer.bias, None if softcap is None else float(softcap))


def head_rows(model: nn.Module) -> int:
    """Rows of the head: how many ids a next token can have."""
    return int(cast(Tensor, head(model).weight).shape[0])


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained, by name; tied ones once."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
