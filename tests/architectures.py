"""A tiny model with random weights, and its processor, of every architecture that takes the shared layout."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken
from transformers import (
    CLIPImageProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from mulcot.models.tiny import CHAT_TEMPLATE, build_processor, train_tokenizer

ARCHITECTURES = ("idefics3", "llava", "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "smolvlm")
TEXTS = ['{"Text_analysis": "a mild word", "Prediction": "positive"}', "neutral negative owl meadow"] * 3
IMAGE = "<image>"
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "initializer_range": 0.1,
}


def build(architecture: str) -> tuple[Any, Any]:
    """The processor and the model of an architecture; the weights are a function of its name alone."""
    processor, config, model_class = getattr(_Builders, architecture)()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = model_class(config).eval()
    end, pad = (processor.tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>"))
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = end, pad
    return processor, model


class _Builders:
    @staticmethod
    def qwen2_vl() -> tuple[Any, Any, Any]:
        tokenizer = train_tokenizer(TEXTS, 400)
        vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}
        config = Qwen2VLConfig(text_config=_qwen_text(tokenizer), vision_config=vision, **_qwen_ids(tokenizer))
        return build_processor(tokenizer, 84 * 84), config, Qwen2VLForConditionalGeneration

    @staticmethod
    def qwen2_5_vl() -> tuple[Any, Any, Any]:
        tokenizer = train_tokenizer(TEXTS, 400)
        vision = {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
        }
        config = Qwen2_5_VLConfig(text_config=_qwen_text(tokenizer), vision_config=vision, **_qwen_ids(tokenizer))
        return build_processor(tokenizer, 84 * 84), config, Qwen2_5_VLForConditionalGeneration

    @staticmethod
    def qwen3_vl() -> tuple[Any, Any, Any]:
        tokenizer = train_tokenizer(TEXTS, 400)
        vision = {
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 64,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        }
        text = _qwen_text(tokenizer) | {"head_dim": 16}
        config = Qwen3VLConfig(text_config=text, vision_config=vision, **_qwen_ids(tokenizer))
        size = {"shortest_edge": 32 * 32, "longest_edge": 96 * 96}
        processor = Qwen3VLProcessor(
            image_processor=Qwen2VLImageProcessor(size=size, patch_size=16),
            video_processor=Qwen2VLVideoProcessor(size=size, patch_size=16),
            tokenizer=tokenizer,
            chat_template=CHAT_TEMPLATE,
        )
        return processor, config, Qwen3VLForConditionalGeneration

    @staticmethod
    def smolvlm() -> tuple[Any, Any, Any]:
        tokenizer, ids = _plain_tokenizer()
        processor = SmolVLMProcessor(
            image_processor=SmolVLMImageProcessor(**_TILES),
            video_processor=SmolVLMVideoProcessor(),
            tokenizer=tokenizer,
            image_seq_len=4,
            chat_template=_PLAIN,
        )
        config = SmolVLMConfig(text_config=_llama_text(tokenizer), vision_config=_SIGLIP, scale_factor=2, **ids)
        return processor, config, SmolVLMForConditionalGeneration

    @staticmethod
    def idefics3() -> tuple[Any, Any, Any]:
        tokenizer, ids = _plain_tokenizer()
        processor = Idefics3Processor(
            image_processor=Idefics3ImageProcessor(**_TILES), tokenizer=tokenizer, image_seq_len=4, chat_template=_PLAIN
        )
        config = Idefics3Config(text_config=_llama_text(tokenizer), vision_config=_SIGLIP, scale_factor=2, **ids)
        return processor, config, Idefics3ForConditionalGeneration

    @staticmethod
    def llava() -> tuple[Any, Any, Any]:
        tokenizer, ids = _plain_tokenizer()
        side = {"height": 56, "width": 56}
        processor = LlavaProcessor(
            image_processor=CLIPImageProcessor(size=side, crop_size=side),
            tokenizer=tokenizer,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            image_token=IMAGE,
            chat_template=_PLAIN,
        )
        vision = _SIGLIP | {"model_type": "clip_vision_model", "image_size": 56, "projection_dim": 32}
        config = LlavaConfig(
            text_config=_llama_text(tokenizer),
            vision_config=vision,
            image_seq_length=16,
            image_token_index=ids["image_token_id"],
        )
        return processor, config, LlavaForConditionalGeneration


_SIGLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
_TILES = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 56}, "do_image_splitting": False}
_PLAIN = CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", IMAGE)


def _qwen_text(tokenizer: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return TEXT | ids | {"vocab_size": len(tokenizer), "rope_parameters": rope}


def _qwen_ids(tokenizer: Any) -> dict[str, Any]:
    ids = {token: tokenizer.convert_tokens_to_ids(f"<|{token}|>") for token in _QWEN_TOKENS}
    return {"tie_word_embeddings": False} | {
        name: ids[token]
        for name, token in (
            ("image_token_id", "image_pad"),
            ("video_token_id", "video_pad"),
            ("vision_start_token_id", "vision_start"),
            ("vision_end_token_id", "vision_end"),
        )
    }


_QWEN_TOKENS = ("image_pad", "video_pad", "vision_start", "vision_end")


def _plain_tokenizer() -> tuple[Any, dict[str, Any]]:
    tokenizer = train_tokenizer(TEXTS, 400)
    added = [IMAGE, "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    tokenizer.image_token = IMAGE
    return tokenizer, {"image_token_id": tokenizer.convert_tokens_to_ids(IMAGE), "tie_word_embeddings": False}


def _llama_text(tokenizer: Any) -> dict[str, Any]:
    pad = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    return TEXT | {"model_type": "llama", "vocab_size": len(tokenizer), "pad_token_id": pad}
