"""Any Hugging Face vision-language model, by name or folder, with or without an adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, cast

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from mulcot.checkpoints import read_checkpoint
from mulcot.memory import is_out_of_memory
from mulcot.models.attention import implementation
from mulcot.models.folders import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    PROCESSOR_FILES,
    check_config,
    check_model_folder,
    check_processor_files,
    check_processor_folder,
    shapes_of,
)
from mulcot.models.origins import misfit
from mulcot.models.parts import base_model, head_rows, trained_parameters, vision_parameters
from mulcot.models.processors import check_belongs, check_pictures
from mulcot.models.quantisation import Quantise, quantise_language
from mulcot.models.sources import MAKERS, Lora, ModelSource, adapter_base, as_base_of, bases, find_model
from mulcot.shown_text import first_line
from mulcot.types import InputError, MissingInputError

DType = Literal["float32", "bfloat16"]
_HUB_SECONDS: Final = 10.0
"""How long the hub has to answer; without an answer what was downloaded before is taken."""


def load_processor(given: str, *, trust_remote_code: bool = False) -> Any:
    """The processor (tokenizer, image processor, chat template) that belongs to a model.

    Raises:
        MissingInputError: `given` is neither here nor on the hub.
        InputError: what is there is no processor, or one that takes no pictures.
    """
    options = {"trust_remote_code": trust_remote_code}
    source = find_model(given)
    processor = _from_pretrained(AutoProcessor, "processor", source, options)
    if not hasattr(processor, "image_processor"):
        raise InputError(f"{given}: its {type(processor).__name__} takes no pictures; give a vision-language model")
    check_pictures(processor, source.name)
    return processor


def load_model(
    given: str,
    *,
    dtype: DType = "float32",
    attention: str = "sdpa",
    lora: Lora | None = None,
    freeze_vision: bool = False,
    trust_remote_code: bool = False,
    rows: int | None = None,
    quantise: Quantise | None = None,
    compute: DType = "float32",
    processor: Any = None,
) -> nn.Module:
    """Loads a vision-language model for training or inference.

    Args:
        given: see `find_model`. A folder or checkpoint with an adapter gives its base with the adapter on it, which
            goes on training.
        dtype: of the weights as loaded; an adapter is always kept in fp32.
        attention: transformers' attention implementation (`sdpa`, `eager`, `flash_attention_2`).
        lora: puts a new adapter on a frozen base; None trains what is there.
        freeze_vision: keeps the vision tower and its projection as they are.
        trust_remote_code: runs code that comes with the model; only for a model that you have read.
        rows: gives embeddings and head so many rows, new ones drawn at random; None leaves them.
        quantise: freezes the language model below any adapter in 4 or 8 bits, see `quantise_language`.
        compute: in what 4-bit layers multiply.
        processor: what is to encode for the model; refused where its tokens or patches are not the model's.

    Returns:
        The model, a `PeftModel` where there is an adapter; `requires_grad` says what is trained.

    Raises:
        MissingInputError: `given`, or what it was trained from, is neither here nor on the hub.
        InputError: what is there cannot be loaded in this way.
    """
    source = find_model(given)
    if lora is not None and source.adapted:
        raise InputError(
            f"{given} has an adapter already: leave out model.init_args.lora to train it on, or give a merged model "
            f"(`mulcot export`)"
        )
    options = {
        "dtype": getattr(torch, dtype),
        "attn_implementation": implementation(attention),
        "trust_remote_code": trust_remote_code,
        "use_safetensors": True,
    }
    if quantise is None:
        model = _load(source, options)
    else:
        device = torch.get_default_device()  # within a fit the trainer's, which may not hold the model as it is now
        shrink = partial(quantise_language, form=quantise, compute=getattr(torch, compute), device=device)
        with torch.device("cpu"):
            model = _load(source, options, shrink)
    if rows is not None and rows != head_rows(model):
        base_model(model).resize_token_embeddings(rows, mean_resizing=False)
    if processor is not None:
        check_belongs(base_model(model), processor, source.name)
    if freeze_vision:
        for parameter in vision_parameters(base_model(model)):
            parameter.requires_grad_(False)
    return (model if lora is None else add_lora(cast(PreTrainedModel, model), lora)).train()


def _nothing(_: nn.Module) -> None:
    """What is done to weights that stay as they are."""


def _load(source: ModelSource, options: dict[str, Any], complete: Callable[[Any], None] = _nothing) -> nn.Module:
    """The model of a source; a base, with its own checkpoint, is whole before an adapter goes on it.

    Args:
        source: the source.
        options: of transformers.
        complete: what is done to the weights below any adapter, once they are all there.
    """
    if source.base is not None:
        assert source.checkpoint is not None
        with as_base_of(source.checkpoint):
            model = _load(source.base, options, complete if source.adapted else _nothing)
        if source.lora is not None:
            model = add_lora(cast(PreTrainedModel, model), source.lora)
        weights = weights_of(read_checkpoint(source.checkpoint, mmap=True), source.checkpoint)
        load_trained(model, weights, source.checkpoint, freeze_vision=source.freeze_vision)
        if not isinstance(model, PeftModel):  # an adapter on these weights is one on the checkpoint, not on its folder
            cast(Any, model).name_or_path = str(source.checkpoint)
            complete(model)
        return model
    if not source.adapted:
        model = cast(nn.Module, _from_pretrained(AutoModelForImageTextToText, "model", source, options))
        complete(model)
        return model
    with as_base_of(Path(source.name)):
        model = _load(find_model(adapter_base(Path(source.name))), options, complete)
    return _with_adapter(cast(PreTrainedModel, model), Path(source.name))


def _with_adapter(model: PreTrainedModel, folder: Path) -> nn.Module:
    """The model under the adapter of a folder, whose weights are all that an adapter of its config has."""
    try:
        adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=True)
    except Exception as error:  # a config that does not fit ends anywhere in peft
        raise _refused(error, f"{folder}: the adapter does not fit its base") from error
    written, wanted = set(shapes_of(folder / ADAPTER_WEIGHTS)), set(get_peft_model_state_dict(adapted))
    if written != wanted:
        raise InputError(
            f"{folder / ADAPTER_WEIGHTS}: it belongs to another adapter than {ADAPTER} says: it lacks "
            f"{sorted(wanted - written)[:2]} and has {sorted(written - wanted)[:2]} beside those"
        )
    return adapted


def _from_pretrained(auto_class: Any, what: str, source: ModelSource, options: dict[str, Any]) -> Any:
    """What transformers makes of a folder or of a name on the hub."""
    name = source.name
    trusted = {"trust_remote_code": bool(options.get("trust_remote_code"))}
    if source.on_hub:
        options = options | {"local_files_only": _hub_is_silent(name)}
    else:
        (check_processor_folder if what == "processor" else check_model_folder)(Path(name), **trusted)
    try:
        if what != "processor":
            check_config(PreTrainedConfig.get_config_dict(name, **_where(options))[0], name, **trusted)
        elif source.on_hub:
            check_processor_files(*(_fetched(name, file, options) for file in PROCESSOR_FILES))
        if what != "model":
            return auto_class.from_pretrained(name, **options)
        model, report = auto_class.from_pretrained(name, output_loading_info=True, **options)
    except InputError:
        raise
    except OSError as error:
        if source.on_hub:
            raise MissingInputError(
                f"{name} is neither a folder here nor to be had from the hub ({first_line(error)}): give a folder or "
                f"a name that is there, or download it with `hf download {name}` where there is a network; {MAKERS}"
            ) from error
        raise InputError(f"{name}: no {what} could be loaded ({first_line(error)})") from error
    except Exception as error:  # damaged files end anywhere in transformers
        given = options.get("attn_implementation")
        attention = given["text_config"] if isinstance(given, dict) else given
        how = f" with attention {attention}" if attention is not None else ""
        hint = "; `sdpa` is the attention that needs no package" if attention not in (None, "sdpa") else ""
        raise _refused(error, f"{name}: no {what} could be loaded{how}", hint) from error
    if missing := sorted(report["missing_keys"]):  # transformers draws them at random
        raise InputError(
            f"{name}: {len(missing)} weights of a {type(model).__name__} are not in its files ({missing[0]}, ...): "
            "fetch the whole model, or take the config that belongs to the weights"
        )
    return model


def _where(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key == "local_files_only"}


def _fetched(name: str, file: str, options: dict[str, Any]) -> Path | None:
    """A file of a name on the hub; None where it has none."""
    quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors", "gated_repo")}
    path = cached_file(name, file, **quiet, **_where(options))
    return None if path is None else Path(path)


def _refused(error: Exception, start: str, hint: str = "") -> Exception:
    """What a library raised as the user's error; memory that ran out is told of elsewhere."""
    if is_out_of_memory(error):
        return error
    return InputError(f"{start} ({first_line(error)}){hint}")


