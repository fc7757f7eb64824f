"""Frozen weights in 4 and 8 bits; what needs bitsandbytes runs where it is installed, and is skipped elsewhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.bitsandbytes import dequantize_bnb_weight

from mulcot.checkpoints import DurableCheckpointIO
from mulcot.models import (
    DType,
    Lora,
    Quantise,
    base_model,
    head_parts,
    load_model,
    load_processor,
    merge_adapter,
    save_model,
    trained_parameters,
)
from mulcot.models.saving import RowSettings
from mulcot.models.tiny import build_pair
from mulcot.types import InputError
from stages import AssistantStage, StudentStage
from stages.online_assistant import OnlineAssistant

FORMS: tuple[Quantise, ...] = ("4bit", "8bit")
ROUNDING = {"4bit": (0.07, 0.11), "8bit": (0.002, 0.02)}
"""Norm of the error of a weight over its norm, for normally distributed weights: NF4 in blocks of 64, int8 by rows."""
TEXTS = ["the sun shines over the harbour", '{"Prediction": "positive"}'] * 20


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    build_pair(folder, TEXTS, vocab_size=400, max_pixels=56 * 56, seed=0)
    return folder


@pytest.fixture
def bitsandbytes() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (pip install mulcot[quantised])")


def loss_of(model: nn.Module) -> Tensor:
    """A number that depends on the weights: behind a norm the mean of all squares hardly does."""
    found = hidden(model)
    return (found * torch.linspace(-1, 1, found.shape[-1])).square().mean()


def hidden(model: nn.Module) -> Tensor:
    return base_model(model).model(input_ids=torch.arange(20, 60)[None], use_cache=False).last_hidden_state


def stands_for(layer: nn.Module) -> Tensor:
    """The weight that a small layer stands for, after a forward pass."""
    state = layer.state if hasattr(layer, "state") else None
    found: Tensor = dequantize_bnb_weight(layer.weight, state)
    return found.float()


def assert_rounded(small: nn.Module, whole: nn.Module, form: Quantise) -> None:
    """Every linear layer of the language model is the whole one's, rounded as it should be."""
    hidden(small)  # an 8-bit layer puts its scales in place then
    low, high = ROUNDING[form]
    layers = {name.replace(".base_layer", ""): layer for name, layer in base_model(small).named_modules()}
    count = 0
    for name, layer in base_model(whole).get_decoder().named_modules():
        if isinstance(layer, nn.Linear):
            found = layers[f"model.language_model.{name}"]
            assert low < difference(stands_for(getattr(found, "base_layer", found)), layer.weight) < high, name
            count += 1
    assert count == 7 * base_model(whole).config.get_text_config().num_hidden_layers


def difference(mine: Tensor, theirs: Tensor) -> float:
    return float((mine - theirs).detach().norm() / theirs.detach().norm())


@pytest.mark.usefixtures("bitsandbytes")
@pytest.mark.parametrize("form", FORMS)
def test_the_language_model_alone_shrinks(pair: Path, form: Quantise) -> None:
    model = load_model(str(pair / "student"), lora=Lora(r=2), quantise=form)
    base, width = base_model(model), {"4bit": torch.uint8, "8bit": torch.int8}[form]
    small = {name for name, value in base.named_parameters() if value.dtype == width}
    assert small == {
        f"model.language_model.layers.{layer}.{name}.base_layer.weight"
        for layer in range(3)
        for name in (
            *(f"self_attn.{part}_proj" for part in "qkvo"),
            *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
        )
    }
    assert {value.dtype for name, value in base.named_parameters() if name not in small} == {torch.float32}
    assert all("lora_" in name for name in trained_parameters(model))
    whole = load_model(str(pair / "student"))
    assert torch.equal(head_parts(model).weight, head_parts(whole).weight)
    assert_rounded(model, whole, form)
    assert base.name_or_path == str(pair / "student")


@pytest.mark.usefixtures("bitsandbytes")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_gradients_are_those_of_the_weights_that_it_stands_for_also_after_an_evaluation(
    pair: Path, form: Quantise, compute: DType
) -> None:
    """A model of plain layers with the weights that the small ones stand for is what they are compared with."""
    lora = Lora(r=2, dropout=0.0)
    models = {}
    for quantise in (form, None):
        torch.manual_seed(3)
        models[quantise] = load_model(str(pair / "student"), lora=lora, quantise=quantise, compute=compute)
    mine, theirs = models[form], models[None]
    for name, layer in base_model(mine).named_modules():
        if name.endswith("base_layer"):
            base_model(theirs).get_submodule(name).weight.data = stands_for(layer)
    for _ in range(2):
        gradients = []
        for model in (mine.train(), theirs.train()):
            model.zero_grad()
            loss_of(model).backward()
            gradients.append(
                torch.cat(
                    [value.grad.flatten() for _, value in sorted(model.named_parameters()) if value.grad is not None]
                )
            )
        exact = form == "4bit" and compute == "float32"  # 8 bits round the inputs, too
        assert difference(*gradients) < (1e-4 if exact else 0.05)
        assert gradients[0].numel() == sum(value.numel() for value in trained_parameters(mine).values())
        with torch.no_grad():
            hidden(mine.eval())


