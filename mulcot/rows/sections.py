"""Which field of a rationale every response token belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from mulcot.types import RATIONALE_KEYS

SECTIONS: Final[tuple[str, ...]] = (*RATIONALE_KEYS, "format")
"""The five fields, and what is none of them: keys, quotes, braces and the end of turn."""
_FORMAT: Final = SECTIONS.index("format")
_STRING: Final = r'"((?:[^"\\]|\\.)*)"'
_MEMBER: Final = re.compile(rf"[{{,]\s*{_STRING}\s*:\s*{_STRING}", re.DOTALL)
_Span = tuple[int, int]
"""Where a token's characters begin and end in a text."""


def token_sections(tokenizer: Any, response_ids: Sequence[int], end_of_turn: Sequence[int]) -> list[int]:
    """The section of every token of a response, as an index into `SECTIONS`.

    A token that holds a character of a field's text belongs to that field, whatever else it holds: its prediction is
    about that text. A response that is not JSON is `format` throughout.

    Args:
        tokenizer: the model's Hugging Face tokenizer.
        response_ids: the response, the end of turn included.
        end_of_turn: the ids that end it.
    """
    end = len(response_ids) - len(end_of_turn)
    if tuple(response_ids[end:]) != tuple(end_of_turn):
        end = len(response_ids)  # a response that was cut off
    ids = list(response_ids[:end])
    text = _decode(tokenizer, ids)
    sections = [_FORMAT] * len(response_ids)
    spans = _offsets(tokenizer, ids, text) or list(_grown(tokenizer, ids))
    fields = [
        (match.start(2), match.end(2), SECTIONS.index(match[1]))
        for match in _MEMBER.finditer(text)
        if match[1] in RATIONALE_KEYS
    ]
    for index, (first, last) in enumerate(spans):
        for start, stop, section in fields:
            if first < stop and start < last:
                sections[index] = section
                break
    return sections


def _decode(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def _offsets(tokenizer: Any, ids: list[int], text: str) -> list[_Span] | None:
    """Every token's characters as the tokenizer tells them; None when it cannot, or would have cut the text otherwise.

    A character of several bytes that tokens share is within the span of each of them.
    """
    if not getattr(tokenizer, "is_fast", False):
        return None
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    return encoded["offset_mapping"] if encoded["input_ids"] == ids else None


def _grown(tokenizer: Any, ids: list[int]) -> Iterator[_Span]:
    """Every token's characters, from the texts of ever longer beginnings.

    A character that is not whole yet shows as U+FFFD at the end; it then belongs to each token that has a part of it.
    """
    done = 0
    for index in range(len(ids)):
        grown = _decode(tokenizer, ids[: index + 1])
        whole = len(grown.rstrip("\ufffd"))
        yield done, max(whole, done + 1)
        done = max(done, whole)
