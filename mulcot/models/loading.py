"""Any Hugging Face vision-language model, by name or folder, with or without an adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal, cast

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig, PreTrainedModel

from mulcot.checkpoints import read_checkpoint
from mulcot.models.attention import implementation
from mulcot.models.folders import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    check_adapter_folder,
    check_config,
    check_model_folder,
    check_processor_folder,
    shapes_of,
)
from mulcot.models.parts import base_model, head_rows, vision_parameters
from mulcot.models.quantisation import Quantise, quantise_language
from mulcot.ranges import Count, ShareBelowOne, Side
from mulcot.types import InputError, MissingInputError

DType = Literal["float32", "bfloat16"]
MODEL_FOLDER: Final = "model"
_MAKERS: Final = (
    "`mulcot fit --config assistant.yaml` (an assistant), `mulcot fit --config student.yaml` (a student) or "
    "`mulcot tiny-models` (the embedded pair) makes one"
)
_HUB_SECONDS: Final = 10.0
"""How long the hub has to answer; without an answer what was downloaded before is taken."""


@dataclass
class Lora:
    """A low-rank adapter on the language model's linear layers."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    r: Count = 16
    """Rank of the update."""
    alpha: Count = 32
    """The update is scaled by alpha / r."""
    dropout: ShareBelowOne = 0.05
    """Dropout before the adapter."""
    targets: Annotated[list[str], Field(min_length=1)] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    """Names of the linear layers that are adapted."""
    vision: bool = False
    """Adapts the layers of these names in the vision tower as well."""


class _Origin(BaseModel):
    """What a stage's checkpoint says, under our own key, of the model that it belongs to."""

    pretrained: str
    lora: Lora | None
    freeze_vision: bool
    labels: tuple[str, ...]
    image_size: tuple[Side, Side] | None
    pad_end: bool = False


_ORIGIN: Final = tuple(name for name, field in _Origin.model_fields.items() if field.is_required())


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from."""

    name: str
    """A folder, as an absolute path, or a name on the hub. The processor is always this one's."""
    checkpoint: Path | None = None
    """A Lightning checkpoint of a stage, whose weights go onto those of `base`."""
    base: ModelSource | None = None
    """What the checkpoint was trained from; there is one for every checkpoint."""
    lora: Lora | None = None
    """The adapter that the stage put on."""
    freeze_vision: bool = False
    """Whether the stage kept the vision tower, which the checkpoint then does not hold."""
    labels: tuple[str, ...] | None = None
    """The label set of the checkpoint; None where a folder says it."""
    image_size: tuple[int, int] | None = None
    """The picture size of the checkpoint; None where pictures keep their shape, or a folder says it."""
    pad_end: bool = False
    """Whether the pad token ends a response of the checkpoint's model."""

    @property
    def on_hub(self) -> bool:
        """Whether `name` is a name on the hub."""
        return not Path(self.name).is_absolute()

    @property
    def adapted(self) -> bool:
        """Whether there is an adapter on the model already."""
        if self.base is not None:
            return self.lora is not None or self.base.adapted
        return (Path(self.name) / ADAPTER).is_file()


def find_model(given: str) -> ModelSource:
    """Takes a finished stage of a run, a `model/` folder, a Lightning `.ckpt`, or a name on the hub.

    Two parts are a name on the hub, unless the first is a folder here: then they are a path.

    Raises:
        MissingInputError: `given` is a path and nothing usable is there, or what a checkpoint was trained from is gone.
        InputError: the checkpoint is damaged, or no stage wrote it.
    """
    path = Path(given)
    if path.suffix == ".ckpt":
        if not path.is_file():
            raise MissingInputError(f"{path} is missing: give a checkpoint that `mulcot fit` wrote")
        return _source_of(path.resolve())
    if (path / "config.json").is_file() or (path / ADAPTER).is_file():
        return ModelSource(str(path.resolve()))  # absolute: an adapter names its base by it, wherever it is loaded
    if (path / MODEL_FOLDER).is_dir():
        if not (path / "manifest.json").is_file():
            raise MissingInputError(
                f"{path} is not finished (it has no manifest.json): run its `mulcot fit` to the end"
            )
        return ModelSource(str((path / MODEL_FOLDER).resolve()))
    if path.exists() or given.startswith((".", "/", "~")) or len(path.parts) != 2 or path.parent.is_dir():
        raise MissingInputError(f"{path} holds no model: {_MAKERS}")
    return ModelSource(given)


