import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoProcessor, AutoTokenizer

from mulcot.checkpoints import DurableCheckpointIO, read_checkpoint
from mulcot.models import (
    Lora,
    RowSettings,
    base_model,
    find_model,
    head_parts,
    load_model,
    load_processor,
    read_settings,
    trained_parameters,
)
from mulcot.models.parts import vision_parameters
from mulcot.models.tiny import SIZES, SPECIAL_TOKENS, build_pair, train_tokenizer
from mulcot.rows import vocabulary_digest
from mulcot.types import InputError, MissingInputError
from stages import StudentStage

TEXTS = ["the sun shines over the harbour", '{"Prediction": "positive"}'] * 20


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    build_pair(folder, TEXTS, vocab_size=400, max_pixels=56 * 56, seed=0)
    return folder


def test_the_pair_shares_a_tokenizer_and_differs_in_size(pair: Path) -> None:
    digests = {vocabulary_digest(AutoTokenizer.from_pretrained(pair / role)) for role in SIZES}
    assert len(digests) == 1
    sizes = {role: sum(p.numel() for p in load_model(str(pair / role)).parameters()) for role in SIZES}
    assert sizes["assistant"] > 1.5 * sizes["student"]


def test_the_same_seed_builds_the_same_weights(pair: Path, tmp_path: Path) -> None:
    build_pair(tmp_path, TEXTS, vocab_size=400, max_pixels=56 * 56, seed=0)
    for role in SIZES:
        assert (tmp_path / role / "model.safetensors").read_bytes() == (pair / role / "model.safetensors").read_bytes()


@pytest.mark.parametrize("text", ["the sun", "Größe 🎉", "مرحبا", "tab\tand\nline", "a  b", "12345", "\x00"])
def test_the_tokenizer_writes_any_text_back(pair: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(pair / "student")
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_a_saved_tokenizer_is_the_trained_one(pair: Path) -> None:
    trained, saved = train_tokenizer(TEXTS, 400), AutoTokenizer.from_pretrained(pair / "student")
    text = "the sun shines <|im_end|> over 12 harbours's <|image_pad|>!"
    assert saved(text)["input_ids"] == trained(text)["input_ids"]
    assert saved.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(len(SPECIAL_TOKENS)))


def test_an_adapter_trains_the_language_model_alone(pair: Path) -> None:
    model = load_model(str(pair / "student"), lora=Lora(r=2, alpha=4, targets=["q_proj", "down_proj"]))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    layers = SIZES["student"].layers
    assert len(trained) == layers * 2 * 2  # two targets, two matrices each
    assert all("lora_" in name and "language_model" in name for name in trained)
    # r * (inputs + outputs) of each layer's query and down projection.
    size = SIZES["student"]
    expected = layers * 2 * ((size.hidden + size.hidden) + (size.mlp + size.hidden))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected


def test_an_adapter_stays_in_fp32_on_a_bf16_base(pair: Path) -> None:
    model = load_model(str(pair / "student"), lora=Lora(r=2), dtype="bfloat16")
    types = {parameter.requires_grad: parameter.dtype for parameter in model.parameters()}
    assert types == {True: torch.float32, False: torch.bfloat16}


def test_the_head_as_tensors_is_what_the_model_computes(pair: Path) -> None:
    model = load_model(str(pair / "student"))
    parts = head_parts(model)
    assert parts.weight is base_model(model).get_input_embeddings().weight  # the tiny models are tied, as the 3B is
    assert parts.bias is parts.softcap is None
    base_model(model).config.get_text_config().final_logit_softcapping = 30
    assert head_parts(model).softcap == 30.0
    untied = nn.Linear(64, 400)
    base_model(model).set_output_embeddings(untied)
    assert (head_parts(model).weight, head_parts(model).bias) == (untied.weight, untied.bias)
    assert not head_parts(load_model(str(pair / "student"), lora=Lora())).weight.requires_grad


