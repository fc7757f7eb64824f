"""Learning from an assistant that writes with another tokenizer: whose tokens meet where, and the loss there.

Two tokenizers cut one response differently, and an id of the one means nothing to the other. What can be compared is
what both models predict where they have read the same text, by its shape alone: how much the likeliest token gets, how
much the second, and so on (Boizard et al., "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation
Loss for LLMs", arXiv 2402.12030). The paper compares the t-th token with the t-th; here positions are paired by text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from mulcot.losses.views import Dense, Projected, ViewKind, accumulable, check_temperature
from mulcot.types import InputError

NO_PARTNER: Final = -1
"""Stands for a token at whose position the assistant has no token that is predicted from the same text."""

Offsets = Sequence[tuple[int, int]]
"""Of every token of a text, the characters that it stands for: first, and behind the last."""


def common_boundaries(student_offsets: Offsets, assistant_offsets: Offsets) -> list[int]:
    """For every student token, the assistant token that is predicted from the same text.

    What a token is predicted from is all text up to the end of the token before it: where offsets leave a blank out,
    it belongs to the token that follows. Unpaired remain tokens in the midst of a character (of several byte-level
    tokens of one character, all but the first), since offsets do not say how many of its bytes were read, and tokens
    that stand for no text.

    Of the text `an owl` as `a|n| owl` and as `an| |owl`, the first tokens meet, and ` owl` meets the blank:

    >>> common_boundaries([(0, 1), (1, 2), (2, 6)], [(0, 2), (2, 3), (3, 6)])
    [0, -1, 1]

    Args:
        student_offsets: of the student's tokens of a text, in order.
        assistant_offsets: of the assistant's tokens of the same text.

    Returns:
        Indices of assistant tokens, rising, one for each student token; -1 where there is none.
    """
    partners = {read: index for index, read in enumerate(_read_before(assistant_offsets)) if read is not None}
    return [NO_PARTNER if read is None else partners.get(read, NO_PARTNER) for read in _read_before(student_offsets)]


def pair_responses(
    student_tokenizer: Any,
    assistant_tokenizer: Any,
    text: str,
    student_end: Sequence[int],
    assistant_end: Sequence[int],
) -> Tensor:
    """For every response token of the student, the assistant's response token that is predicted from the same text.

    Both tokenise the text as data, as `RowEncoder.plain_ids` does, with their own end of turn behind it. The first
    tokens of the two ends are both predicted from the whole text; further ones are paired where the ends are equally
    long.

    Args:
        student_tokenizer: a fast tokenizer of transformers.
        assistant_tokenizer: likewise.
        text: the response without end of turn.
        student_end: the student's end of turn, ids behind the text.
        assistant_end: the assistant's.

    Returns:
        `[student response tokens]` int64: indices into the assistant's response tokens, -1 where there is none.

    Raises:
        InputError: a tokenizer cannot say which characters a token stands for.
    """
    mine = _offsets(student_tokenizer, text, "student")
    theirs = _offsets(assistant_tokenizer, text, "assistant")
    shared = len(student_end) if len(student_end) == len(assistant_end) else min(1, len(assistant_end))
    ends = [len(theirs) + index if index < shared else NO_PARTNER for index in range(len(student_end))]
    return torch.tensor([*common_boundaries(mine, theirs), *ends], dtype=torch.int64)


def join_pairs(pairs: Sequence[Tensor], assistant_lengths: Sequence[int]) -> Tensor:
    """The pairs of several responses as one, for response tokens that stand behind one another, row by row.

    Args:
        pairs: of each response, as `pair_responses` gives them.
        assistant_lengths: how many response tokens the assistant has of each.

    Returns:
        `[student response tokens of all]` int64: indices into the assistant's response tokens of all.
    """
    firsts = accumulate(assistant_lengths, initial=0)
    moved = [torch.where(pair < 0, NO_PARTNER, pair + first) for pair, first in zip(pairs, firsts, strict=False)]
    return torch.cat([torch.zeros(0, dtype=torch.int64), *moved])


@dataclass(frozen=True, eq=False)
class Aligned:
    """The assistant's view of its own response tokens, and which of them each token of the student is held against."""

    kind: ClassVar[ViewKind] = "aligned"

    assistant: Dense | Projected
    """Of the assistant's response tokens, as its own tokenizer cuts them."""
    partner: Tensor
    """`[tokens]` int64, of the student's tokens: indices into the assistant's, -1 for none."""

    def __len__(self) -> int:
        """How many tokens of the student there are."""
        return len(self.partner)

    def __getitem__(self, tokens: slice | Tensor) -> Aligned:
        """The view of some of the student's tokens; nothing of the assistant is computed or copied yet."""
        return replace(self, partner=self.partner[tokens])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Aligned:
        """The view on another device."""
        values = {field.name: getattr(self.assistant, field.name) for field in fields(self.assistant)}
        moved = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in values.items()
            if isinstance(value, Tensor)
        }
        assistant = replace(self.assistant, **moved)  # type: ignore[arg-type]
        return Aligned(assistant, self.partner.to(device, non_blocking=non_blocking))

    def paired(self) -> tuple[Tensor, Tensor]:
        """The student's tokens that have a partner, `[paired]` indices, and the assistant's logits `[paired, rows]`."""
        tokens = (self.partner >= 0).nonzero().squeeze(-1)
        dense = self.assistant[self.partner[tokens]]
        return tokens, dense.logits[:, : dense.rows].detach()