def _hub_is_silent(name: str) -> bool:
    """Whether no answer comes from the hub: transformers would ask again and again for each file, for minutes."""
    try:
        HfApi().model_info(name, timeout=_HUB_SECONDS)
    except HfHubHTTPError:
        return False  # a refusal is an answer, too, and transformers explains it
    except Exception:  # a missing connection, in the words of whatever HTTP library huggingface_hub uses
        return True
    return False


def add_lora(model: PreTrainedModel, lora: Lora) -> nn.Module:
    """Freezes `model` and puts an adapter in fp32 on the linear layers of its language model."""
    names = language_layers(model, lora.targets, vision=lora.vision)
    if not names:
        raise InputError(f"model.init_args.lora.targets {lora.targets} name no linear layer of the language model")
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=names, bias="none")
    return get_peft_model(model, config, autocast_adapter_dtype=True)


def language_layers(model: PreTrainedModel, targets: Sequence[str], *, vision: bool = False) -> list[str]:
    """The full names of the linear layers whose last name is in `targets`.

    Args:
        model: the model.
        targets: last names.
        vision: takes those of the vision tower, too, and not of the language model alone.
    """
    inside = {id(module) for module in (model if vision else model.get_decoder()).modules()}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) in inside and name.rsplit(".", 1)[-1] in targets
    ]


