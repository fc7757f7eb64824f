"""What a model's folder must hold before anything is loaded from it: no pickle, no code, no file of elsewhere.

transformers and peft take more than mulcot lets in: they draw weights that a file lacks at random, fetch attention
kernels that a config names, and import a module that an adapter's config names.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from peft import LoraConfig
from safetensors import SafetensorError, safe_open

from mulcot.types import InputError

ADAPTER: Final = "adapter_config.json"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
_WEIGHTS: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_PROCESSORS: Final = ("processor_config.json", "preprocessor_config.json")
_TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_LFS_POINTER_BYTES: Final = 64
_PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")
_IMPLEMENTATIONS: Final = ("attn_implementation", "_attn_implementation", "experts_implementation", "kernel_config")
_ADAPTER_KEYS: Final = frozenset(
    {"peft_type", "peft_version", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping"}
    | {"r", "lora_alpha", "lora_dropout", "bias", "lora_bias", "use_rslora", "use_dora", "init_lora_weights"}
    | {"target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern"}
    | {"rank_pattern", "alpha_pattern", "fan_in_fan_out"}
)
"""What an adapter's config may say; the rest must be as by default, for some of it makes peft import a module."""


def check_processor_folder(folder: Path) -> None:
    """Refuses a folder without tokenizer or image processor: transformers would make an empty tokenizer.

    Raises:
        InputError: A file is missing.
    """
    for names, without in ((_PROCESSORS, "processor and takes no pictures"), (_TOKENIZERS, "tokenizer")):
        if not any((folder / name).is_file() for name in names):
            raise InputError(
                f"{folder}: it has no {without} ({' or '.join(names[:2])}): copy those of the model that it came from"
            )


def check_model_folder(folder: Path) -> None:
    """Refuses a folder whose weights are not all there as safetensors, or whose config asks for more than weights.

    Raises:
        InputError: A file is missing, damaged, or hostile; the message names it.
    """
    config = read_object(folder / "config.json")
    check_config(config, folder / "config.json")
    tensors = sum(_tensors(path) for path in _weight_files(folder))
    for key, number in _numbers(config):
        if key in ("num_hidden_layers", "depth", "num_layers", "encoder_layers") and number > tensors:
            raise InputError(
                f"{folder / 'config.json'}: {key} is {number}, and there are only {tensors} tensors in its weights: "
                "take the config that belongs to them"
            )


def check_config(config: Mapping[str, Any], place: object) -> None:
    """Refuses a model's config that names code to be fetched.

    Args:
        config: What `config.json` holds.
        place: What opens the message.

    Raises:
        InputError: It names an attention or a kernel of a repository.
    """
    for key, value in _items(config):
        if key in _IMPLEMENTATIONS and value and (not isinstance(value, str) or "/" in value):
            raise InputError(f"{place}: {key} names code to be fetched ({str(value)[:80]!r}): take that entry out")


