"""The FLOPs that benchmarks count by formula are those that torch counts in a model of these shapes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2_5_VLForConditionalGeneration

from benchmarks.presets import (
    MERGED,
    PATCH_VALUES,
    PATCHES,
    PRESETS,
    TextSize,
    VisionSize,
    config_of,
    frozen_backward,
    head_flops,
    text_flops,
    vision_flops,
)
from mulcot.models.loading import add_lora
from mulcot.models.sources import Lora
from mulcot.models.tiny import train_tokenizer

TEXT = TextSize(64, 2, 96, heads=2, kv_heads=1, vocab=600, tied=False)
TOWER = VisionSize(64, 2, 96, heads=2, whole=(1,))


@pytest.fixture(scope="module")
def model() -> Any:
    config = config_of(TEXT, TOWER, train_tokenizer(["a post"], 300))
    # Eager attention is two matrix products, which torch counts; its fused one is counted for GPUs alone.
    config._attn_implementation = "eager"
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def counted(run: Any) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def test_language_model_and_head(model: Any) -> None:
    ids = torch.randint(300, (2, 40))
    hidden = counted(lambda: model.model(input_ids=ids, use_cache=False))
    # Rotary frequencies are a product of their own, of half a head's channels for each of three axes.
    rotary = hidden - text_flops(TEXT, [40, 40])
    assert 0 <= rotary <= 0.002 * hidden
    whole = counted(lambda: model(input_ids=ids, use_cache=False))
    assert whole - hidden == head_flops(TEXT, 80)


def test_tower(model: Any) -> None:
    grid = torch.tensor([[1, 20, 20]])
    pixels = torch.zeros(PATCHES, PATCH_VALUES)
    found = counted(lambda: model.model.visual(pixels, grid_thw=grid))
    # Windows at the edges of a picture are smaller than whole ones.
    assert vision_flops(TOWER, TEXT.hidden, 1) == pytest.approx(found, rel=0.02)
    linear = sum(value.numel() for value in model.model.visual.parameters() if value.ndim > 1)
    assert TOWER.weights(TEXT.hidden) == linear
    assert PATCHES // MERGED == 100


def test_backward_of_a_frozen_model_under_an_adapter(model: Any) -> None:
    config = config_of(TEXT, TOWER, train_tokenizer(["a post"], 300))
    config._attn_implementation = "eager"
    adapted = add_lora(Qwen2_5_VLForConditionalGeneration(config), Lora(r=4, dropout=0.0))
    ids = torch.randint(300, (2, 40))
    kept: list[torch.Tensor] = []
    forward = counted(lambda: kept.append(adapted.get_base_model().model(input_ids=ids, use_cache=False)[0]))
    assert text_flops(TEXT, [40, 40], lora=4) == pytest.approx(forward, rel=0.002)
    backward = counted(lambda: kept[0].sum().backward())
    # The first layer's input, an embedding, wants no gradient.
    assert frozen_backward(TEXT, [40, 40], lora=4) == pytest.approx(backward, rel=0.15)
    assert frozen_backward(TEXT, [40, 40], lora=4) >= backward


def test_proportions_of_the_small_pair_are_those_of_the_real_one() -> None:
    def shares(name: str) -> tuple[float, float, float]:
        preset = PRESETS[name]
        weights = {size: size.layers * size.layer_weights for size in (preset.assistant, preset.student)}
        tower = preset.vision.layers * (4 * preset.vision.hidden**2 + 3 * preset.vision.hidden * preset.vision.mlp)
        assistant, student = weights.values()
        return assistant / student, tower / assistant, tower / student

    for small, real in zip(shares("cpu"), shares("qwen2.5-vl-7b-3b"), strict=True):
        assert small == pytest.approx(real, rel=0.15)


def test_real_shapes_have_the_published_number_of_weights() -> None:
    preset = PRESETS["qwen2.5-vl-7b-3b"]
    student = preset.student.layers * preset.student.layer_weights + preset.student.vocab * preset.student.hidden
    tower = preset.vision.weights(preset.student.hidden)
    assert student + tower == pytest.approx(3.75e9, rel=0.01)  # of Qwen2.5-VL-3B-Instruct on the hub
    assert replace(preset).shrunk(1).student.layers == 1
