"""The models that training benchmarks run on: shapes, folders with random weights, and FLOPs by formula.

`cpu` keeps the proportions of the published pair at a size that two cores train: the assistant is 2.3 times the
student, and the vision tower, the same under both, costs what Qwen2.5-VL's costs beside 7B and 3B (about a tenth and
a quarter of the language model's weights). `qwen2.5-vl-7b-3b` has the real shapes. Weights are random in both, which no
timing sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from mulcot.models import Lora, RowSettings, load_model, save_model
from mulcot.models.loading import DType
from mulcot.models.tiny import SPECIAL_TOKENS, build_processor, train_tokenizer

IMAGE_SIZE: Final = (280, 280)
"""What every picture is squeezed to, as published."""
PATCHES: Final = 400
"""Patches of 14 x 14 pixels of such a picture."""
MERGED: Final = 4
"""Patches that become one token."""
PATCH_VALUES: Final = 2 * 3 * 14 * 14
"""Numbers of a patch: two frames, three colours."""
WINDOW_PATCHES: Final = 64
"""Patches that see each other in a layer with windows of 112 x 112 pixels."""


@dataclass(frozen=True)
class TextSize:
    """The shape of a language model."""

    hidden: int
    """Channels."""
    layers: int
    """Layers."""
    mlp: int
    """Channels inside an MLP."""
    heads: int
    """Heads of the queries."""
    kv_heads: int
    """Heads of keys and values."""
    vocab: int
    """Rows of the head."""
    tied: bool
    """Whether the head is the embedding."""

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.hidden // self.heads

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of a layer's linear maps, q, k, v, o, gate, up, down."""
        wide, narrow = self.hidden, self.kv_heads * self.head_dim
        into, out = (wide, self.mlp), (self.mlp, wide)
        return ((wide, wide), (wide, narrow), (wide, narrow), (wide, wide), into, into, out)

    @property
    def layer_weights(self) -> int:
        """Weights of a layer's linear maps."""
        return sum(inputs * outputs for inputs, outputs in self.linears)


@dataclass(frozen=True)
class VisionSize:
    """The shape of a vision tower of Qwen2.5-VL: windows of 112 x 112 pixels in all layers but the named ones."""

    hidden: int
    """Channels."""
    layers: int
    """Layers."""
    mlp: int
    """Channels inside an MLP."""
    heads: int
    """Heads."""
    whole: tuple[int, ...]
    """The layers in which every patch sees every other."""

    def weights(self, out: int) -> int:
        """Weights of its linear maps, patches and merger included.

        Args:
            out: channels of the language model.
        """
        layer = 4 * self.hidden**2 + 3 * self.hidden * self.mlp
        merged = MERGED * self.hidden
        return self.layers * layer + PATCH_VALUES * self.hidden + merged * (merged + out)


@dataclass(frozen=True)
class Preset:
    """One pair of models and how they are trained."""

    name: str
    """As on the command line."""
    assistant: TextSize
    """The larger one."""
    student: TextSize
    """The smaller one."""
    vision: VisionSize
    """The tower under both."""
    dtype: DType
    """Of the frozen weights."""
    precision: str
    """Lightning's name of the arithmetic."""
    accelerator: str
    """`cpu` or `gpu`."""
    posts_per_step: int
    """Posts of an optimizer step; the published 40 would only make a benchmark longer."""
    micro_batch: int = 2
    """Posts of a micro-batch, as published."""
    lora: int = 16
    """Rank of the adapters, on the language models."""
    vocab_size: int = 8192
    """Entries of the tokenizer at most: with so many it writes rationales as long as Qwen's does."""

    def shrunk(self, layers: int) -> Preset:
        """The same with so many layers in each part: to see that it runs.

        Args:
            layers: of the language models and the tower.
        """
        return replace(
            self,
            assistant=replace(self.assistant, layers=layers),
            student=replace(self.student, layers=layers),
            vision=replace(self.vision, layers=layers, whole=(layers - 1,)),
        )


PRESETS: Final = {
    "cpu": Preset(
        "cpu",
        assistant=TextSize(384, 8, 768, heads=12, kv_heads=6, vocab=32_000, tied=False),
        student=TextSize(256, 8, 512, heads=8, kv_heads=4, vocab=32_000, tied=False),
        vision=VisionSize(128, 6, 256, heads=4, whole=(5,)),
        dtype="float32",
        precision="32-true",
        accelerator="cpu",
        posts_per_step=8,
    ),
    "qwen2.5-vl-7b-3b": Preset(
        "qwen2.5-vl-7b-3b",
        assistant=TextSize(3584, 28, 18_944, heads=28, kv_heads=4, vocab=152_064, tied=False),
        student=TextSize(2048, 36, 11_008, heads=16, kv_heads=2, vocab=151_936, tied=True),
        vision=VisionSize(1280, 32, 3420, heads=16, whole=(7, 15, 23, 31)),
        dtype="bfloat16",
        precision="bf16-mixed",
        accelerator="gpu",
        posts_per_step=8,
    ),
}


# --- folders


