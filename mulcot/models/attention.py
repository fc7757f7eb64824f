"""Attention by its name in transformers, and `flex_attention` for every language model.

Transformers grants `flex_attention` by a flag of the whole model, which Qwen's do not carry on account of their vision
towers. Their language models take any attention function, so it is registered under a name of ours and given to the
language model alone; the tower keeps `sdpa`, which needs no mask there.
"""

from __future__ import annotations

from typing import Final

from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.masking_utils import flex_attention_mask

BLOCK_ATTENTION: Final = "mulcot_block_mask"
"""The name under which it is registered; transformers would refuse its own name."""


def implementation(attention: str) -> str | dict[str, str]:
    """What `from_pretrained` takes as `attn_implementation`.

    Args:
        attention: the attention by name.
    """
    if attention != "flex_attention":
        return attention
    AttentionInterface.register(BLOCK_ATTENTION, flex_attention_forward)
    AttentionMaskInterface.register(BLOCK_ATTENTION, flex_attention_mask)
    return {"": "sdpa", "vision_config": "sdpa", "text_config": BLOCK_ATTENTION}