def load_processor(given: str, *, trust_remote_code: bool = False) -> Any:
    """The processor (tokenizer, image processor, chat template) that belongs to a model.

    Raises:
        MissingInputError: `given` is neither here nor on the hub.
        InputError: what is there is no processor, or one that takes no pictures.
    """
    options = {"trust_remote_code": trust_remote_code}
    processor = _from_pretrained(AutoProcessor, "processor", find_model(given), options)
    if not hasattr(processor, "image_processor"):
        raise InputError(f"{given}: its {type(processor).__name__} takes no pictures; give a vision-language model")
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
        with _as_base_of(source.checkpoint):
            model = _load(source.base, options, complete if source.adapted else _nothing)
        if source.lora is not None:
            model = add_lora(cast(PreTrainedModel, model), source.lora)
        state = read_checkpoint(source.checkpoint, mmap=True).get("state_dict")
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise InputError(f"{source.checkpoint}: the checkpoint is damaged: it holds no state_dict of tensors")
        load_trained(model, state, freeze_vision=source.freeze_vision)
        if not isinstance(model, PeftModel):  # an adapter on these weights is one on the checkpoint, not on its folder
            cast(Any, model).name_or_path = str(source.checkpoint)
            complete(model)
        return model
    if not source.adapted:
        model = cast(nn.Module, _from_pretrained(AutoModelForImageTextToText, "model", source, options))
        complete(model)
        return model
    with _as_base_of(Path(source.name)):
        model = _load(find_model(_adapter_base(Path(source.name))), options, complete)
    return _with_adapter(cast(PreTrainedModel, model), Path(source.name))


def base_of(source: ModelSource) -> ModelSource | None:
    """What a checkpoint or an adapter goes onto; None for a model that stands for itself.

    Raises:
        MissingInputError: it is gone.
    """
    if source.base is not None or not source.adapted:
        return source.base
    with _as_base_of(Path(source.name)):
        return find_model(_adapter_base(Path(source.name)))


def bases(source: ModelSource) -> Iterator[ModelSource]:
    """A model and what it goes onto, one after the other, down to one that stands for itself.

    Raises:
        MissingInputError: one is gone.
        InputError: one is its own base.
    """
    seen: set[tuple[str, Path | None]] = set()
    below: ModelSource | None = source
    while below is not None:
        if (below.name, below.checkpoint) in seen:
            raise InputError(f"{below.checkpoint or below.name}: it is its own base; name the model that it belongs to")
        seen.add((below.name, below.checkpoint))
        yield below
        below = base_of(below)


def _adapter_base(folder: Path) -> str:
    return str(check_adapter_folder(folder)["base_model_name_or_path"])


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


_owners: ContextVar[tuple[Path, ...]] = ContextVar("owners", default=())


@contextmanager
def _as_base_of(owner: Path) -> Iterator[None]:
    """Says whose base it is that is missing; what is its own base, or that of its base, has none."""
    if owner in _owners.get():
        raise InputError(f"{owner}: it is its own base; name the model that it belongs to")
    token = _owners.set((*_owners.get(), owner))
    try:
        yield
    except MissingInputError as error:
        raise MissingInputError(f"{owner}: its base {error}") from error
    finally:
        _owners.reset(token)