def test_a_head_that_is_more_than_its_weight_is_refused(pair: Path) -> None:
    model = load_model(str(pair / "student"))
    adapted = get_peft_model(nn.ModuleDict({"lm_head": nn.Linear(64, 400)}), LoraConfig(target_modules=["lm_head"]))
    base_model(model).set_output_embeddings(adapted.get_base_model()["lm_head"])
    with pytest.raises(InputError, match=r"no plain linear layer but Linear of peft.*keep adapters"):
        head_parts(model)
    quantised = nn.Linear(64, 400)
    quantised.weight = nn.Parameter(torch.zeros(400, 64, dtype=torch.int8), requires_grad=False)
    base_model(model).set_output_embeddings(quantised)
    with pytest.raises(InputError, match=r"no plain linear layer but Linear of torch with torch.int8"):
        head_parts(model)


def test_freezing_the_vision_tower_freezes_nothing_else(pair: Path) -> None:
    model = load_model(str(pair / "student"), freeze_vision=True)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if ".visual." in name}
    assert len(frozen) == len(vision_parameters(base_model(model)))


def test_a_missing_model_names_the_commands_that_make_one(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"nowhere holds no model: `mulcot fit"):
        find_model(str(tmp_path / "nowhere"))


def test_an_unfinished_stage_is_no_model(pair: Path, tmp_path: Path) -> None:
    (tmp_path / "stage" / "model").mkdir(parents=True)
    with pytest.raises(MissingInputError, match="not finished"):
        find_model(str(tmp_path / "stage"))


def test_a_hub_name_is_passed_on() -> None:
    assert find_model("Qwen/Qwen2.5-VL-3B-Instruct").name == "Qwen/Qwen2.5-VL-3B-Instruct"


