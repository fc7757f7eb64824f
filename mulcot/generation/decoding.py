"""Batched decoding of replies, greedy or sampled; a sample depends on its own seed alone, not on its batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from mulcot.generation.continuing import Reading, Replies, RowWriter, Sampler, read
from mulcot.models import base_model
from mulcot.rows import RowBatch, RowEncoder


class SeededSampler:
    """Turns greedy decoding into sampling: the argmax of logits / T + Gumbel noise samples softmax(logits / T).

    Every reply draws its noise from a generator of its own, so it is the same in any batch and on any rank (up to the
    rounding of the model's own arithmetic).

    Args:
        seeds: one for each reply.
        temperature: of the softmax that is sampled from.
    """

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        self.temperature = temperature
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, scores: Tensor, replies: Sequence[int]) -> Tensor:
        """Adds noise to the next token's scores.

        Args:
            scores: `[replies, vocab]`.
            replies: which replies they are of.
        """
        noise = torch.empty(scores.shape)
        for row, reply in zip(noise, replies, strict=True):
            torch.rand(len(row), generator=self.generators[reply], out=row)
        gumbel = noise.clamp_(min=1e-20, max=1 - 1e-7).log_().neg_().log_().neg_()
        return scores.float() / self.temperature + gumbel.to(scores.device)


def sample_seed(seed: int, post_id: str, index: int) -> int:
    """The seed of a post's `index`-th sample: a hash, so that neighbouring posts draw unrelated noise."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{post_id}/{index}".encode()).digest()[:7])


def decode_replies(
    model: nn.Module,
    prompts: RowBatch,
    encoder: RowEncoder,
    max_new_tokens: int,
    sampler: Sampler | None = None,
    reading: Reading | None = None,
    copies: int = 1,
) -> list[str]:
    """Writes replies to every prompt.

    Args:
        model: in eval mode.
        prompts: in the shared layout, or padded on the left.
        encoder: knows the end of turn and turns token ids into text.
        max_new_tokens: where a reply is cut off at the latest.
        sampler: samples; None decodes greedily.
        reading: what the model has read of prompts in the shared layout, which is used up; None reads them now.
        copies: replies to each prompt.

    Returns:
        The replies without end of turn: one to every prompt in the prompts' order, then the second ones, and so on.
    """
    written = decode_ids(model, prompts, encoder, max_new_tokens, sampler, reading=reading, copies=copies)
    return [encoder.decode(ids) for ids in written]


@torch.no_grad()
def decode_ids(
    model: nn.Module,
    prompts: RowBatch,
    encoder: RowEncoder,
    max_new_tokens: int,
    sampler: Sampler | None = None,
    give_up: Callable[[], bool] | None = None,
    reading: Reading | None = None,
    copies: int = 1,
) -> list[list[int]]:
    """Writes replies to every prompt, as token ids.

    Args:
        model: see `decode_replies`.
        prompts: see `decode_replies`.
        encoder: see `decode_replies`.
        max_new_tokens: see `decode_replies`.
        sampler: see `decode_replies`.
        give_up: asked after every token; True ends all replies where they are.
        reading: see `decode_replies`.
        copies: see `decode_replies`.

    Returns:
        What was written, in the order of `decode_replies`, up to and with the token that ends it; a reply that was cut
        off has no such token (`RowEncoder.is_ended`).
    """
    writer = ReplyWriter(model, encoder, max_new_tokens, give_up)
    replies = writer.add(prompts, sampler, reading, copies)
    writer.finish()
    return replies.ids


class ReplyWriter:
    """Writes replies to one batch of prompts after another; where the model can, a batch is filled up with the next.

    Args:
        model: see `decode_replies`.
        encoder: see `decode_replies`.
        max_new_tokens: see `decode_replies`.
        give_up: see `decode_ids`.
    """

    def __init__(
        self, model: nn.Module, encoder: RowEncoder, max_new_tokens: int, give_up: Callable[[], bool] | None = None
    ) -> None:
        self._model = model
        self._encoder = encoder
        self._max_new_tokens = max_new_tokens
        self._give_up = give_up
        self._rows = RowWriter(model, encoder, max_new_tokens, give_up)

    @torch.no_grad()
    def add(
        self, prompts: RowBatch, sampler: Sampler | None = None, reading: Reading | None = None, copies: int = 1
    ) -> Replies:
        """Adds prompts.

        Args:
            prompts: see `decode_replies`.
            sampler: see `decode_replies`.
            reading: see `decode_replies`.
            copies: see `decode_replies`.

        Returns:
            The replies, finished or not; all of them are after `finish`.
        """
        if prompts.is_shared:
            return self._rows.add(prompts, reading or read(self._model, prompts.inputs), sampler, copies)
        count = len(prompts.rows)
        written: list[list[int]] = []
        for first in range(0, copies * count, count):
            processor = sampler and _Sampled(sampler, range(first, first + count))
            written += _generate(self._model, prompts, self._encoder, self._max_new_tokens, processor, self._give_up)
        return Replies(written)

    def finish(self) -> None:
        """Writes what is left."""
        self._rows.finish()


def _generate(
    model: nn.Module,
    prompts: RowBatch,
    encoder: RowEncoder,
    max_new_tokens: int,
    processor: LogitsProcessor | None,
    give_up: Callable[[], bool] | None,
) -> list[list[int]]:
    """One reply to each of some prompts that are padded on the left."""
    generator: Any = base_model(model)
    kept = generator.generation_config
    # What a model's own says would be added: penalties, forced and forbidden tokens, drafts.
    generator.generation_config = GenerationConfig()
    try:
        written = generator.generate(
            **prompts.inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=encoder.end_of_turn[-1],
            pad_token_id=encoder.pad_id,
            logits_processor=LogitsProcessorList([processor] if processor else []),
            stopping_criteria=StoppingCriteriaList([_GiveUp(give_up)] if give_up else []),
        )
    finally:
        generator.generation_config = kept
    width = prompts.inputs["input_ids"].shape[1]
    return [encoder.until_end(ids) for ids in cast(Tensor, written)[:, width:].tolist()]


class _Sampled(LogitsProcessor):
    """A sampler for transformers, which keeps all rows to the end."""

    def __init__(self, sampler: Sampler, replies: Sequence[int]) -> None:
        self._sampler = sampler
        self._replies = replies

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self._sampler(scores, self._replies)


class _GiveUp(StoppingCriteria):
    """Ends all rows of a batch when it is told to."""

    def __init__(self, wanted: Callable[[], bool]) -> None:
        self._wanted = wanted

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        return torch.full((len(input_ids),), self._wanted(), device=input_ids.device)
