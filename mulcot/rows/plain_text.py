"""Text as token ids none of which is a control token, whatever the text spells."""

from __future__ import annotations

import re
from collections.abc import Set
from itertools import pairwise
from typing import Any, Final

from mulcot.types import InputError

_NAMED: Final = ("image_token_id", "video_token_id", "audio_token_id", "boi_token_id", "eoi_token_id")
"""What processors call their tokens that stand for no text."""


class PlainText:
    """Tokenises what comes from a post.

    `split_special_tokens` leaves out tokens that were added as special. Those that were added otherwise (`<image>` of
    some models, `<tool_call>`), and pieces of the vocabulary itself (`</s>` of a Unigram tokenizer), would still come
    out of a text that spells them: such a text is tokenised in pieces, cut inside of what it spells.

    Args:
        processor: the model's, with its tokenizer.
    """

    def __init__(self, processor: Any) -> None:
        self._tokenizer = processor.tokenizer
        self._controls = control_tokens(processor)
        spelt = sorted((token for token in self._controls.values() if len(token) > 1), key=len, reverse=True)
        self._spelt = re.compile("|".join(map(re.escape, spelt))) if spelt else None

    @property
    def controls(self) -> Set[int]:
        """The ids of all control tokens."""
        return self._controls.keys()

    def ids(self, text: str) -> list[int]:
        """The token ids of a text.

        Raises:
            InputError: a character of it is a control token by itself.
        """
        ids = self._encode(text)
        if self._controls.keys().isdisjoint(ids):
            return ids
        pieces = self._cut(text)
        ids = [token for piece in pieces for token in self._encode(piece)]
        unknown = {
            self._tokenizer.unk_token_id
        }  # where it is the end of a text as well, it still stands for the unknown
        if not self._controls.keys() & set(ids) - unknown:
            return ids
        # What a normaliser turns into a control token is not found by its spelling.
        ids = [token for character in text for token in self._encode(character)]
        found = self._controls.keys() & set(ids) - unknown
        if found:
            token = self._controls[min(found)]
            raise InputError(f"the model's tokenizer writes {token!r} in no other way than as a token; take it out")
        return ids

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids

    def _cut(self, text: str) -> list[str]:
        """The text in pieces, with a cut behind the first character of every control token that it spells."""
        if self._spelt is None:
            return [text]
        cuts = [0, *(found.start() + 1 for found in self._spelt.finditer(text)), len(text)]
        return [text[start:end] for start, end in pairwise(cuts)]


def control_tokens(processor: Any) -> dict[int, str]:
    """The tokens of a model that no text of a post may become, by id; blanks that were added are text.

    The token for what is unknown is text as well, unless it has another use, too.
    """
    tokenizer = processor.tokenizer
    tokens = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()}
    tokens |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    for name in _NAMED:
        number = getattr(processor, name, None)
        if isinstance(number, int):
            tokens[number] = str(tokenizer.convert_ids_to_tokens(number))
    special = tokenizer.special_tokens_map.items()
    used = {token for name, value in special if name != "unk_token" for token in _listed(value)}
    unknown = {tokenizer.unk_token_id} if str(tokenizer.unk_token) not in used else set()
    return {number: token for number, token in tokens.items() if token.strip() and number not in unknown}


def _listed(value: Any) -> list[str]:
    return [str(token) for token in value] if isinstance(value, list | tuple) else [str(value)]
