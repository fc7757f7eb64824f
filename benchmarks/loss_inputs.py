"""What the losses' benchmark computes on: heads, hidden states and targets whose logits look like a language model's.

SmolLM2-135M-Instruct gives replies of its own about posts logits of a standard deviation of 3.9 over the vocabulary;
the ids of rank 10, 64 and 1,024 lie 4, 7 and 12 below the likeliest, and the entropy is 2.4 nats. Here 32 ids a token
are lifted out of normal logits of that deviation, the first of them further, since an assistant that was trained on the
rationales is surer (1 nat). The student has the same candidates, each shifted by an error of its own, and most of
the rest in common with the assistant.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    tokens: int
    """Response tokens of a step."""
    distinct: int
    """How many of them differ; they are repeated, since making each takes as long as measuring."""
    vocab: int
    """Rows of both heads."""
    hidden: int
    """The student's hidden size."""
    assistant: int
    """The assistant's, which is larger; Qwen2.5-VL-7B has 3,584."""
    repeats: int
    """Runs of each side."""


def student_head(sizes: Sizes) -> Tensor:
    """`[vocab, hidden]`, rows of about norm 1."""
    draw = torch.Generator().manual_seed(0)
    return torch.empty(sizes.vocab, sizes.hidden).normal_(std=sizes.hidden**-0.5, generator=draw)


def assistant_head(sizes: Sizes, student: Tensor) -> Tensor:
    """`[vocab, assistant]`: the student's features and others, which the student does not have."""
    draw = torch.Generator().manual_seed(1)
    weight = torch.empty(sizes.vocab, sizes.assistant)
    weight[:, : sizes.hidden] = student
    weight[:, sizes.hidden :].normal_(std=sizes.hidden**-0.5, generator=draw)
    return weight


def make_tokens(sizes: Sizes, student: Tensor) -> dict[str, Tensor]:
    """The last hidden states of student and assistant at the different tokens."""
    draw = torch.Generator().manual_seed(2)

    def normal(*shape: int, std: float = 1.0) -> Tensor:
        return torch.empty(*shape).normal_(std=std, generator=draw)

    n, own = sizes.distinct, sizes.assistant - sizes.hidden
    shared = normal(n, sizes.hidden, std=3.7)
    candidates = torch.randint(sizes.vocab, (n, 32), generator=draw)
    # The highest of so many normal logits is about 17: the first candidate lies above it, a little or a lot.
    lift = 16 + 8 * torch.rand(n, 1, generator=draw) - 1.5 * torch.arange(1, 33).log()
    lift[:, 0] += 8 * torch.rand(n, generator=draw)
    rows = student[candidates]
    assistant = torch.cat([shared, normal(n, own, std=1.2 * (sizes.hidden / own) ** 0.5)], dim=1)
    assistant[:, : sizes.hidden] += (lift.unsqueeze(-1) * rows).sum(dim=1)
    errors = lift + normal(n, 32)
    hidden = shared + normal(n, sizes.hidden) + (errors.unsqueeze(-1) * rows).sum(dim=1)
    return {"hidden": hidden, "assistant": assistant}


def repeated(tensors: dict[str, Tensor], times: int) -> dict[str, Tensor]:
    """The same tokens several times, one after the other."""
    return {name: value.repeat(times, *[1] * (value.ndim - 1)) for name, value in tensors.items()}
