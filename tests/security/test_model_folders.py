"""Hostile and incomplete model folders and adapters: each is refused by name, and nothing of them runs."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from mulcot.models import Lora, RowSettings, load_model, load_processor, save_model, text_config
from mulcot.rows import RowEncoder
from mulcot.types import InputError

Change = Callable[[Path], Any]


def edited(name: str, **changes: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def within(name: str, key: str, **changes: Any) -> Change:
    """Changes an object inside of the file's."""

    def change(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        edited(name, **{key: values[key] | changes})(folder)

    return change


def written(name: str, content: str | bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def without(name: str, then: Change = lambda folder: None) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        then(folder)

    return change


def header(name: str, tensors: Any, body: bytes = b"", length: int | None = None) -> Change:
    """A safetensors file put together from its specification."""
    text = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    return written(name, struct.pack("<Q", len(text) if length is None else length) + text + body)


def tensor(*shape: int, offsets: tuple[int, int]) -> dict[str, Any]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": list(offsets)}


ONE = json.dumps(tensor(2, offsets=(0, 8)))
HEADERS: dict[str, tuple[tuple[Any, ...], str]] = {
    "a header of 2**60 bytes": ((b"{}", b"", 2**60), "header too large"),
    "overlapping tensors": (
        ({"a": tensor(2, offsets=(0, 8)), "b": tensor(2, offsets=(4, 12))}, bytes(12)), "invalid offset"),
    "a negative offset": (({"a": tensor(2, offsets=(-8, 0))}, bytes(8)), "no whole safetensors file"),
    "a negative length": (({"a": tensor(-2, offsets=(0, 8))}, bytes(8)), "no whole safetensors file"),
    "a tensor twice": ((f'{{"a": {ONE}, "a": {ONE}}}'.encode(), bytes(8)), "'a' stands twice"),
    "no JSON": ((b"{nope", bytes(8)), "no whole safetensors file"),
    "nested JSON": ((b'{"a":' * 100_000, bytes(8)), "no whole safetensors file"),
    "4 TB of weights": (({"a": tensor(2**40, offsets=(0, 2**42))}, bytes(8)), "no whole safetensors file"),
    "a size beyond 2**64": (({"a": tensor(2**33, 2**33, offsets=(0, 8))}, bytes(8)), "overflow"),
    "nothing": ((b"",), "no whole safetensors file"),
}  # fmt: skip
TWICE = json.dumps({f"t{at:06d}": tensor(0, offsets=(0, 0)) for at in range(50_000)})[:-1].encode()
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
KERNEL = {"attn_implementation": "evil/kernel"}
MANY_LAYERS = {"num_hidden_layers": 2_000, "layer_types": ["full_attention"] * 2_000}
INDEX = "model.safetensors.index.json"


def indexed(weight_map: Any, name: str = "model-00001-of-00002.safetensors") -> Change:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / name)
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return change


def pickled(name: str) -> Change:
    """Weights as torch would pickle them, which make a folder when they are unpickled."""

    class Calls:
        def __init__(self, mark: str) -> None:
            self.mark = mark

        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (self.mark,)

    return lambda folder: torch.save({"a": Calls(str(folder.parent / "ran"))}, folder / name)


def coded(name: str, **auto_map: Any) -> Change:
    """A folder that comes with a module of its own, which makes a folder when it is imported."""

    def change(folder: Path) -> None:
        (folder / "evil.py").write_text(f"import os\nos.mkdir({str(folder.parent / 'ran')!r})\n")
        edited(name, auto_map=auto_map, model_type="evil", processor_class="Evil", tokenizer_class="Evil")(folder)

    return change


def outside(folder: Path) -> None:
    """A tokenizer that the settings take from beside the folder."""
    shutil.copy(folder / "tokenizer.json", folder.parent / "tokenizer.4.0.0.json")
    edited("tokenizer_config.json", fast_tokenizer_files=["../tokenizer.4.0.0.json"])(folder)


def timm(**given: Any) -> Change:
    return edited("config.json", vision_config={"model_type": "timm_wrapper", "architecture": "resnet10t"} | given)


def pipe(name: str) -> Change:
    return without(name, lambda folder: os.mkfifo(folder / name))


MODELS: dict[str, tuple[Change, str]] = {
    **{
        f"weights: {name}": (header("model.safetensors", *parts), words) for name, (parts, words) in HEADERS.items()
    },
    "weights: a git LFS pointer": (written("model.safetensors", POINTER), "pointer of git LFS"),
    "weights: HTML": (written("model.safetensors", "<!DOCTYPE html>" * 9), "no whole safetensors file"),
    "weights: none": (without("model.safetensors"), "it has no weights (model.safetensors)"),
    "weights: a pickle": (without("model.safetensors", pickled("pytorch_model.bin")), "pickles are not loaded"),
    "weights: a pipe": (pipe("model.safetensors"), "it has no weights"),
    "weights: no tensor": (header("model.safetensors", {}), "there are only 0 tensors"),
    "weights: of another model": (
        header("model.safetensors", {f"t{at}": tensor(1, offsets=(4 * at, 4 * at + 4)) for at in range(9)}, bytes(36)),
        "weights of a Qwen2_5_VLForConditionalGeneration are not in its files"),
    "shards: one is missing": (
        indexed({"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}),
        "model-00002-of-00002.safetensors: this shard of the weights is missing"),
    "shards: elsewhere": (indexed({"a": "../other.safetensors"}), "'../other.safetensors' is no name"),
    "shards: absolute": (indexed({"a": "/etc/passwd"}), "'/etc/passwd' is no name"),
    "shards: pickled": (indexed({"a": "evil.bin"}, "evil.bin"), "'evil.bin' is no name"),
    "shards: a list": (indexed([1]), "has no weight_map"),
    "shards: elsewhere, by the config": (edited("config.json", transformers_weights="evil.safetensors.index.json"),
        "transformers_weights names other"),
    "shards: of a distributed checkpoint": (
        lambda folder: os.mkfifo(folder / "shard-00001-model-00001-of-00001.safetensors"), "distributed checkpoint"),
    "weights: a tensor twice among many": (
        header("model.safetensors", TWICE + b', "t049999": ' + ONE.encode() + b"}", bytes(8)), "'t049999' stands"),
    "weights: a header of 90 MB": (
        header("model.safetensors", {"__metadata__": {"a": "x" * 90_000_000}}), "header too large: 90,000,"),
    "config: code of a part": (
        within("config.json", "vision_config", auto_map={"AutoModel": "evil.Model"}), "auto_map names code"),
    "config: timm's models on the hub": (timm(architecture="hf-hub:evil/model"), "architecture names code"),
    "config: a pickle for timm": (timm(model_args={"checkpoint_path": "evil.bin"}), "checkpoint_path names"),
    "config: missing": (without("config.json"), "holds no model"),
    "config: no JSON": (written("config.json", "{"), "config.json: it is no JSON"),
    "config: a list": (written("config.json", "[]"), "config.json: it holds no JSON object"),
    "config: no text": (written("config.json", b"\xff\xfe\x00"), "config.json: it is no JSON"),
    "config: nested": (written("config.json", "[" * 100_000), "config.json: it is no JSON"),
    "config: an unknown model": (edited("config.json", model_type="evil"), "no model could be loaded"),
    "config: code of its own": (
        coded("config.json", AutoConfig="evil.Config", AutoModelForImageTextToText="evil.Model"), "custom code"),
    "config: a kernel of the hub": (within("config.json", "vision_config", **KERNEL), "names code to be fetched"),
    "config: kernels": (edited("config.json", kernel_config={"a": "evil/kernel"}), "names code to be fetched"),
    "config: 10**10 words": (within("config.json", "text_config", vocab_size=10**10), "no model could be loaded"),
    "config: 10**9 layers": (
        within("config.json", "text_config", num_hidden_layers=10**9, layer_types=None), "num_hidden_layers is 1,000,"),
    "config: 10**9 labels": (edited("config.json", num_labels=10**9), "num_labels is 1,000,000,000"),
    "config: 2,000 layers": (
        within("config.json", "text_config", **MANY_LAYERS), "num_hidden_layers is 2000, and there are only"),
    "config: words below 0": (within("config.json", "text_config", vocab_size=-1), "no model could be loaded"),
    "config: a name as a number": (within("config.json", "text_config", vocab_size="many"), "no processor could be"),
    "config: a function": (within("config.json", "text_config", hidden_act="os.system"), "no model could be loaded"),
    "processor: missing": (without("processor_config.json"), "it has no processor and takes no pictures"),
    "processor: a list": (written("processor_config.json", "[1]"), "it holds no JSON object"),
    "processor: code of its own": (coded("processor_config.json", AutoProcessor="evil.Processor"), "custom code"),
    "processor: a further model": (
        edited("processor_config.json", audio_tokenizer={
            "audio_tokenizer_class": "AutoModel", "audio_tokenizer_name_or_path": "evil/model"}), "audio_tokenizer"),
    "processor: a further model's file": (written("audio_tokenizer_config.json", "{}"), "audio_tokenizer"),
    "tokenizer: from elsewhere": (outside, "'../tokenizer.4.0.0.json' is no name"),
    "tokenizer: missing": (without("tokenizer.json"), "it has no tokenizer (tokenizer.json"),
    "tokenizer: no JSON": (written("tokenizer.json", "{"), "no processor could be loaded"),
    "tokenizer: empty": (written("tokenizer.json", "{}"), "no processor could be loaded"),
    "settings: no JSON": (written("mulcot.json", "{"), "mulcot.json: it is no JSON"),
    "settings: labels": (written("mulcot.json", '{"labels": 5}'), "mulcot.json: labels: "),
    "settings: one label": (written("mulcot.json", '{"labels": ["a"]}'), "mulcot.json: labels: "),
    "settings: a huge picture": (written("mulcot.json", '{"image_size": [9999999, 5]}'), "image_size"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_wrong_model_folder_is_refused(name: str, embedded: Path, tmp_path: Path, refused: Any) -> None:
    change, words = MODELS[name]
    folder = Path(shutil.copytree(embedded / "models" / "student", tmp_path / "wrong"))
    change(folder)
    code = 2 if "holds no model" in words else 1
    assert words in refused("export", "--model", folder, "--out", tmp_path / "out", name=str(folder), code=code)
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def adapter(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = str(embedded / "models" / "student")
    folder = tmp_path_factory.mktemp("adapters") / "good"
    save_model(load_model(base, lora=Lora(r=2, alpha=4, dropout=0.0)), load_processor(base), RowSettings(), folder)
    return folder


CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def importing(**changes: Any) -> Change:
    """A config that names a module, which lies where it can be imported and makes a folder when it is."""

    def change(folder: Path) -> None:
        (folder / "evil_module.py").write_text(f"import os\nos.mkdir({str(folder.parent / 'ran')!r})\n")
        sys.path.append(str(folder))
        edited(CONFIG, **changes)(folder)

    return change


ADAPTERS: dict[str, tuple[Change, str]] = {
    **{f"weights: {name}": (header(WEIGHTS, *parts), words) for name, (parts, words) in HEADERS.items()},
    "weights: a pickle": (without(WEIGHTS, pickled("adapter_model.bin")), "(adapter_model.bin) are not safetensors"),
    "weights: none": (without(WEIGHTS), f"it has no weights ({WEIGHTS})"),
    "weights: no tensor": (header(WEIGHTS, {}), "r is 2, and the adapter's weights are of rank 0"),
    "a module of Megatron": (importing(megatron_config={"a": 1}, megatron_core="evil_module"), "megatron_config is"),
    "a module by auto_mapping": (
        importing(auto_mapping={"base_model_class": "A", "parent_library": "evil_module"}),
        "auto_mapping names the module 'evil_module'"),
    "trust_remote_code": (edited(CONFIG, trust_remote_code=True), "trust_remote_code is 'True'"),
    "layers without end": (edited(CONFIG, layer_replication=[[0, 3]] * 1000), "layer_replication is"),
    "another method": (edited(CONFIG, peft_type="PROMPT_TUNING"), "peft_type is 'PROMPT_TUNING'"),
    "a rank of 10**9": (edited(CONFIG, r=10**9), "r is 1000000000, and the adapter's weights are of rank 2"),
    "a rank of 10**9 by a pattern": (edited(CONFIG, rank_pattern={"q_proj": 10**9}), "weights are of rank 2"),
    "a rank that is no number": (edited(CONFIG, r="many"), "r is 'many'"),
    "a number that is none": (edited(CONFIG, lora_alpha=float("nan")), "NaN is no number"),
    "fewer layers than weights": (edited(CONFIG, target_modules=["q_proj"]), "it belongs to another adapter"),
    "no layer": (edited(CONFIG, target_modules=["nothing"]), "the adapter does not fit its base"),
    "no base": (edited(CONFIG, base_model_name_or_path=None), "names no base_model_name_or_path"),
    "a base that is a number": (edited(CONFIG, base_model_name_or_path=7), "names no base_model_name_or_path"),
    "a base that is gone": (edited(CONFIG, base_model_name_or_path="/nowhere/else"), "its base /nowhere/else holds no"),
    "itself as its base": (lambda folder: edited(CONFIG, base_model_name_or_path=str(folder))(folder), "its own base"),
    "no JSON": (written(CONFIG, "{"), f"{CONFIG}: it is no JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_wrong_adapter_is_refused(name: str, adapter: Path, tmp_path: Path, refused: Any) -> None:
    change, words = ADAPTERS[name]
    folder = Path(shutil.copytree(adapter, tmp_path / "wrong"))
    path = list(sys.path)
    change(folder)
    code = 2 if "is gone" in name else 1
    assert words in refused("export", "--model", folder, "--out", tmp_path / "out", name=str(folder), code=code)
    sys.path[:] = path
    assert not (tmp_path / "ran").exists()


def test_code_of_a_part_is_not_asked_about(
    architectures: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would ask on the terminal whether to run it, and any `yes |` before mulcot would say so."""
    processor, model = architectures.build("llava")
    for part in (processor, model):
        part.save_pretrained(tmp_path / "wrong")
    (tmp_path / "wrong" / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    inner = {"model_type": "align_text_model", "auto_map": {"AutoModel": "evil.M"}}
    edited("config.json", vision_config=inner | {"_name_or_path": str(tmp_path / "wrong")})(tmp_path / "wrong")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(InputError, match="auto_map names code"):
        load_model(str(tmp_path / "wrong"))
    assert not (tmp_path / "ran").exists()


def test_a_good_adapter_and_a_good_model_are_taken(adapter: Path, embedded: Path, tmp_path: Path) -> None:
    assert type(load_model(str(adapter))).__name__ == "PeftModel"
    folder = Path(shutil.copytree(embedded / "models" / "student", tmp_path / "good"))
    edited("config.json", attn_implementation="eager")(folder)
    assert load_model(str(folder)) is not None


def test_a_model_that_is_its_own_base_ends_every_search(adapter: Path, tmp_path: Path) -> None:
    first, second = (Path(shutil.copytree(adapter, tmp_path / name)) for name in ("first", "second"))
    edited(CONFIG, base_model_name_or_path=str(first))(second)
    edited(CONFIG, base_model_name_or_path=str(second))(first)
    for search in (load_model, text_config):
        with pytest.raises(InputError, match="it is its own base"):
            search(str(first))


def test_a_template_cannot_reach_python(embedded: Path, tmp_path: Path) -> None:
    """A chat template is rendered in a sandbox; with our own rows through it nothing of it is run."""
    folder = Path(shutil.copytree(embedded / "models" / "student", tmp_path / "wrong"))
    reach = "{{ cycler.__init__.__globals__.os.mkdir('" + str(tmp_path / "ran") + "') }}"
    (folder / "chat_template.jinja").write_text(reach)
    with pytest.raises(InputError, match="chat template"):
        RowEncoder(load_processor(str(folder)), ("a", "b"))
    assert not (tmp_path / "ran").exists()
