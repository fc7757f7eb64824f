"""Two texts side by side, word by word: what stands in one alone."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher


@dataclass(frozen=True, slots=True)
class Piece:
    """Some words in a row."""

    text: str
    """The words, with blanks between."""
    alone: bool
    """Whether the other text lacks them at this place."""


def differences(text: str, other: str) -> list[Piece]:
    """A text in pieces that another one shares or lacks, in order.

    Words are what blanks part; their order counts, case and punctuation too. Joined by blanks, the pieces are the text
    with its runs of blanks made one.
    """
    words, others = text.split(), other.split()
    matcher = SequenceMatcher(None, others, words, autojunk=False)
    return [
        Piece(" ".join(words[start:end]), alone=kind != "equal")
        for kind, _, _, start, end in matcher.get_opcodes()
        if end > start
    ]