def text_config(given: str, *, trust_remote_code: bool = False) -> Any:
    """The config of a model's language model, without its weights: layers, hidden size, rows of its head.

    Args:
        given: see `find_model`.
        trust_remote_code: see `load_model`.
    """
    *_, source = bases(find_model(given))
    config = _from_pretrained(AutoConfig, "config", source, {"trust_remote_code": trust_remote_code})
    return config.get_text_config()


def weights_of(checkpoint: Mapping[str, Any], path: str | Path) -> dict[str, Tensor]:
    """The trained weights of a stage's checkpoint, by their names in the model.

    Args:
        checkpoint: what was read.
        path: of the checkpoint, for the message.

    Raises:
        InputError: it holds none.
    """
    state = checkpoint.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path}: the checkpoint is damaged: it holds no state_dict of tensors")
    # The projections of losses on hidden states lie beside them and serve training alone.
    return {name.removeprefix("model."): value for name, value in state.items() if str(name).startswith("model.")}


def load_trained(
    model: nn.Module, weights: Mapping[str, Tensor], path: str | Path, *, freeze_vision: bool = False
) -> None:
    """Puts the trained weights of a stage's checkpoint into `model`.

    Args:
        model: the model that the stage trained.
        weights: see `weights_of`.
        path: of the checkpoint, for the message.
        freeze_vision: whether the stage kept the vision tower, also where `model` could train it.

    Raises:
        InputError: a weight of the checkpoint has no place in the model or another shape, or one that the stage trained
            is missing.
    """
    kept = {id(parameter) for parameter in vision_parameters(base_model(model))} if freeze_vision else set()
    own = model.state_dict(keep_vars=True)
    trained = {name: value for name, value in trained_parameters(model).items() if id(value) not in kept}
    # torch would list all the weights of another shape, in a line each.
    if told := misfit(weights, trained | {name: own[name] for name in weights if name in own}):
        raise InputError(
            f"{path}: the checkpoint's weights do not fit this model: {told}; take the model and the adapter that it "
            "was trained with (model.init_args.pretrained, model.init_args.lora), or another checkpoint"
        )
    model.load_state_dict(weights, strict=False)


def holds_all(model: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    """Whether weights are all that a model has, so that none of its own is left beside them; tied ones count as one.

    Args:
        model: the model.
        weights: see `weights_of`.
    """
    own = model.state_dict(keep_vars=True)
    held = {id(own[name]) for name in weights if name in own}
    return all(id(parameter) in held for parameter in model.parameters())