def check_adapter_folder(folder: Path) -> dict[str, Any]:
    """The config of an adapter that may be loaded.

    Raises:
        InputError: It is no LoRA adapter with safetensors, or its config asks for more than one is.
    """
    place, weights = folder / ADAPTER, folder / ADAPTER_WEIGHTS
    config = read_object(place)
    if not isinstance(config.get("base_model_name_or_path"), str) or not config["base_model_name_or_path"]:
        raise InputError(f"{place} names no base_model_name_or_path: write the base model's folder there")
    if config.get("peft_type") != "LORA":
        raise InputError(f"{place}: peft_type is {config.get('peft_type')!r}; mulcot loads LORA adapters alone")
    usual = LoraConfig().to_dict()
    for key, value in config.items():
        if key not in _ADAPTER_KEYS and value and value != usual.get(key):
            raise InputError(f"{place}: {key} is {str(value)[:80]!r}, which mulcot loads no adapter with: merge it")
    library = (config.get("auto_mapping") or {}).get("parent_library") or "transformers"
    if str(library).split(".")[0] not in ("transformers", "peft"):
        raise InputError(f"{place}: auto_mapping names the module {str(library)[:80]!r}: take that entry out")
    if not weights.is_file():
        raise InputError(f"{folder}: {_without_safetensors(folder, ADAPTER_WEIGHTS)}")
    ranks = [shape[0] for name, shape in shapes_of(weights).items() if "lora_A" in name]
    wanted = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    if not ranks or not all(isinstance(rank, int) and 1 <= rank <= max(ranks) for rank in wanted):
        raise InputError(
            f"{place}: r is {config.get('r')!r}, and the adapter's weights are of rank {max(ranks, default=0)}"
        )
    return config


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a model's file.

    Raises:
        InputError: The file is missing, no regular one, no JSON, or no object.
    """
    _refuse_irregular(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join((str(error) or type(error).__name__).split())
        raise InputError(f"{path}: it is no JSON ({reason}); copy it anew from where the model came from") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: it holds no JSON object; copy it anew from where the model came from")
    return values


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def shapes_of(path: Path) -> dict[str, list[int]]:
    """The shape of every tensor of a safetensors file, from its header alone.

    Raises:
        InputError: The file is damaged: lengths, offsets, shapes or the JSON of its header.
    """
    _refuse_irregular(path)
    with path.open("rb") as raw:
        start = raw.read(_LFS_POINTER_BYTES)
    if start.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: it is a pointer of git LFS and not the file itself; fetch it with `git lfs pull`")
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: no whole safetensors file ({reason}); fetch it again, or save it anew") from error
    _refuse_repeated(path)
    return shapes


def _refuse_repeated(path: Path) -> None:
    """Refuses a header that has a tensor twice, of which safetensors would take the last."""
    with path.open("rb") as raw:
        header = raw.read(int.from_bytes(raw.read(8), "little"))

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            repeated = next(name for name in values if sum(name == other for other, _ in pairs) > 1)
            raise InputError(
                f"{path}: no whole safetensors file ({repeated[:80]!r} stands twice in it); fetch it again"
            )
        return values

    json.loads(header, object_pairs_hook=once)


def _tensors(path: Path) -> int:
    return len(shapes_of(path))


def _weight_files(folder: Path) -> list[Path]:
    """The files of a model's weights, which must be there and inside its folder."""
    whole, index = folder / _WEIGHTS, folder / _INDEX
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise InputError(f"{folder}: {_without_safetensors(folder, _WEIGHTS)}")
    mapped = read_object(index).get("weight_map")
    if not isinstance(mapped, dict) or not mapped or not all(isinstance(name, str) for name in mapped.values()):
        raise InputError(f"{index}: it has no weight_map from tensors to files; fetch it again")
    shards = []
    for name in sorted(set(mapped.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(f"{index}: {name[:80]!r} is no name of a safetensors file in this folder; fetch it again")
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: this shard of the weights is missing; fetch it again")
        shards.append(folder / name)
    return shards


def _without_safetensors(folder: Path, wanted: str) -> str:
    pickled = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickled:
        return f"its weights ({pickled[0]}) are not safetensors, and pickles are not loaded: convert them to {wanted}"
    return f"it has no weights ({wanted}): copy them into it"


def _refuse_irregular(path: Path) -> None:
    """A pipe or a device would be waited for."""
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise InputError(f"{path}: it is no regular file; put the model's own there")


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a config and of what is nested in it, with its value."""
    pending = [value]
    while pending:
        inner = pending.pop()
        if isinstance(inner, dict):
            yield from inner.items()
            pending.extend(inner.values())
        elif isinstance(inner, list):
            pending.extend(inner)


def _numbers(config: Any) -> Iterator[tuple[str, int]]:
    return ((key, value) for key, value in _items(config) if isinstance(value, int) and not isinstance(value, bool))
