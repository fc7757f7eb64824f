"""Filters: what a rationale must be beside well-formed and right. One that is refused is asked for again."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from mulcot.types import InputError, Post, Rationale

_WORD: Final = re.compile(r"[^\W\d_]+")
_SCRIPTS: Final = {
    "ar": "ARABIC", "bg": "CYRILLIC", "el": "GREEK", "fa": "ARABIC", "he": "HEBREW", "hi": "DEVANAGARI", "ko": "HANGUL",
    "ru": "CYRILLIC", "th": "THAI", "uk": "CYRILLIC", "zh": "CJK", "ja": "CJK|HIRAGANA|KATAKANA",
}  # fmt: skip
"""Languages that their script tells, by the first word of their letters' Unicode names."""
_COMMON_WORDS: Final = {
    code: frozenset(words.split())
    for code, words in {
        "de": "der die das und ist nicht ein eine mit von zu den dem auf für im es sich wird als auch sind keine oder",
        "en": "the and is of to in that it with for as are this there no not be or an on which by from",
        "es": "el la los las de que y en un una es no con por para se del al como más su muestra hay",
        "fr": "le la les des et est un une dans que qui pas pour sur avec ne du au ce il plus aucun",
        "it": "il lo la gli le di che e un una è non con per si del della nel sono più come nessun",
        "nl": "de het een en van is dat niet in op te met voor zijn er aan als geen ook deze wordt",
        "pt": "o a os as de que e em um uma é não com por para se do da no na mais como",
    }.items()
}
"""Words that any sentence or two of a language in Latin script holds."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A rationale that is about to be accepted."""

    post: Post
    """The post that it explains."""
    rationale: Rationale
    """The rationale."""
    key: str
    """The content key of its question: posts of equal content share it."""


class RationaleFilter(Protocol):
    """What a rationale must be. Called from threads of the stage, for several candidates at a time."""

    def objection(self, candidate: Candidate) -> str | None:
        """Why it is not accepted, in one phrase; None where nothing speaks against it.

        The answer may depend on the candidate and on what was accepted before, not on chance: a second run over the
        same store must come to the same ones.
        """
        ...


@runtime_checkable
class Remembers(Protocol):
    """A filter that depends on what was accepted before."""

    def remember(self, accepted: Iterable[tuple[str, Rationale]]) -> None:
        """Takes in the rationales of earlier runs with their content keys, before the first candidate."""
        ...


class LengthFilter:
    """Each of the four texts has a reasonable length.

    Args:
        min_words: the least words of each text; a character of a script without blanks counts as a word.
        max_words: the most.

    Raises:
        InputError: no length fits.
    """

    def __init__(self, min_words: int = 3, max_words: int = 200) -> None:
        if not 0 <= min_words <= max_words:
            raise InputError(f"LengthFilter: min_words is {min_words} and max_words {max_words}; no text fits")
        self.min_words = min_words
        self.max_words = max_words

    def objection(self, candidate: Candidate) -> str | None:
        """Names the first text that is too short or too long."""
        for name, text in _texts(candidate.rationale).items():
            words = sum(len(word) if _is_unspaced(word[0]) else 1 for word in re.findall(r"\w+", text))
            if words < self.min_words:
                return f"{name} has {words} words, fewer than {self.min_words}"
            if words > self.max_words:
                return f"{name} has {words} words, more than {self.max_words}"
        return None


class DuplicateFilter:
    """No two questions are answered with the same texts (but for case, punctuation and blanks)."""

    def __init__(self) -> None:
        self._owners: dict[bytes, str] = {}

    def remember(self, accepted: Iterable[tuple[str, Rationale]]) -> None:
        """Whose a text was in an earlier run, it stays."""
        for key, rationale in accepted:
            self._owners.setdefault(_digest(rationale), key)

    def objection(self, candidate: Candidate) -> str | None:
        """Refuses what another question was answered with."""
        owner = self._owners.setdefault(_digest(candidate.rationale), candidate.key)
        return None if owner == candidate.key else "the same text explains another post"


class LanguageFilter:
    """The texts are in one language, told by its script or, among languages in Latin script, by their commonest words.

    Args:
        language: its code (ISO 639-1).

    Raises:
        InputError: the language is none of those that can be told.
    """

    def __init__(self, language: str = "en") -> None:
        if language not in _COMMON_WORDS and language not in _SCRIPTS:
            known = ", ".join(sorted({*_COMMON_WORDS, *_SCRIPTS}))
            raise InputError(f"LanguageFilter: the language {language!r} cannot be told; known are {known}")
        self.language = language
        self._scripts = tuple(_SCRIPTS.get(language, "LATIN").split("|"))

    def objection(self, candidate: Candidate) -> str | None:
        """Refuses texts with more than a third of the letters of another script, or with another language's words."""
        text = " ".join(_texts(candidate.rationale).values())
        letters = [letter for letter in text if letter.isalpha()]
        foreign = sum(not unicodedata.name(letter, "").startswith(self._scripts) for letter in letters)
        if letters and foreign * 3 > len(letters):
            return f"{foreign} of {len(letters)} letters are not of the script of {self.language!r}"
        if self.language not in _COMMON_WORDS:
            return None
        words = [word.casefold() for word in _WORD.findall(text)]
        counts = {code: sum(word in common for word in words) for code, common in _COMMON_WORDS.items()}
        best = max(counts, key=lambda code: (counts[code], code == self.language))
        if best != self.language:
            return f"its words look like {best!r}, not {self.language!r}"
        return None


def _texts(rationale: Rationale) -> dict[str, str]:
    return {
        "Text_analysis": rationale.text_analysis,
        "Image_analysis": rationale.image_analysis,
        "Conflict_resolution": rationale.conflict_resolution,
        "Final_conclusion": rationale.final_conclusion,
    }


def _is_unspaced(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith(("CJK", "HIRAGANA", "KATAKANA", "THAI"))


def _digest(rationale: Rationale) -> bytes:
    words = " ".join(
        word.casefold() for text in _texts(rationale).values() for word in [*re.findall(r"\w+", text), "|"]
    )
    return hashlib.sha256(words.encode()).digest()