@pytest.mark.usefixtures("bitsandbytes")
def test_a_saved_adapter_names_the_whole_base_and_needs_no_bitsandbytes(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(str(pair / "student"), lora=Lora(r=2), quantise="4bit")
    for name, value in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(value, std=0.1)
    save_model(model, load_processor(str(pair / "student")), RowSettings(), tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(pair / "student")
    # It trains on, on small weights again.
    again = load_model(str(tmp_path / "adapter"), quantise="4bit")
    assert torch.equal(hidden(again.eval()), hidden(model.eval()))
    assert trained_parameters(again).keys() == trained_parameters(model).keys()
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    loaded = load_model(str(tmp_path / "adapter"))
    merged = hidden(merge_adapter(load_model(str(tmp_path / "adapter"))).eval())
    torch.testing.assert_close(merged, hidden(loaded.eval()), rtol=1e-4, atol=1e-4)
    assert difference(hidden(model.eval()), merged) > 0.001  # it was trained on rounded weights, and is asked on whole


@pytest.mark.usefixtures("bitsandbytes")
def test_the_weights_of_a_checkpoint_are_those_that_shrink(pair: Path, tmp_path: Path) -> None:
    stage = StudentStage(str(pair / "student"), tmp_path, "student")
    stage.configure_model()
    assert stage.model is not None
    for value in stage.model.parameters():
        value.data *= 1.5
    checkpoint: dict[str, object] = {}
    stage.on_save_checkpoint(checkpoint)
    DurableCheckpointIO().save_checkpoint(checkpoint, tmp_path / "full.ckpt")
    small = load_model(str(tmp_path / "full.ckpt"), lora=Lora(r=2), quantise="8bit")
    assert_rounded(small, stage.model, "8bit")


@pytest.mark.usefixtures("bitsandbytes")
@pytest.mark.parametrize("form", FORMS)
def test_the_assistant_beside_the_student_shrinks(pair: Path, form: Quantise) -> None:
    small, whole = OnlineAssistant(str(pair / "student"), quantise=form), OnlineAssistant(str(pair / "student"))
    assert not any(value.requires_grad for value in small.model.parameters())
    assert not small.model.training
    with torch.no_grad():
        assert_rounded(small.model, whole.model, form)
    sizes = [
        sum(
            layer.weight.nbytes
            for layer in base_model(each.model).get_decoder().modules()
            if isinstance(layer, nn.Linear)
        )
        for each in (small, whole)
    ]
    assert sizes[1] == {"4bit": 8, "8bit": 4}[form] * sizes[0]  # beside them lie the scales


@pytest.mark.usefixtures("bitsandbytes")
def test_rows_that_bitsandbytes_reads_wrongly_on_a_cpu_are_refused(pair: Path) -> None:
    with pytest.raises(InputError, match=r"4bit: .*multiple of 64, and .*q_proj of .*assistant has 96: take 8bit"):
        load_model(str(pair / "assistant"), lora=Lora(r=2), quantise="4bit")
    load_model(str(pair / "assistant"), lora=Lora(r=2), quantise="8bit")


@pytest.mark.parametrize("form", FORMS)
def test_without_bitsandbytes_the_extra_is_named(pair: Path, form: Quantise, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match=r"need bitsandbytes .*`pip install mulcot\[quantised\]`.*quantise"):
        load_model(str(pair / "student"), lora=Lora(r=2), quantise=form)


@pytest.mark.parametrize("stage_class", [StudentStage, AssistantStage])
def test_small_weights_without_an_adapter_are_refused(
    pair: Path, tmp_path: Path, stage_class: type[StudentStage] | type[AssistantStage]
) -> None:
    checkpoint: dict[str, object] = {}
    whole = stage_class(str(pair / "student"), tmp_path)
    whole.configure_model()
    whole.on_save_checkpoint(checkpoint)
    DurableCheckpointIO().save_checkpoint(checkpoint, tmp_path / "full.ckpt")
    for given in (pair / "student", tmp_path / "full.ckpt"):
        with pytest.raises(
            InputError, match=r"quantise=4bit: quantised weights cannot be trained; .*\(model\.init_args\.lora\)"
        ):
            stage_class(str(given), tmp_path, quantise="4bit").configure_model()
