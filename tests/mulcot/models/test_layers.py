"""Layers that compute their activations again, and compiled ones, give the numbers of plain ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image
from torch import Tensor, nn
from torch._dynamo.utils import counters

from mulcot.generation import read
from mulcot.models import Lora, base_model, checkpoint_activations, compile_layers, hidden_states
from mulcot.models.loading import add_lora
from mulcot.models.parts import vision_parameters
from mulcot.rows import Inputs, RowCollator, RowEncoder, RowForm
from mulcot.types import DEFAULT_LABELS, InputError, Post

PAIRED = RowForm("paired")
PACKED = RowForm("shared", row_tokens=500, pictures_once=True)


@pytest.fixture(scope="module", params=["llava", "qwen2_5_vl"])
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "owl.png"
    pixels = torch.randint(0, 255, (80, 60, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(path)
    return path


def batch(processor: Any, picture: Path, form: RowForm, posts: int = 2, words: int = 2) -> Inputs:
    encoder = RowEncoder(processor, DEFAULT_LABELS)
    rows = [
        encoder.row(Post(f"post {number}", "an owl " * (words + number), picture, "owl"), "reasoning", reply)
        for number in range(posts)
        for reply in ('{"Text_analysis": "a mild word"', '{"Text" ' * words)
    ]
    return RowCollator(encoder, form=form).batch(rows).inputs


def trained_like(architectures: ModuleType, architecture: str, trained: str) -> tuple[Any, nn.Module]:
    """The processor and the model in training mode: all of it trained, its vision tower frozen, or an adapter alone."""
    processor, model = architectures.build(architecture)
    if trained == "adapter":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            model = add_lora(model, Lora(r=2, dropout=0.0))
            for name, value in model.named_parameters():
                if "lora_B" in name:  # zeros: nothing would flow to what stands before them
                    nn.init.normal_(value, std=0.1)
    elif trained == "language":
        for value in vision_parameters(model):
            value.requires_grad_(False)
    return processor, model.train()


def observed(model: nn.Module, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor], int]:
    """A loss, its gradients, and the bytes that are kept for the backward pass, storages once."""
    kept: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        hidden = hidden_states(model, inputs)
        # Channels count differently: the mean of all squares behind a norm is nearly 1 whatever the weights are.
        loss = (hidden * torch.linspace(-1, 1, hidden.shape[-1])).square().mean()
    loss.backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    weights = {value.untyped_storage().data_ptr() for value in model.parameters()}
    return loss.detach(), found, sum(size for place, size in kept.items() if place not in weights)


@pytest.mark.parametrize("form", [PAIRED, PACKED], ids=["paired", "packed"])
@pytest.mark.parametrize("trained", ["all", "language", "adapter"])
def test_activations_computed_again_give_equal_gradients_and_less_is_kept(
    architectures: ModuleType, architecture: str, trained: str, form: RowForm, picture: Path
) -> None:
    processor, model = trained_like(architectures, architecture, trained)
    inputs = batch(processor, picture, form)
    loss, gradients, kept = observed(model, inputs)
    checkpoint_activations(model)
    again, same, less = observed(model, inputs)
    assert torch.equal(again, loss)
    assert same.keys() == gradients.keys()
    assert {name for name, value in model.named_parameters() if value.requires_grad} >= same.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient, rtol=1e-6, atol=0)
    assert any(float(gradient.norm()) > 0 for gradient in same.values())
    assert less < 0.5 * kept


def test_dropout_is_drawn_the_same_again(architectures: ModuleType, picture: Path) -> None:
    processor, plain = architectures.build("llava")
    model = add_lora(plain, Lora(r=2, dropout=0.5)).train()
    inputs = batch(processor, picture, PACKED)
    torch.manual_seed(5)
    loss, gradients, _ = observed(model, inputs)
    checkpoint_activations(model)
    torch.manual_seed(5)
    again, same, _ = observed(model, inputs)
    assert torch.equal(again, loss)
    assert all(torch.equal(same[name], gradient) for name, gradient in gradients.items())


def test_an_evaluation_still_fills_the_cache(architectures: ModuleType, architecture: str, picture: Path) -> None:
    processor, model = trained_like(architectures, architecture, "adapter")
    inputs = batch(processor, picture, PACKED)
    before = read(model.eval(), inputs)
    checkpoint_activations(model)
    after = read(model.eval(), inputs)
    assert torch.equal(after.hidden, before.hidden)
    tokens = inputs["input_ids"].shape[1]
    for mine, theirs in zip(after.cache.layers, before.cache.layers, strict=True):
        assert mine.keys.shape[-2] == tokens
        assert torch.equal(mine.keys, theirs.keys)
        assert torch.equal(mine.values, theirs.values)


def test_a_model_that_cannot_is_named(architectures: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = architectures.build("llava")
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(InputError, match=r"activation_checkpointing: LlavaFor.* cannot do it \(.*set it to false"):
        checkpoint_activations(model)
    monkeypatch.setattr(type(model), "get_decoder", lambda self: self.model.multi_modal_projector)
    with pytest.raises(InputError, match=r"compile_layers: LlavaMultiModalProjector has no list of layers"):
        compile_layers(model)


def counting(calls: list[int]) -> Callable[..., Any]:
    """Stands for `torch.compile`: counts the calls of what it is given."""

    def compile_(forward: Callable[..., Any], *, dynamic: bool) -> Callable[..., Any]:
        assert dynamic

        def run(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return forward(*args, **kwargs)

        return run

    return compile_


def test_layers_with_a_cache_are_not_compiled_and_names_stay(
    architectures: ModuleType, architecture: str, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    processor, model = trained_like(architectures, architecture, "adapter")
    names = list(model.state_dict())
    monkeypatch.setattr(torch, "compile", counting(calls))
    compile_layers(model)
    inputs = batch(processor, picture, PACKED)
    hidden = hidden_states(model, inputs)
    assert len(calls) == len(base_model(model).get_decoder().layers)
    torch.testing.assert_close(read(model.eval(), inputs).hidden, hidden.detach().flatten(0, 1))
    assert len(calls) == len(base_model(model).get_decoder().layers)
    assert list(model.state_dict()) == names
    assert isinstance(model, PeftModel)
    model.merge_and_unload().save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of dynamo, which looks at whatever a layer is given
@pytest.mark.parametrize(("trained", "checkpointing"), [("adapter", False), ("language", True)])
def test_compiled_layers_give_the_same_and_are_not_compiled_for_every_length(
    architectures: ModuleType, trained: str, checkpointing: bool, picture: Path
) -> None:
    processor, model = trained_like(architectures, "qwen2_5_vl", trained)
    given = [
        batch(processor, picture, PACKED, posts, words) for posts, words in ((3, 2), (4, 3), (5, 4), (3, 5), (4, 1))
    ]
    lengths = {tuple(inputs["input_ids"].shape) for inputs in given}
    assert len(lengths) == len(given)
    expected = [observed(model, inputs) for inputs in given]
    if checkpointing:
        checkpoint_activations(model)
    torch.compiler.reset()
    counters.clear()
    compile_layers(model)
    graphs = []
    for inputs, (loss, gradients, kept) in zip(given, expected, strict=True):
        again, same, less = observed(model, inputs)
        graphs.append(counters["stats"]["unique_graphs"])
        torch.testing.assert_close(again, loss, rtol=1e-5, atol=0)
        largest = max(float(gradient.norm()) for gradient in gradients.values())
        for name, gradient in gradients.items():  # a bias of keys has none but for rounding
            scale = max(float(gradient.norm()), 1e-3 * largest)
            assert float((same[name] - gradient).norm()) <= 1e-5 * scale, name
        assert less < 0.5 * kept or not checkpointing
    assert not counters["graph_break"]
    # One for several rows; another may come of rows whose number is 1 or equals another size.
    assert graphs[-1] <= 2
    with torch.no_grad():
        model.eval()
        for inputs in given:
            hidden_states(model, inputs)
    assert counters["stats"]["unique_graphs"] <= graphs[-1] + 2
