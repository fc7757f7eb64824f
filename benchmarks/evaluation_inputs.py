"""What `benchmarks.evaluation` works on: a model, posts, and the rules by which both sides end their replies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from benchmarks.presets import IMAGE_SIZE, PRESETS, build_models
from data_modules.batching import token_batches
from data_modules.collate import QuestionSet
from data_modules.encoded import EncodedPosts
from data_modules.readers import GroupedSplit, TwitterJson
from mulcot.models import head, hidden_states, load_model, load_processor
from mulcot.rows import QuestionBatch, RowBatch, RowCollator, RowEncoder, RowForm
from mulcot.types import DEFAULT_LABELS, Post, Task, prediction_json

Ids = list[list[int]]


@dataclass
class Workload:
    """A model and the posts that it is asked about."""

    model: nn.Module
    encoder: RowEncoder
    posts: list[Post]
    encoded: EncodedPosts
    lengths: list[int]
    """Tokens of each post's rationale, its end of turn included."""
    batch_size: int

    def batches(self, tasks: Sequence[Task], form: RowForm, *, by_length: bool) -> list[QuestionBatch]:
        """The questions of all posts.

        Args:
            tasks: which ones.
            form: of the rows.
            by_length: whether batches are of posts of about the same length; else they are in the posts' order.
        """
        questions = QuestionSet([], self.encoded, RowCollator(self.encoder, form=form), tasks, {})
        if by_length:
            questions.slices = token_batches(*questions.sizes(), self.batch_size, None)
        else:
            every = range(len(self.posts))
            questions.slices = [every[at : at + self.batch_size] for at in every[:: self.batch_size]]
        return [questions[number] for number in range(len(questions))]

    def ending(self, batch: QuestionBatch, inner: Callable[..., Tensor] | None = None, copies: int = 1) -> Ending:
        """Ends the replies to a batch after their numbers of tokens.

        Args:
            batch: its posts.
            inner: applied to the scores before.
            copies: replies to each prompt.
        """
        return Ending([self.lengths[number] for number in batch.numbers] * copies, self.encoder, inner)


class Ending:
    """A sampler that ends every reply after a given number of tokens, and not before.

    Args:
        lengths: of each reply.
        encoder: knows the tokens that end one.
        inner: applied to the scores before.
    """

    def __init__(self, lengths: Sequence[int], encoder: RowEncoder, inner: Callable[..., Tensor] | None) -> None:
        self.left = list(lengths)
        self.ends = [encoder.pad_id, encoder.end_of_turn[-1]]
        self.inner = inner

    def __call__(self, scores: Tensor, replies: Sequence[int]) -> Tensor:
        """See `Sampler`."""
        if self.inner is not None:
            scores = self.inner(scores, replies)
        scores[:, self.ends] = -torch.inf
        for row, reply in enumerate(replies):
            self.left[reply] -= 1
            if self.left[reply] <= 0:  # transformers asks on after the end
                scores[row, self.ends[-1]] = torch.inf
        return scores


class Answers:
    """A sampler that lets every reply be one of the label set's answers.

    Args:
        encoder: knows them.
        count: replies.
    """

    def __init__(self, encoder: RowEncoder, count: int) -> None:
        self.answers = [encoder.response_ids(prediction_json(label)) for label in encoder.labels]
        self.most = max(map(len, self.answers))
        self.written: list[tuple[int, ...]] = [()] * count
        self.pad = encoder.pad_id

    def __call__(self, scores: Tensor, replies: Sequence[int]) -> Tensor:
        """See `Sampler`."""
        masked = torch.full_like(scores, -torch.inf)
        for row, reply in enumerate(replies):
            done = self.written[reply]
            following = {
                each[len(done)] for each in self.answers if each[: len(done)] == done and len(each) > len(done)
            }
            allowed = sorted(following) or [self.pad]  # transformers asks on after the end
            masked[row, allowed] = scores[row, allowed]
            self.written[reply] = (*done, int(masked[row].argmax()))
        return masked


class OfAll(LogitsProcessor):
    """A sampler for all rows of a batch, as transformers takes it."""

    def __init__(self, sampler: Callable[..., Tensor], replies: Sequence[int]) -> None:
        self.sampler = sampler
        self.replies = replies

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Changes the next token's scores."""
        return self.sampler(scores, self.replies)


def generate(load: Workload, prompts: RowBatch, most: int, rule: Callable[..., Tensor], copy: int = 0) -> Ids:
    """Transformers' `generate`, greedy as to the scores that it is given."""
    model: Any = load.model
    rows = range(copy * len(prompts.rows), (copy + 1) * len(prompts.rows))
    written = model.generate(
        **prompts.inputs,
        max_new_tokens=most,
        do_sample=False,
        eos_token_id=load.encoder.end_of_turn[-1],
        pad_token_id=load.encoder.pad_id,
        logits_processor=LogitsProcessorList([OfAll(rule, rows)]),
    )
    width = prompts.inputs["input_ids"].shape[1]
    return [load.encoder.until_end(ids) for ids in written[:, width:].tolist()]


def prepare(data_root: Path, folder: Path, role: str, posts: int, batch_size: int) -> Workload:
    """Builds the model and encodes the posts."""
    reader = TwitterJson(data_root / "val.json", data_root / "Images")
    every, replies = list(GroupedSplit(reader, 900, 111, 111).read("train")), reader.replies()
    if not (folder / role).exists():
        build_models(folder, PRESETS["cpu"], [f"{post.text} {replies[post.id]}" for post in every])
    name = str(folder / ("assistant_base" if role == "assistant" else role))
    encoder = RowEncoder(load_processor(name), DEFAULT_LABELS, IMAGE_SIZE)
    model = load_model(name).eval()
    chosen = every[:posts]
    fit_head(model, encoder, every[-64:])
    lengths = [len(encoder.response_ids(replies[post.id])) for post in chosen]
    encoded = EncodedPosts.encode(chosen, encoder, ["classification", "reasoning"])
    return Workload(model, encoder, chosen, encoded, lengths, batch_size)


def fit_head(model: nn.Module, encoder: RowEncoder, posts: Sequence[Post]) -> None:
    """Fits the head's rows of the answers' tokens to the answers of some posts; hidden states stay as they are."""
    collator = RowCollator(encoder)
    hidden, targets = [], []
    with torch.no_grad():
        for first in range(0, len(posts), 8):
            some = posts[first : first + 8]
            rows = [encoder.row(post, "classification", prediction_json(str(post.label))) for post in some]
            batch = collator.batch(rows)
            hidden.append(hidden_states(model, batch.inputs).flatten(0, 1)[batch.positions])
            targets.append(batch.targets)
    tokens, wanted = torch.cat(targets).unique(return_inverse=True)
    seen = torch.cat(hidden)
    weight: Any = head(model).weight
    fitted = weight.detach()[tokens].clone().requires_grad_()
    others = torch.full((len(seen), 1), math.log(len(weight)))  # the tokens of no answer, together
    optimizer = torch.optim.Adam([fitted], lr=1e-2)
    for _ in range(300):
        loss = nn.functional.cross_entropy(torch.cat([seen @ fitted.T, others], dim=1), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        weight[tokens] = fitted
