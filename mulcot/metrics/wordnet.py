"""Synonyms from WordNet's own files, for METEOR.

nltk has a reader of these files, too: it finds entries by their place in bytes, which is wrong where line ends were
changed, as in the package that carries them. This one finds them by the number that each entry begins with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mulcot.types import InputError

_ENDINGS: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "noun": (
        *(("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z")),
        *(("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y")),
    ),
    "verb": (
        *(("s", ""), ("ies", "y"), ("es", "e"), ("es", "")),
        *(("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    ),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}
"""The endings of inflected words and what base forms have instead: the detachment rules of WordNet's morphy(7)."""
FILES: Final = tuple(f"{kind}.{part}" for part in _ENDINGS for kind in ("index", "data")) + tuple(
    f"{part}.exc" for part in _ENDINGS
)
"""The files of a WordNet folder that are read."""


@dataclass(frozen=True, slots=True)
class Lemma:
    """A word of a synset."""

    text: str

    def name(self) -> str:
        """The word, parts joined by `_`; the name of this method is nltk's."""
        return self.text


@dataclass(frozen=True, slots=True)
class Synset:
    """Words of one meaning."""

    words: tuple[Lemma, ...]

    def lemmas(self) -> tuple[Lemma, ...]:
        """The words; the name of this method is nltk's."""
        return self.words


class WordNet:
    """The synsets of English words, in the form in which nltk's METEOR asks for them.

    Args:
        folder: WordNet's files of version 3: `index.noun`, `data.noun`, `noun.exc` and those of `verb`, `adj`, `adv`.

    Raises:
        InputError: a file is missing or is not in WordNet's format.

    Source:
        Miller 1995; the formats are wndb(5), the base forms morphy(7) of WordNet 3.0.
    """

    def __init__(self, folder: Path) -> None:
        for name in FILES:
            if not (folder / name).is_file():
                raise InputError(f"{folder / name}: there is no such file; a WordNet folder holds {', '.join(FILES)}")
        self._index: dict[str, dict[str, list[str]]] = {}
        self._synsets: dict[str, dict[str, Synset]] = {}
        self._exceptions: dict[str, dict[str, list[str]]] = {}
        for part in _ENDINGS:
            self._index[part] = dict(map(_index_entry, _entries(folder / f"index.{part}")))
            self._synsets[part] = dict(map(_synset_entry, _entries(folder / f"data.{part}")))
            forms = (line.split() for line in _lines(folder / f"{part}.exc"))
            self._exceptions[part] = {form: bases for form, *bases in forms}
        self._known: dict[str, list[Synset]] = {}

    def synsets(self, word: str) -> list[Synset]:
        """The synsets of a word and of the base forms that it may be inflected from, whatever its case."""
        word = word.lower()
        if word not in self._known:
            self._known[word] = [
                self._synsets[part][number]
                for part, index in self._index.items()
                for form in dict.fromkeys([word, *self._base_forms(word, part)])
                for number in index.get(form, ())
            ]
        return self._known[word]

    def _base_forms(self, word: str, part: str) -> list[str]:
        if word in self._exceptions[part]:
            return self._exceptions[part][word]
        return [word[: -len(old)] + new for old, new in _ENDINGS[part] if word.endswith(old)]


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as lines:
            yield from lines
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: it cannot be read ({error}); give WordNet's own files") from error


def _entries(path: Path) -> Iterator[tuple[Path, str]]:
    """The entries; the licence before them is indented."""
    return ((path, line) for line in _lines(path) if not line.startswith(" "))


def _index_entry(entry: tuple[Path, str]) -> tuple[str, list[str]]:
    """A line is `lemma pos synset_cnt p_cnt [symbol...] sense_cnt tagsense_cnt synset_offset [synset_offset...]`."""
    path, line = entry
    try:
        word, _, synsets, *rest = line.split()
        return word, rest[len(rest) - int(synsets) :]
    except ValueError as error:
        raise _no_entry(path, line) from error


def _synset_entry(entry: tuple[Path, str]) -> tuple[str, Synset]:
    """A line is `synset_offset lex_filenum ss_type w_cnt word lex_id [word lex_id...] ...`, w_cnt in base 16."""
    path, line = entry
    try:
        number, _, _, count, rest = line.split(" ", 4)
        words = rest.split(" ", 2 * int(count, 16))[: 2 * int(count, 16) : 2]
    except ValueError as error:
        raise _no_entry(path, line) from error
    # An adjective may say where it stands: `galore(ip)`.
    return number, Synset(tuple(Lemma(word.partition("(")[0]) for word in words))


def _no_entry(path: Path, line: str) -> InputError:
    return InputError(f"{path}: {line.strip()[:60]!r} is no entry of WordNet; give WordNet's own files")
