"""Posts answered batch by batch: label probabilities, and rationales where they are asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from mulcot.callbacks import Judged
from mulcot.generation import (
    RationaleRefusedError,
    Replies,
    ReplyWriter,
    label_probabilities,
    parse_rationale,
    read,
)
from mulcot.metrics import ClassificationReport, ReasoningReport
from mulcot.rows import QuestionBatch, RowEncoder
from mulcot.types import Answer, InputError

Answered = tuple[QuestionBatch, list[Answer]]


class Answering:
    """Answers one batch of questions after another.

    What a batch has in common is read once for both tasks. Rationales of a batch may be finished with those of the
    next, see `ReplyWriter`.

    Args:
        model: in eval mode.
        encoder: the model's.
        max_new_tokens: where a rationale is cut off at the latest.
    """

    def __init__(self, model: nn.Module, encoder: RowEncoder, max_new_tokens: int) -> None:
        self._model = model
        self._encoder = encoder
        self._writer = ReplyWriter(model, encoder, max_new_tokens)
        self._asked: list[tuple[QuestionBatch, list[list[float]], Replies | None]] = []

    def add(self, batch: QuestionBatch) -> list[Answered]:
        """Takes a batch with candidates, and with prompts where rationales are wanted.

        Returns:
            What is answered by now.

        Raises:
            InputError: the model gives no numbers.
        """
        if batch.candidates is None:
            raise ValueError("a batch without candidates cannot be classified")
        reading = None
        if batch.prompts is not None and batch.prompts.inputs is batch.candidates.inputs:
            reading = read(self._model, batch.candidates.inputs)
        table = label_probabilities(self._model, batch.candidates, len(self._encoder.labels), reading).tolist()
        for post, row in zip(batch.posts, table, strict=True):
            if not all(map(math.isfinite, row)):
                raise InputError(
                    f"{self._encoder.tokenizer.name_or_path}: its answers to post {post.id!r} are no finite numbers: "
                    "its weights or its processor's settings are damaged; take the model as it was published"
                )
        replies = None if batch.prompts is None else self._writer.add(batch.prompts, reading=reading)
        self._asked.append((batch, table, replies))
        return self._take()

    def finish(self) -> list[Answered]:
        """What was not answered yet."""
        self._writer.finish()
        return self._take()

    def _take(self) -> list[Answered]:
        done = [asked for asked in self._asked if asked[2] is None or not asked[2].unfinished]
        self._asked = [asked for asked in self._asked if asked[2] is not None and asked[2].unfinished]
        return [(batch, self._answers(batch, table, replies)) for batch, table, replies in done]

    def _answers(self, batch: QuestionBatch, table: list[list[float]], replies: Replies | None) -> list[Answer]:
        labels = self._encoder.labels
        texts = [""] * len(batch.posts) if replies is None else [self._encoder.decode(ids) for ids in replies.ids]
        return [
            _make_answer(post.id, dict(zip(labels, row, strict=True)), reply, labels)
            for post, row, reply in zip(batch.posts, table, texts, strict=True)
        ]


def answer_questions(model: nn.Module, batch: QuestionBatch, encoder: RowEncoder, max_new_tokens: int) -> list[Answer]:
    """Answers one batch: label probabilities from its candidates, rationales from its prompts where it has any.

    Args:
        model: see `Answering`.
        batch: with candidates.
        encoder: see `Answering`.
        max_new_tokens: see `Answering`.
    """
    answering = Answering(model, encoder, max_new_tokens)
    [(_, answers)] = answering.add(batch) + answering.finish()
    return answers


def one_by_one(answered: Sequence[Answered]) -> list[Judged]:
    """The answers one by one, with the posts that they are to."""
    return [
        (number, answer, post, reference)
        for batch, answers in answered
        for number, answer, post, reference in zip(batch.numbers, answers, batch.posts, batch.references, strict=True)
    ]


def _make_answer(post_id: str, probabilities: dict[str, float], reply: str, labels: Sequence[str]) -> Answer:
    label = max(probabilities, key=probabilities.__getitem__)
    try:
        rationale, refusal = (parse_rationale(reply, labels), "") if reply else (None, "no reply")
    except RationaleRefusedError as refused:
        rationale, refusal = None, str(refused)
    return Answer(post_id, label, probabilities, rationale, reply, refusal)


def scores_of(judged: Sequence[Judged], labels: Sequence[str]) -> dict[str, Any]:
    """The classification report over the posts with a gold label.

    Args:
        judged: posts with what a model says of them.
        labels: the label set.
    """
    report = ClassificationReport(labels)
    for _, answer, post, _ in judged:
        if post.label is not None:
            report.update([answer.label], [post.label], [answer.probabilities])
    return report.compute()


def reasoning_of(judged: Sequence[Judged], labels: Sequence[str]) -> dict[str, Any]:
    """The reasoning report over all posts.

    Args:
        judged: posts with what a model says of them.
        labels: the label set.
    """
    report = ReasoningReport(labels)
    for _, answer, post, reference in judged:
        report.update([answer], [reference], [post.label])
    return report.compute()