@pytest.mark.parametrize("given", ["r2/assistant", "runs/nothing"])
def test_two_parts_below_a_folder_of_here_are_a_path(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(given).parent.mkdir()
    with pytest.raises(MissingInputError, match=f"{given} holds no model.*`mulcot fit"):
        find_model(given)


@pytest.mark.parametrize("load", [load_processor, load_model])
@pytest.mark.parametrize("given", ["nobody/nothing", "no body/no thing"])
def test_a_name_that_is_nothing_is_told_in_both_readings(load: Any, given: str) -> None:
    with pytest.raises(
        MissingInputError, match=f"{given} is neither a folder here nor .* the hub.*`mulcot fit"
    ) as told:
        load(given)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("silent", [True, False])
def test_a_hub_that_does_not_answer_is_asked_once(silent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would ask it six times for each of six files, which takes minutes."""
    asked: list[Any] = []

    def ask(self: HfApi, name: str, timeout: float) -> None:
        asked.append(name)
        if silent:
            raise ConnectionError("no route to host")

    cached = SimpleNamespace(image_processor=None)

    def from_pretrained(name: str, local_files_only: bool, **_: Any) -> SimpleNamespace:
        asked.append(local_files_only)
        return cached

    monkeypatch.setattr(HfApi, "model_info", ask)
    monkeypatch.setattr(AutoProcessor, "from_pretrained", from_pretrained)
    assert load_processor("some/model") is cached
    assert asked == ["some/model", silent]


def test_a_folder_is_loaded_without_the_hub(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HfApi, "model_info", lambda *args, **kwargs: pytest.fail("the hub was asked"))
    load_processor(str(pair / "student"))
    load_model(str(pair / "student"))


def adapter_on(pair: Path, base: str | None, folder: Path) -> Path:
    load_model(str(pair / "student"), lora=Lora(r=2)).save_pretrained(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": base}))
    return folder


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("/nowhere/student", "/nowhere/student holds no model"),
        ("r2/student", "r2/student holds no model"),
        ("nobody/nothing", "nobody/nothing is neither a folder here nor"),
    ],
)
def test_an_adapter_whose_base_is_gone_names_both(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r2").mkdir()
    folder = adapter_on(pair, base, tmp_path / "adapter")
    with pytest.raises(MissingInputError, match=f"{folder}: its base {said}"):
        load_model(str(folder))


def test_an_adapter_without_a_base_is_refused(pair: Path, tmp_path: Path) -> None:
    folder = adapter_on(pair, None, tmp_path / "adapter")
    with pytest.raises(InputError, match=r"adapter_config\.json names no base_model_name_or_path"):
        load_model(str(folder))


@pytest.mark.parametrize("attention", ["foo", "flash_attention_7", "some/kernel"])
def test_an_unknown_attention_is_named(pair: Path, attention: str) -> None:
    with pytest.raises(InputError, match=f"attention {attention} .*sdpa") as told:
        load_model(str(pair / "student"), attention=attention)
    assert "\n" not in str(told.value)


def test_torn_weights_are_named(pair: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pair / "student", tmp_path / "torn"))
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match=r"torn/model\.safetensors: no whole safetensors file"):
        load_model(str(folder))


# -- checkpoints ----------------------------------------------------------------------------------------------------


def checkpoint_of(pretrained: Path, path: Path, **settings: Any) -> nn.Module:
    """The model of a stage whose weights were moved, after its checkpoint was written to `path`."""
    stage = StudentStage(str(pretrained), path.parent, **settings)
    stage.configure_model()
    assert stage.model is not None
    generator = torch.Generator().manual_seed(len(path.name))
    with torch.no_grad():
        for parameter in stage.model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    checkpoint: dict[str, Any] = {}
    stage.on_save_checkpoint(checkpoint)
    DurableCheckpointIO().save_checkpoint(checkpoint, path)
    return stage.model


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(20, 60)[None]).logits


def assert_same(loaded: nn.Module, made: nn.Module) -> None:
    assert torch.equal(logits(loaded), logits(made))


def test_a_checkpoint_of_a_frozen_vision_tower_comes_back(pair: Path, tmp_path: Path) -> None:
    made = checkpoint_of(pair / "student", tmp_path / "a.ckpt", freeze_vision=True)
    assert not [name for name in read_checkpoint(tmp_path / "a.ckpt")["state_dict"] if ".visual." in name]
    for freeze in (False, True):
        loaded = load_model(str(tmp_path / "a.ckpt"), freeze_vision=freeze)
        assert_same(loaded, made)
        frozen = [name for name, parameter in loaded.named_parameters() if not parameter.requires_grad]
        assert bool(frozen) == freeze


@pytest.mark.parametrize("freeze", [False, True])
def test_a_checkpoint_that_lacks_a_trained_weight_is_refused(pair: Path, tmp_path: Path, freeze: bool) -> None:
    path = tmp_path / "a.ckpt"
    checkpoint_of(pair / "student", path, freeze_vision=freeze)
    whole = read_checkpoint(path)
    lost = next(name for name in whole["state_dict"] if "down_proj" in name)
    del whole["state_dict"][lost]
    DurableCheckpointIO().save_checkpoint(whole, path)
    with pytest.raises(InputError, match=r"a\.ckpt: .* do not fit this model: \S*down_proj\S* was not there, is \["):
        load_model(str(path))


def test_an_adapter_goes_on_the_weights_of_a_checkpoint(pair: Path, tmp_path: Path) -> None:
    made = checkpoint_of(pair / "student", tmp_path / "full.ckpt")
    adapted = load_model(str(tmp_path / "full.ckpt"), lora=Lora(r=2))
    assert all("lora_" in name for name in trained_parameters(adapted))
    assert_same(adapted, made)  # a new adapter changes nothing


@pytest.mark.parametrize("first", [None, Lora(r=2)])
def test_a_checkpoint_on_a_checkpoint_comes_back(pair: Path, tmp_path: Path, first: Lora | None) -> None:
    """Full weights or an adapter, trained on."""
    checkpoint_of(pair / "student", tmp_path / "first.ckpt", lora=first)
    second = checkpoint_of(tmp_path / "first.ckpt", tmp_path / "second.ckpt", freeze_vision=True)
    assert_same(load_model(str(tmp_path / "second.ckpt")), second)


def test_an_adapter_on_a_checkpoint_is_refused_since_plain_peft_could_not_load_it(pair: Path, tmp_path: Path) -> None:
    checkpoint_of(pair / "student", tmp_path / "full.ckpt")
    with pytest.raises(InputError, match=r"full\.ckpt: an adapter on a checkpoint .*`mulcot export --model CHECKPOINT"):
        checkpoint_of(tmp_path / "full.ckpt", tmp_path / "adapter.ckpt", lora=Lora(r=2))


def test_a_model_without_pictures_is_refused(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_processor(str(pair / "student")).tokenizer
    # What transformers gives for a model of text alone.
    monkeypatch.setattr(AutoProcessor, "from_pretrained", lambda *args, **kwargs: tokenizer)
    with pytest.raises(InputError, match=r"student: its Qwen2Tokenizer takes no pictures; give a "):
        load_processor(str(pair / "student"))


@pytest.mark.parametrize("form", ["checkpoint", "folder"])
def test_a_second_adapter_is_refused_by_name(pair: Path, tmp_path: Path, form: str) -> None:
    given = tmp_path / "a.ckpt"
    if form == "checkpoint":
        checkpoint_of(pair / "student", given, lora=Lora(r=2))
    else:
        given = adapter_on(pair, str(pair / "student"), tmp_path / "adapter")
    with pytest.raises(InputError, match=f"{given.name} has an adapter already.*`mulcot export`"):
        load_model(str(given), lora=Lora(r=4))


@pytest.mark.parametrize("lora", [None, Lora(r=2)])
def test_labels_and_picture_size_are_those_that_the_checkpoint_was_trained_with(
    pair: Path, tmp_path: Path, lora: Lora | None
) -> None:
    assert read_settings(find_model(str(pair / "student"))) == RowSettings()
    checkpoint_of(pair / "student", tmp_path / "a.ckpt", labels=["good", "bad"], image_size=(56, 28), lora=lora)
    assert read_settings(find_model(str(tmp_path / "a.ckpt"))) == RowSettings(("good", "bad"), (56, 28))
    # The labels of the last fit count, also where its pictures keep their shape again.
    checkpoint_of(tmp_path / "a.ckpt", tmp_path / "b.ckpt", labels=["yes", "no"])
    assert read_settings(find_model(str(tmp_path / "b.ckpt"))) == RowSettings(("yes", "no"))


def test_a_checkpoint_whose_base_is_gone_names_both(pair: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(pair / "student", tmp_path / "base"))
    checkpoint_of(base, tmp_path / "a.ckpt")
    shutil.rmtree(base)
    with pytest.raises(MissingInputError, match=r"a\.ckpt: its base .*base holds no model"):
        find_model(str(tmp_path / "a.ckpt"))


def test_a_torn_checkpoint_is_named(pair: Path, tmp_path: Path) -> None:
    path = tmp_path / "torn.ckpt"
    checkpoint_of(pair / "student", path, lora=Lora(r=2))
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:length])
        for read in (find_model, load_model):
            with pytest.raises(InputError, match=r"torn\.ckpt: the checkpoint is damaged"):
                read(str(path))


@pytest.mark.parametrize("held", [{}, {"mulcot": {"pretrained": "some/model", "lora": None}}])
def test_a_foreign_checkpoint_is_refused(tmp_path: Path, held: dict[str, Any]) -> None:
    torch.save({"state_dict": {}} | held, tmp_path / "x.ckpt")
    with pytest.raises(InputError, match=r"not written by mulcot.*freeze_vision"):
        find_model(str(tmp_path / "x.ckpt"))