def _from_pretrained(auto_class: Any, what: str, source: ModelSource, options: dict[str, Any]) -> Any:
    """What transformers makes of a folder or of a name on the hub."""
    name = source.name
    if source.on_hub:
        options = options | {"local_files_only": _hub_is_silent(name)}
    else:
        (check_processor_folder if what == "processor" else check_model_folder)(Path(name))
    try:
        if what != "processor":
            check_config(PreTrainedConfig.get_config_dict(name, **_where(options))[0], name)
        if what != "model":
            return auto_class.from_pretrained(name, **options)
        model, report = auto_class.from_pretrained(name, output_loading_info=True, **options)
    except InputError:
        raise
    except OSError as error:
        if source.on_hub:
            raise MissingInputError(
                f"{name} is neither a folder here nor to be had from the hub ({_first_line(error)}): give a folder or "
                f"a name that is there, or download it with `hf download {name}` where there is a network; {_MAKERS}"
            ) from error
        raise InputError(f"{name}: no {what} could be loaded ({_first_line(error)})") from error
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


def _refused(error: Exception, start: str, hint: str = "") -> Exception:
    """What a library raised as the user's error; memory that ran out is told of elsewhere."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error):
        return error
    return InputError(f"{start} ({_first_line(error)}){hint}")


def _hub_is_silent(name: str) -> bool:
    """Whether no answer comes from the hub: transformers would ask again and again for each file, for minutes."""
    try:
        HfApi().model_info(name, timeout=_HUB_SECONDS)
    except HfHubHTTPError:
        return False  # a refusal is an answer, too, and transformers explains it
    except Exception:  # a missing connection, in the words of whatever HTTP library huggingface_hub uses
        return True
    return False


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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


def load_trained(model: nn.Module, state: dict[str, Tensor], *, freeze_vision: bool = False) -> None:
    """Puts the trained weights of a stage's checkpoint, whose names carry the prefix `model.`, into `model`.

    Args:
        model: the model that the stage trained.
        state: the checkpoint's weights.
        freeze_vision: whether the stage kept the vision tower, also where `model` could train it.

    Raises:
        InputError: a weight of the checkpoint has no place in the model, or one that the stage trained is missing.
    """
    # The projections of losses on hidden states lie beside them and serve training alone.
    weights = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    kept = {id(parameter) for parameter in vision_parameters(base_model(model))} if freeze_vision else set()
    trained = {name for name, value in model.named_parameters() if value.requires_grad and id(value) not in kept}
    absent = sorted(set(missing) & trained)
    if unexpected or absent:
        raise InputError(
            f"the checkpoint belongs to another model: unexpected {sorted(unexpected)[:3]}, missing {absent[:3]}"
        )


def _rank_in(state: Any) -> int:
    """The rank of the adapter in a checkpoint's weights, 0 where there is none."""
    named = state.items() if isinstance(state, dict) else ()
    return max((len(value) for name, value in named if "lora_A" in name and isinstance(value, Tensor)), default=0)


def _source_of(path: Path) -> ModelSource:
    """The model that a checkpoint was trained from, by our own key in it, not by Lightning's hyper-parameters."""
    checkpoint = read_checkpoint(path, mmap=True)
    origin = checkpoint.get("mulcot")
    origin = origin if isinstance(origin, dict) else {}
    lacking = [key for key in _ORIGIN if key not in origin]
    if lacking:
        raise InputError(
            f"{path} was not written by mulcot, or by an earlier one: it does not say {', '.join(lacking)} of its "
            f"model; give a checkpoint that `mulcot fit` wrote"
        )
    try:
        said = _Origin.model_validate(origin)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: the checkpoint is damaged: {name}: {first['msg']}; take another one") from error
    if said.lora is not None and said.lora.r > _rank_in(checkpoint.get("state_dict")):
        raise InputError(f"{path}: the checkpoint is damaged: no adapter in it has the rank {said.lora.r} of its lora")
    with _as_base_of(path):
        base = find_model(said.pretrained)
    return ModelSource(
        base.name,
        path,
        base,
        lora=said.lora,
        freeze_vision=said.freeze_vision,
        labels=said.labels,
        image_size=said.image_size,
        pad_end=said.pad_end,
    )