def config_of(text: TextSize, vision: VisionSize, tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLConfig:
    """The configuration of a Qwen2.5-VL of this shape, with the ids of `tokenizer`."""
    vocabulary = tokenizer.get_vocab()
    ids = {token: vocabulary[token] for token in SPECIAL_TOKENS}
    half = text.head_dim // 2
    sections = [half // 4, (half - half // 4) // 2, half - half // 4 - (half - half // 4) // 2]
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": text.vocab,
            "hidden_size": text.hidden,
            "intermediate_size": text.mlp,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "num_key_value_heads": text.kv_heads,
            "max_position_embeddings": 32_768,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": sections},
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "tie_word_embeddings": text.tied,
        },
        vision_config={
            "depth": vision.layers,
            "hidden_size": vision.hidden,
            "intermediate_size": vision.mlp,
            "num_heads": vision.heads,
            "out_hidden_size": text.hidden,
            "fullatt_block_indexes": list(vision.whole),
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=text.tied,
    )


def build_models(folder: Path, preset: Preset, texts: Sequence[str]) -> dict[str, Path]:
    """Writes the pair with random weights, as Hugging Face folders that the product loads.

    Args:
        folder: an existing one.
        preset: the shapes.
        texts: what the tokenizer is trained on.

    Returns:
        `student`, `assistant_base`, and `assistant`, an adapter on the latter as a fit leaves one.
    """
    tokenizer = train_tokenizer(texts, preset.vocab_size)
    processor = build_processor(tokenizer, IMAGE_SIZE[0] * IMAGE_SIZE[1])
    settings = RowSettings(image_size=IMAGE_SIZE)
    device = "cuda" if preset.accelerator == "gpu" else "cpu"
    paths = {role: folder / role for role in ("student", "assistant_base", "assistant")}
    for seed, (role, text) in enumerate((("student", preset.student), ("assistant_base", preset.assistant))):
        config = config_of(text, preset.vision, tokenizer)
        config.dtype = preset.dtype
        model = _random_model(config, device, seed)
        save_model(model, processor, settings, paths[role])
        del model
        if device == "cuda":
            torch.cuda.empty_cache()  # of this process, which trains nothing itself
    lora = Lora(r=preset.lora, alpha=2 * preset.lora, dropout=0.2)
    adapted = load_model(str(paths["assistant_base"]), dtype=preset.dtype, lora=lora)
    save_model(adapted, processor, settings, paths["assistant"])
    return paths


def _random_model(config: Qwen2_5_VLConfig, device: str, seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, str(config.dtype).removeprefix("torch.")))
        try:
            with torch.device(device):
                model = Qwen2_5_VLForConditionalGeneration(config)
        finally:
            torch.set_default_dtype(before)
    text: Any = config.text_config
    model.generation_config.eos_token_id = text.eos_token_id
    model.generation_config.pad_token_id = text.pad_token_id
    return model


# --- FLOPs


def text_flops(size: TextSize, lengths: Sequence[int], lora: int = 0) -> float:
    """FLOPs of a forward pass through the layers of a language model, without its head.

    Args:
        size: its shape.
        lengths: tokens of each row, padding included where it is computed; a row's tokens are counted as if each
            attended to all, as dense masks have it.
        lora: the rank of an adapter on every linear map that is not merged; 0 for none.
    """
    tokens = sum(lengths)
    adapter = lora * sum(inputs + outputs for inputs, outputs in size.linears)
    return size.layers * (
        2.0 * tokens * (size.layer_weights + adapter) + 4.0 * size.hidden * sum(length**2 for length in lengths)
    )


def head_flops(size: TextSize, tokens: int) -> float:
    """FLOPs of the projection of so many hidden states to logits."""
    return 2.0 * tokens * size.hidden * size.vocab


def vision_flops(size: VisionSize, out: int, pictures: int) -> float:
    """FLOPs of a forward pass of pictures of `IMAGE_SIZE` through a vision tower.

    Args:
        size: its shape.
        out: channels of the language model.
        pictures: how many.
    """
    merger = MERGED * size.hidden * (MERGED * size.hidden + out)
    per_patch = size.weights(out) - merger
    seen = len(size.whole) * PATCHES + (size.layers - len(size.whole)) * WINDOW_PATCHES
    attention = 4.0 * size.hidden * PATCHES * seen
    return pictures * (2.0 * (PATCHES * per_patch + PATCHES // MERGED * merger) + attention)


def frozen_backward(size: TextSize, lengths: Sequence[int], lora: int) -> float:
    """FLOPs of a backward pass through frozen layers with adapters: gradients of activations and adapters alone.

    Args:
        size: see `text_flops`.
        lengths: likewise.
        lora: likewise.
    """
    plain = text_flops(size, lengths)
    attention = size.layers * 4.0 * size.hidden * sum(length**2 for length in lengths)
    adapters = text_flops(size, lengths, lora) - plain
    # A frozen map gives one gradient (its input's), a product of two activations and an adapter give two.
    return (plain - attention) + 2.0 * (attention + adapters)
