"""Frozen weights in 4 or 8 bits, of the language model alone (bitsandbytes)."""

from __future__ import annotations

import importlib
import logging
from typing import Any, Final, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from mulcot.types import InputError

Quantise = Literal["4bit", "8bit"]
_BLOCK: Final = 64
"""Weights of NF4 that share a scale. The kernel for CPUs with AVX-512 of bitsandbytes 0.50.2 begins blocks anew with
each row, the others do not: rows of another length come back with an error of 25% instead of 9%."""


def quantise_language(model: PreTrainedModel, form: Quantise, compute: torch.dtype, device: torch.device) -> None:
    """Freezes the linear layers of the language model in 4 bits (NF4, double quantisation) or in 8 (LLM.int8).

    In place. Head, embeddings, vision tower and projection stay as they are. The model keeps its name, so that an
    adapter on it names the model whose weights are whole, and loads onto that without bitsandbytes.

    Args:
        model: without an adapter, on the CPU.
        form: how.
        compute: in what a 4-bit layer multiplies; an 8-bit one does in integers.
        device: where the layers go one by one as they shrink.

    Raises:
        InputError: bitsandbytes is not installed, or computes something else for these layers.
    """
    bnb = _bitsandbytes()
    # At every call of every layer it says that inputs are cast to fp16, as this method has it.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    decoder = model.get_decoder()
    for name, layer in list(decoder.named_modules()):
        if type(layer) is nn.Linear:
            if form == "4bit" and device.type == "cpu" and layer.in_features % _BLOCK:
                raise InputError(
                    f"4bit: on a CPU bitsandbytes takes no layer whose inputs are not a multiple of {_BLOCK}, and "
                    f"{name} of {model.name_or_path} has {layer.in_features}: take 8bit, or a GPU"
                )
            made = _in_4_bits(bnb, layer, compute, device) if form == "4bit" else _in_8_bits(bnb, layer, device)
            made.bias = layer.bias
            decoder.set_submodule(name, made.requires_grad_(False).train(layer.training))
    setattr(model, f"is_loaded_in_{form}", True)  # by which peft takes its layers for bitsandbytes


def _in_4_bits(bnb: Any, layer: nn.Linear, compute: torch.dtype, device: torch.device) -> nn.Module:
    of_blocks = {"compress_statistics": True, "quant_type": "nf4"}
    made = bnb.nn.Linear4bit(
        layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=compute, device="meta", **of_blocks
    )
    made.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, module=made, **of_blocks).to(device)
    # On a CPU with AVX512-BF16 it would repack its weight at the first evaluation, into a form that computes in bf16
    # and passes no gradient on: after a validation nothing below the last layer would be trained any more.
    made.support_avx512bf16_for_cpu = False
    return made


def _in_8_bits(bnb: Any, layer: nn.Linear, device: torch.device) -> nn.Module:
    made = bnb.nn.Linear8bitLt(
        layer.in_features,
        layer.out_features,
        layer.bias is not None,
        has_fp16_weights=False,
        threshold=6.0,  # of LLM.int8: channels with larger inputs are multiplied in floating point
        device="meta",
    )
    made.weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False).to(device)
    return made


def _bitsandbytes() -> Any:
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise InputError(
            f"quantised weights need bitsandbytes ({error}): `pip install mulcot[quantised]`, or leave out "
            "model.init_args.quantise and assistant_quantise"
        ) from error
