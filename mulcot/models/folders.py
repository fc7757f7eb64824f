"""What a model's folder must hold before anything is loaded from it: no pickle, no code, no file of elsewhere.

transformers and peft take more than mulcot lets in: they draw weights that a file lacks at random, fetch attention
kernels that a config names, and import a module that an adapter's config names.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from peft import LoraConfig
from safetensors import SafetensorError, safe_open

from mulcot.regular_files import MAX_JSON, open_regular, read_regular
from mulcot.types import InputError

ADAPTER: Final = "adapter_config.json"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
_WEIGHTS: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_PROCESSORS: Final = ("processor_config.json", "preprocessor_config.json")
_TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_SETTINGS: Final = ("*.json", "*.jinja", "*.txt", "*.model", "additional_chat_templates/*.jinja")
_MAX_SETTINGS: Final = 256 << 20
"""Bytes of a file that transformers reads whole; the largest tokenizers have 40 MB."""
_MAX_HEADER: Final = 32 << 20
"""Bytes of a safetensors header: 250,000 tensors; safetensors itself takes 100 MB, and minutes for it."""
_MAX_ENTRIES: Final = 100_000
"""Layers, labels and entries of a list in a config: as many objects are made of them before weights are looked at."""
_COUNTS: Final = ("num_hidden_layers", "depth", "num_layers", "encoder_layers", "num_labels")
_AUDIO: Final = "audio_tokenizer"
PROCESSOR_FILES: Final = (_PROCESSORS[0], f"{_AUDIO}_config.json")
"""Files that may make a processor load a further model."""
_DISTRIBUTED: Final = re.compile(r"shard-[0-9]{5}-model-[0-9]{5}-of-[0-9]{5}\.safetensors")
"""A file that transformers takes for one of a distributed checkpoint, and loads instead of the weights."""
_LFS_POINTER_BYTES: Final = 64
_PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")
_IMPLEMENTATIONS: Final = ("attn_implementation", "_attn_implementation", "experts_implementation", "kernel_config")
_OF_TIMM: Final = ("architecture", "backbone")
_ELSEWHERE: Final = ("transformers_weights", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")
"""Keys, of a model's config and of what it hands on to timm, that name weights; mulcot takes those of the folder."""
_ADAPTER_KEYS: Final = frozenset(
    {"peft_type", "peft_version", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping"}
    | {"r", "lora_alpha", "lora_dropout", "bias", "lora_bias", "use_rslora", "use_dora", "init_lora_weights"}
    | {"target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern"}
    | {"rank_pattern", "alpha_pattern", "fan_in_fan_out"}
)
"""What an adapter's config may say; the rest must be as by default, for some of it makes peft import a module."""


def check_processor_folder(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Refuses a folder without tokenizer or image processor, or whose processor asks for more than its files.

    Without a tokenizer transformers would make an empty one.

    Args:
        folder: The folder.
        trust_remote_code: See `check_config`.

    Raises:
        InputError: A file is missing, too large, or names another model or a file of elsewhere.
    """
    for path in sorted(path for pattern in _SETTINGS for path in folder.glob(pattern)):
        if path.is_file() and path.stat().st_size > _MAX_SETTINGS:
            raise InputError(f"{path}: it has more than {_MAX_SETTINGS >> 20} MiB; put the model's own there")
    if (folder / "config.json").is_file():  # an adapter has none
        config = read_object(folder / "config.json")
        check_config(config, folder / "config.json", trust_remote_code=trust_remote_code)
    for names, without in ((_PROCESSORS, "processor and takes no pictures"), (_TOKENIZERS, "tokenizer")):
        if not any((folder / name).is_file() for name in names):
            raise InputError(
                f"{folder}: it has no {without} ({' or '.join(names[:2])}): copy those of the model that it came from"
            )
    check_processor_files(*(path if (path := folder / name).is_file() else None for name in PROCESSOR_FILES))
    settings = folder / "tokenizer_config.json"
    for name in read_object(settings).get("fast_tokenizer_files") or () if settings.is_file() else ():
        if not isinstance(name, str) or Path(name).name != name:
            raise InputError(f"{settings}: {str(name)[:80]!r} is no name of a file in this folder; take that entry out")


def check_processor_files(settings: Path | None, further: Path | None) -> None:
    """Refuses a processor that comes with a model of its own for sounds: it may be any, of anywhere, in any format.

    Args:
        settings: `processor_config.json`; None where there is none.
        further: `audio_tokenizer_config.json`; likewise.

    Raises:
        InputError: It names such a model, or has lists without reason.
    """
    named = further
    if settings is not None:
        values = read_object(settings)
        _check_counts(values, settings)
        named = settings if values.get(_AUDIO) else further
    if named is not None:
        raise InputError(f"{named}: {_AUDIO} names a further model, which mulcot does not load: take that entry out")


def check_model_folder(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Refuses a folder whose weights are not all there as safetensors, or whose config asks for more than weights.

    Args:
        folder: The folder.
        trust_remote_code: See `check_config`.

    Raises:
        InputError: A file is missing, damaged, or hostile; the message names it.
    """
    config = read_object(folder / "config.json")
    check_config(config, folder / "config.json", trust_remote_code=trust_remote_code)
    tensors = sum(_tensors(path) for path in _weight_files(folder))
    for key, number in _numbers(config):
        if key in _COUNTS[:-1] and number > tensors:
            raise InputError(
                f"{folder / 'config.json'}: {key} is {number}, and there are only {tensors} tensors in its weights: "
                "take the config that belongs to them"
            )


def check_config(config: Mapping[str, Any], place: object, *, trust_remote_code: bool = False) -> None:
    """Refuses a model's config that names code to be fetched or weights of elsewhere, or counts without reason.

    Args:
        config: What `config.json` holds.
        place: What opens the message.
        trust_remote_code: Lets a part of the model have code of its own. Without it transformers loads none for the
            model as a whole, but asks on the terminal about a part.

    Raises:
        InputError: It names an attention, a kernel or a model of a repository, or weights.
    """
    for key, value in _items(config):
        fetched = key in _IMPLEMENTATIONS and value and (not isinstance(value, str) or "/" in value)
        fetched = fetched or (key in _OF_TIMM and isinstance(value, str) and (":" in value or "/" in value))
        if fetched:
            raise InputError(f"{place}: {key} names code to be fetched ({str(value)[:80]!r}): take that entry out")
        if key in _ELSEWHERE and value:
            raise InputError(f"{place}: {key} names other weights ({str(value)[:80]!r}): take that entry out")
    _check_counts(config, place)
    for inner in config.values() if not trust_remote_code else ():
        if any(key == "auto_map" and value for key, value in _items(inner)):
            raise InputError(f"{place}: auto_map names code of a part of the model, which is not run: take it out")


def _check_counts(settings: Mapping[str, Any], place: object) -> None:
    for key, value in _items(settings):
        counted = value if key in _COUNTS else len(value) if isinstance(value, list) else 0
        if isinstance(counted, int) and counted > _MAX_ENTRIES:
            raise InputError(f"{place}: {key} is {counted:,}, and at most {_MAX_ENTRIES:,} are taken: take the model's")


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
    try:
        values = json.loads(_content(path).decode(), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        reason = " ".join((str(error) or type(error).__name__).split())
        raise InputError(f"{path}: it is no JSON ({reason}); copy it anew from where the model came from") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: it holds no JSON object; copy it anew from where the model came from")
    return values


def _content(path: Path) -> bytes:
    try:
        return read_regular(path, MAX_JSON)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; put the model's own there") from error


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def shapes_of(path: Path) -> dict[str, list[int]]:
    """The shape of every tensor of a safetensors file, from its header alone.

    Raises:
        InputError: The file is damaged: lengths, offsets, shapes or the JSON of its header.
    """
    try:
        with open_regular(path) as raw:
            start = raw.read(_LFS_POINTER_BYTES)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; put the model's own there") from error
    if start.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: it is a pointer of git LFS and not the file itself; fetch it with `git lfs pull`")
    if (length := int.from_bytes(start[:8], "little")) > _MAX_HEADER and len(start) > 8:
        raise InputError(f"{path}: no whole safetensors file (header too large: {length:,} bytes); fetch it again")
    try:
        with safe_open(path, framework="pt"):  # asked for one shape after the other it takes the square of the time
            pass
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: no whole safetensors file ({reason}); fetch it again, or save it anew") from error
    return {name: entry["shape"] for name, entry in _header(path).items() if name != "__metadata__"}


def _header(path: Path) -> dict[str, Any]:
    """The header of a whole safetensors file; one with a tensor twice, of which the last would be taken, is refused."""
    with path.open("rb") as raw:
        header = raw.read(int.from_bytes(raw.read(8), "little"))

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            repeated = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise InputError(
                f"{path}: no whole safetensors file ({repeated[:80]!r} stands twice in it); fetch it again"
            )
        return values

    return json.loads(header, object_pairs_hook=once)


def _tensors(path: Path) -> int:
    return len(shapes_of(path))


def _weight_files(folder: Path) -> list[Path]:
    """The files of a model's weights, which must be there and inside its folder."""
    if distributed := sorted(path.name for path in folder.iterdir() if _DISTRIBUTED.fullmatch(path.name)):
        raise InputError(
            f"{folder / distributed[0]}: it would be loaded as a distributed checkpoint instead of {_WEIGHTS}: take it "
            "out, or consolidate the checkpoint"
        )
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
