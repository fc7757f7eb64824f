"""The embedded pair: two tiny Qwen2.5-VL models and a tokenizer, built from a configuration by code.

They are ordinary Hugging Face folders, so everything that works on them works on the real models. The tokenizer is a
byte-level BPE with Qwen's special tokens, trained on the texts it is given: on a tiny vocabulary a tokenizer that has
seen the kind of text that follows halves the length of every row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

SPECIAL_TOKENS: Final = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Qwen's special tokens that the chat template and the vision tower use, in the order of their ids here."""

# Qwen's turns without its default system prompt, which would lengthen every row.
CHAT_TEMPLATE: Final = (
    "{%- for message in messages -%}"
    "<|im_start|>{{ message.role + '\n' }}"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- else -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{ '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
)

# Numbers split digit by digit and words take their leading blank along, as Qwen's own pre-tokenizer does.
WORDS: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


# Wider than Qwen's 0.02, which is for thousands of channels: with a hundred, attention hardly moves from it within the
# few hundred steps that a demo has (labels alone, one seed, test accuracy: 0.75 at 0.02 after 376 steps; 0.76 at 0.05
# and 0.88 at 0.1 after 564).
INITIAL_DEVIATION: Final = 0.1


@dataclass(frozen=True)
class TinySize:
    """The size of one tiny model; heads have 32 channels, grouped-query attention has half as many key/value heads."""

    hidden: int
    """Channels of the language model."""
    layers: int
    """Layers of the language model."""
    mlp: int
    """Channels inside the language model's MLPs."""
    vision_hidden: int
    """Channels of the vision tower."""
    vision_layers: int
    """Layers of the vision tower."""


SIZES: Final = {
    "assistant": TinySize(hidden=96, layers=4, mlp=256, vision_hidden=64, vision_layers=2),
    "student": TinySize(hidden=64, layers=3, mlp=192, vision_hidden=64, vision_layers=1),
}
"""The embedded pair. Both share one tokenizer, as Qwen2.5-VL-7B and 3B do."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Qwen2Tokenizer:
    """Trains a byte-level BPE of at most `vocab_size` entries, special tokens included, on `texts`.

    Every text of any language can be written with it, since all 256 bytes are entries.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern=Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return Qwen2Tokenizer(
        tokenizer_object=tokenizer,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS[3:]),
        model_max_length=32768,
    )


def build_processor(tokenizer: Qwen2Tokenizer, max_pixels: int) -> Qwen2_5_VLProcessor:
    """A Qwen2.5-VL processor that shrinks pictures to at most `max_pixels` pixels (28 × 28 of them make a token)."""
    smallest = 28 * 28
    size = {"shortest_edge": smallest, "longest_edge": max(smallest, max_pixels)}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        video_processor=Qwen2VLVideoProcessor(size=size),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(size: TinySize, tokenizer: Qwen2Tokenizer, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL of the given size with random weights, a function of `seed` alone."""
    heads = size.hidden // 32
    vocabulary = tokenizer.get_vocab()
    ids = {token: vocabulary[token] for token in SPECIAL_TOKENS}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": size.hidden,
            "intermediate_size": size.mlp,
            "num_hidden_layers": size.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": max(1, heads // 2),
            "max_position_embeddings": 32768,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "tie_word_embeddings": True,
            "initializer_range": INITIAL_DEVIATION,
        },
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_hidden,
            "intermediate_size": 2 * size.vision_hidden,
            "num_heads": size.vision_hidden // 32,
            "out_hidden_size": size.hidden,
            "fullatt_block_indexes": [size.vision_layers - 1],
            "initializer_range": INITIAL_DEVIATION,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    return model


def build_pair(folder: Path, texts: Iterable[str], vocab_size: int, max_pixels: int, seed: int) -> dict[str, int]:
    """Writes `folder/assistant` and `folder/student`, two Hugging Face folders that share one tokenizer.

    Returns:
        The number of parameters of each.
    """
    processor = build_processor(train_tokenizer(texts, vocab_size), max_pixels)
    parameters = {}
    for offset, (role, size) in enumerate(SIZES.items()):
        model = build_model(size, processor.tokenizer, seed + offset)
        model.save_pretrained(folder / role)
        processor.save_pretrained(folder / role)
        parameters[role] = sum(parameter.numel() for parameter in model.parameters())
    return parameters