def uld(logits: Tensor, view: Aligned, temperature: float = 1.0, top: int | None = None) -> Tensor:
    """Universal logit distillation: Σ_i |p_(i) - q_(i)| over the probabilities in falling order, without a factor T².

    The shorter vocabulary is filled up with zeros. This is the Wasserstein-1 distance of the two distributions where
    moving mass costs the same whatever the tokens are (Boizard et al., arXiv 2402.12030, section 3).

    Sorting is what it costs: with its gradient 4.6 s for 64 tokens of 151,936 against 128,256 ids on two busy cores,
    0.7 s with `top` = 1024. `top` compares that many of the likeliest ids one by one and the mass of all others as one
    number. That is never more than the exact value, and less by at most twice the smaller one of the two masses: little
    where the models are sure, much at a temperature that makes both flat.

    Args:
        logits: the student's, `[tokens, vocab]`, of any floating dtype.
        view: the assistant, with another vocabulary, and the pairs of the same tokens.
        temperature: T, for both.
        top: how many ids are told apart; None for all of them, which is exact.

    Returns:
        `[tokens]` between 0 and 2, fp32 at least; exactly 0, with a graph, where a token has no partner. The gradient
        flows to `logits` alone; where two probabilities are equal it is that of |x| at 0, which is 0.

    Raises:
        InputError: the temperature or `top` is not a positive number.
    """
    check_temperature(temperature)
    if top is not None and top < 1:
        raise InputError(f"top: {top} ids cannot be compared; it must be 1 or more, or null for all of them")
    tokens, assistant = view.paired()
    q = _falling(accumulable(logits[tokens]) / temperature, top)
    p = _falling(accumulable(assistant) / temperature, top).to(q.dtype)
    common = min(p.shape[-1], q.shape[-1])
    loss = (p[:, :common] - q[:, :common]).abs().sum(dim=-1)
    loss = loss + p[:, common:].sum(dim=-1) + q[:, common:].sum(dim=-1)
    if top is not None:
        # 1 - Σp and 1 - Σq differ by what the sums differ by, which keeps digits that the two differences lose.
        loss = loss + (p.sum(dim=-1) - q.sum(dim=-1)).abs()
    return torch.zeros(len(logits), dtype=loss.dtype, device=loss.device).index_add(0, tokens, loss)


def _falling(scores: Tensor, top: int | None) -> Tensor:
    """The largest probabilities `[tokens, top]` of scores `[tokens, vocab]` in falling order, all where top is None."""
    probabilities = scores.softmax(dim=-1)
    if top is None or top >= scores.shape[-1]:
        return probabilities.sort(dim=-1, descending=True).values
    return probabilities.topk(top, dim=-1).values


def _read_before(offsets: Offsets) -> list[int | None]:
    """For every token, how many characters those before it have read; None where it has no share in pairs."""
    read, result = 0, []
    for start, end in offsets:
        # A token that begins before the end of the last one shares a character with it: bytes of one character.
        result.append(read if start >= read and end > read else None)
        read = max(read, end)
    return result


def _offsets(tokenizer: Any, text: str, owner: str) -> list[tuple[int, int]]:
    if not tokenizer.is_fast:
        raise InputError(
            f"the {owner}'s {type(tokenizer).__name__} does not say which characters a token stands for, so its tokens "
            f"cannot be paired with another tokenizer's: take the fast tokenizer of the same model"
        )
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    offsets: list[tuple[int, int]] = encoded["offset_mapping"]
    return offsets
