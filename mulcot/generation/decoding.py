"""Batched decoding of replies, greedy or sampled; a sample depends on its own seed alone, not on its batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from mulcot.models import base_model
from mulcot.rows import RowBatch, RowEncoder


class SeededSampler(LogitsProcessor):
    """Turns greedy decoding into sampling: the argmax of logits / T + Gumbel noise samples softmax(logits / T).

    Every row draws its noise from a generator of its own, so a reply is the same in any batch and on any rank (up to
    the rounding of the model's own arithmetic).

    Args:
        seeds: one for each row.
        temperature: of the softmax that is sampled from.
    """

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        self.temperature = temperature
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Adds each row's noise to the next token's scores `[B, vocab]`."""
        noise = torch.stack([torch.rand(scores.shape[-1], generator=generator) for generator in self.generators])
        gumbel = -torch.log(-torch.log(noise.clamp(min=1e-20, max=1 - 1e-7)))
        return scores.float() / self.temperature + gumbel.to(scores.device)


def sample_seed(seed: int, post_id: str, index: int) -> int:
    """The seed of a post's `index`-th sample: a hash, so that neighbouring posts draw unrelated noise."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{post_id}/{index}".encode()).digest()[:7])


@torch.no_grad()
def decode_replies(
    model: nn.Module, prompts: RowBatch, encoder: RowEncoder, max_new_tokens: int, sampler: SeededSampler | None = None
) -> list[str]:
    """Writes one reply to every prompt.

    Args:
        model: in eval mode.
        prompts: padded on the left.
        encoder: knows the end of turn and turns token ids into text.
        max_new_tokens: where a reply is cut off at the latest.
        sampler: samples; None decodes greedily.

    Returns:
        The replies without end of turn, in the prompts' order.
    """
    written = decode_ids(model, prompts, encoder, max_new_tokens, sampler)
    return [encoder.decode(ids) for ids in written]


@torch.no_grad()
def decode_ids(
    model: nn.Module,
    prompts: RowBatch,
    encoder: RowEncoder,
    max_new_tokens: int,
    sampler: SeededSampler | None = None,
    give_up: Callable[[], bool] | None = None,
) -> list[list[int]]:
    """Writes one reply to every prompt, as token ids.

    Args:
        model: see `decode_replies`.
        prompts: see `decode_replies`.
        encoder: see `decode_replies`.
        max_new_tokens: see `decode_replies`.
        sampler: see `decode_replies`.
        give_up: asked after every token; True ends all replies where they are.

    Returns:
        What was written, in the prompts' order, up to and with the token that ends it; a reply that was cut off has
        no such token (`RowEncoder.is_ended`).
    """
    generator: Any = base_model(model)
    written = generator.generate(
        **prompts.inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=encoder.end_of_turn[-1],
        pad_token_id=encoder.pad_id,
        logits_processor=LogitsProcessorList([sampler] if sampler else []),
        stopping_criteria=StoppingCriteriaList([_GiveUp(give_up)] if give_up else []),
    )
    width = prompts.inputs["input_ids"].shape[1]
    return [encoder.until_end(ids) for ids in cast(Tensor, written)[:, width:].tolist()]


class _GiveUp(StoppingCriteria):
    """Ends all rows of a batch when it is told to."""

    def __init__(self, wanted: Callable[[], bool]) -> None:
        self._wanted = wanted

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        return torch.full((len(input_ids),), self._wanted(), device=input_ids.device)
