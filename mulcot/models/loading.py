"""Any Hugging Face vision-language model, by name or folder, with or without an adapter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from mulcot.types import InputError, MissingInputError

DType = Literal["float32", "bfloat16"]
MODEL_FOLDER: Final = "model"


@dataclass
class Lora:
    """A low-rank adapter on the language model's linear layers; the vision tower is left alone."""

    r: int = 16
    """Rank of the update."""
    alpha: int = 32
    """The update is scaled by alpha / r."""
    dropout: float = 0.05
    """Dropout before the adapter."""
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    """Names of the linear layers that are adapted."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model's weights come from."""

    name: str
    """A folder, or a name on the hub."""
    checkpoint: Path | None = None
    """A Lightning checkpoint whose weights replace those of `name`."""
    lora: Lora | None = None
    """The adapter that the checkpoint's weights belong to."""


def find_model(given: str) -> ModelSource:
    """Takes a finished stage of a run, a `model/` folder, a Lightning `.ckpt`, or a name on the hub.

    Raises:
        MissingInputError: `given` looks like a path and nothing usable is there.
    """
    path = Path(given)
    if path.suffix == ".ckpt":
        if not path.is_file():
            raise MissingInputError(f"{path} is missing: give a checkpoint that `mulcot fit` wrote")
        return _source_of(path)
    if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        return ModelSource(str(path.resolve()))  # absolute: an adapter names its base by it, wherever it is loaded
    if (path / MODEL_FOLDER).is_dir():
        if not (path / "manifest.json").is_file():
            raise MissingInputError(
                f"{path} is not finished (it has no manifest.json): run its `mulcot fit` to the end"
            )
        return ModelSource(str((path / MODEL_FOLDER).resolve()))
    if path.exists() or given.startswith((".", "/", "~")) or len(path.parts) != 2:
        raise MissingInputError(
            f"{path} holds no model: `mulcot fit --config assistant.yaml` (an assistant), `mulcot fit --config "
            f"student.yaml` (a student) or `mulcot tiny-models` (the embedded pair) makes one"
        )
    return ModelSource(given)


def load_processor(given: str, *, trust_remote_code: bool = False) -> Any:
    """The processor (tokenizer, image processor, chat template) that belongs to a model."""
    return AutoProcessor.from_pretrained(find_model(given).name, trust_remote_code=trust_remote_code)


def load_model(
    given: str,
    *,
    dtype: DType = "float32",
    attention: str = "sdpa",
    lora: Lora | None = None,
    freeze_vision: bool = False,
    trust_remote_code: bool = False,
) -> nn.Module:
    """Loads a vision-language model for training or inference.

    Args:
        given: see `find_model`. A folder with an adapter gives its base with the adapter on it, which goes on training.
        dtype: of the weights as loaded; an adapter is always kept in fp32.
        attention: transformers' attention implementation (`sdpa`, `eager`, `flash_attention_2`).
        lora: puts a new adapter on a frozen base; None trains what the folder holds.
        freeze_vision: keeps the vision tower and its projection as they are.
        trust_remote_code: runs code that comes with the model; only for a model that you have read.

    Returns:
        The model, a `PeftModel` where there is an adapter; `requires_grad` says what is trained.
    """
    source = find_model(given)
    adapter = Path(source.name) / "adapter_config.json"
    base_name = json.loads(adapter.read_text())["base_model_name_or_path"] if adapter.is_file() else source.name
    try:
        model: nn.Module = AutoModelForImageTextToText.from_pretrained(
            base_name,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
    except OSError as error:
        raise InputError(f"{base_name}: no model could be loaded ({str(error).splitlines()[0]})") from error
    if freeze_vision:
        for parameter in vision_parameters(cast(PreTrainedModel, model)):
            parameter.requires_grad_(False)
    if adapter.is_file():
        if lora is not None:
            raise InputError(
                f"{source.name} has an adapter already: leave out model.init_args.lora to train it on, or give a "
                f"merged model (`mulcot export`)"
            )
        model = PeftModel.from_pretrained(cast(PreTrainedModel, model), source.name, is_trainable=True)
    lora = lora or source.lora
    if lora is not None:
        model = add_lora(cast(PreTrainedModel, model), lora)
    if source.checkpoint is not None:
        load_trained(model, _read_checkpoint(source.checkpoint)["state_dict"])
    return model.train()


def add_lora(model: PreTrainedModel, lora: Lora) -> nn.Module:
    """Freezes `model` and puts an adapter in fp32 on the linear layers of its language model."""
    names = language_layers(model, lora.targets)
    if not names:
        raise InputError(f"model.init_args.lora.targets {lora.targets} name no linear layer of the language model")
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=names, bias="none")
    return get_peft_model(model, config, autocast_adapter_dtype=True)


def language_layers(model: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    """The full names of the language model's linear layers whose last name is in `targets`."""
    inside = {id(module) for module in model.get_decoder().modules()}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) in inside and name.rsplit(".", 1)[-1] in targets
    ]


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


def head(model: nn.Module) -> nn.Module:
    """The output projection from hidden states to logits."""
    return cast(nn.Module, base_model(model).get_output_embeddings())


def head_rows(model: nn.Module) -> int:
    """Rows of the head: how many ids a next token can have."""
    return int(cast(Tensor, head(model).weight).shape[0])


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained, by name; tied ones once."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def load_trained(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Puts the trained weights of a stage's checkpoint, whose names carry the prefix `model.`, into `model`.

    Raises:
        InputError: a weight of the checkpoint has no place in the model, or one that the model trains is missing.
    """
    missing, unexpected = model.load_state_dict(
        {name.removeprefix("model."): value for name, value in state.items()}, strict=False
    )
    absent = sorted(set(missing) & set(trained_state(model)))
    if unexpected or absent:
        raise InputError(
            f"the checkpoint belongs to another model: unexpected {sorted(unexpected)[:3]}, missing {absent[:3]}"
        )


def _read_checkpoint(path: Path) -> dict[str, Any]:
    return cast(dict[str, Any], torch.load(path, map_location="cpu", weights_only=True))


def _source_of(path: Path) -> ModelSource:
    """The model that a checkpoint was trained from, by our own key in it, not by Lightning's hyper-parameters."""
    checkpoint = _read_checkpoint(path)
    if "mulcot" not in checkpoint:
        raise InputError(f"{path} was not written by mulcot: it does not name the model that it belongs to")
    origin = checkpoint["mulcot"]
    return ModelSource(find_model(origin["pretrained"]).name, path, Lora(**origin["lora"]) if origin["lora"] else None)
