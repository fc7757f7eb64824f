"""What a student writes about a few validation posts, the same ones after every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Final

from torch import nn

from mulcot.generation import RationaleRefusedError, decode_replies, parse_rationale
from mulcot.rows import RowCollator, RowEncoder, RowForm
from mulcot.types import Answer, Post, RationaleRecord

Judged = tuple[int, Answer, Post, RationaleRecord | None]
"""Where a post stands in its split, the answer, the post, the reference."""
_LOOKED_AT: Final = 1000


class SampledRationales:
    """Posts to ask about, chosen once.

    Args:
        data: the data module.
        encoder: the student's.
        count: how many posts.
        form: how the student takes rows.
    """

    def __init__(self, data: Any, encoder: RowEncoder, count: int, form: RowForm) -> None:
        posts = data.posts("val")
        self.encoder = encoder
        self.numbers = varied(list(islice(posts, _LOOKED_AT)), count)
        self.posts = [posts[number] for number in self.numbers]
        references = data.references("val")
        self.references = [references.get(post.id) for post in self.posts]
        rows = [encoder.row(post, "reasoning") for post in self.posts]
        self.prompts = RowCollator(encoder, form=form).tasks({"reasoning": rows})["reasoning"]

    def write(self, stage: Any, judged: Sequence[Judged]) -> list[tuple[Post, Answer, RationaleRecord | None]]:
        """The posts with what the student answers now, and their references.

        Every rank writes, for a model may be spread over all of them.

        Args:
            stage: holds the student in eval mode and says how long a rationale may get.
            judged: the student's classification of all validation posts.
        """
        model: nn.Module = stage.model
        replies = decode_replies(model, self.prompts.to(stage.device), self.encoder, stage.max_new_tokens)
        answers = {number: answer for number, answer, *_ in judged}
        return [
            (post, _with_reply(answers[number], reply, self.encoder.labels), reference)
            for post, number, reply, reference in zip(self.posts, self.numbers, replies, self.references, strict=True)
        ]


def varied(posts: Sequence[Post], count: int) -> list[int]:
    """The numbers of `count` posts, the first ones whose labels take turns, in the posts' order."""
    by_label: dict[str | None, list[int]] = {}
    for number, post in enumerate(posts):
        by_label.setdefault(post.label, []).append(number)
    turns = [(turn, numbers[turn]) for numbers in by_label.values() for turn in range(min(count, len(numbers)))]
    return sorted(number for _, number in sorted(turns)[:count])


def _with_reply(answer: Answer, reply: str, labels: Sequence[str]) -> Answer:
    try:
        return replace(answer, rationale=parse_rationale(reply, labels), reply=reply, refusal="")
    except RationaleRefusedError as refused:
        return replace(answer, rationale=None, reply=reply, refusal=str(refused))
