"""Near-copies of texts: the same words but for a few, whatever link, mention or retweet mark was put around them."""

import html
import re
import unicodedata
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from math import ceil

from mulcot.types import InputError

# The data sets of the literature have tokenised tweets as well: "RT @ user : see http : t . co x1y2".
_LINK = re.compile(
    r"\bhttps?\s?:[\s/]*t\s?\.\s?co\b[\s/]*\w*|\bhttps?:[!-~]*|\b(?:www\.|t\.co/|pic\.twitter\.com/)[!-~]*|\bhttps?\b"
)
_MENTION = re.compile(r"@\s?\w+")
_RETWEET = re.compile(r"^(?:\W*\brt\b)+")
# Rounding may not cost a pair: bounds are taken this much too wide, and what they let through is compared exactly.
_SLACK = 1e-9


class _Forms(dict[int, str | None]):
    """What becomes of every character, found out when it first comes."""

    def __missing__(self, code: int) -> str | None:
        self[code] = form = _form(chr(code))
        return form


def _form(character: str) -> str | None:
    """A character as part of a word, as a word by itself, as a gap between words, or None where it only varies one."""
    category, name = unicodedata.category(character), unicodedata.name(character, "")
    if character in "'’‘ʼ" or category in ("Cf", "Me") or name.startswith(("VARIATION SELECTOR", "EMOJI MODIFIER")):
        return None
    if category == "So" or name.startswith("CJK "):
        return f" {character} "
    return character if category[0] in "LMN" else " "


_FORMS = _Forms()


def normalised_words(text: str) -> frozenset[str]:
    """The words of a text, without what changes when it is posted again.

    Letter case, links, mentions, a leading RT, punctuation and blanks do not count; a hashtag counts as its word,
    don't as dont, `&amp;` as what it stands for, and letters of another width or font as the plain ones. An emoji is
    a word, in whatever skin tone; so is a Chinese character, since no blanks part those. The set may be empty.
    """
    plain = unicodedata.normalize("NFKC", html.unescape(text)).casefold()
    plain = _RETWEET.sub(" ", _MENTION.sub(" ", _LINK.sub(" ", plain)))
    return frozenset(plain.translate(_FORMS).split())


def near_copy_pairs(texts: Sequence[str], threshold: float) -> Iterator[tuple[int, int]]:
    """Pairs of positions that connect all near-copies: texts whose sets of words have a Jaccard similarity that high.

    Texts with equal sets come as a chain, each paired with the one before it, and only the first of them is compared
    with others; so any two near-copies are connected, though not every one of them is a pair of its own. Nothing is
    estimated. Texts without a word are near-copies when they are equal as they stand.

    Args:
        texts: The texts as they were written.
        threshold: Above 0, up to 1; at 1 only equal sets are near-copies. The lower, the longer it takes.

    Returns:
        Pairs with the smaller position first; the same ones in the same order for the same texts.

    Raises:
        InputError: There can be no such threshold.
    """
    if not 0 < threshold <= 1:
        raise InputError(f"near_copies: {threshold!r} is no similarity; give a number above 0 and up to 1, or null")
    return _pairs(texts, threshold)


def group(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The positions below `count` in groups that pairs connect, in the order of their first members."""
    leaders = list(range(count))

    def leader(position: int) -> int:
        while leaders[position] != position:
            leaders[position] = position = leaders[leaders[position]]
        return position

    for one, other in pairs:
        low, high = sorted((leader(one), leader(other)))
        leaders[high] = low
    groups: dict[int, list[int]] = defaultdict(list)
    for position in range(count):
        groups[leader(position)].append(position)
    return list(groups.values())


def _pairs(texts: Sequence[str], threshold: float) -> Iterator[tuple[int, int]]:
    """See `near_copy_pairs`."""
    latest: dict[frozenset[str] | str, int] = {}
    first: dict[frozenset[str], int] = {}
    for position, text in enumerate(texts):
        words = normalised_words(text)
        key = words or text
        if key in latest:
            yield latest[key], position
        elif words:
            first[words] = position
        latest[key] = position
    positions = list(first.values())
    for one, other in _similar(list(first), threshold):
        yield positions[one], positions[other]


def _similar(sets: Sequence[frozenset[str]], threshold: float) -> Iterator[tuple[int, int]]:
    """All pairs of the different sets with J >= threshold, by the prefix filter of Chaudhuri et al. (ICDE 2006).

    Two sets that share enough words share one among the first few of each, when words are ordered from the rarest on:
    with n words and at least t n in common, one of the first n - ceil(t n) + 1. Only these are looked up. The sets
    go from the smallest on, so that the partners that are large enough stand at the end of every list.
    """
    counts = Counter(word for words in sets for word in words)
    ranks = {word: rank for rank, word in enumerate(sorted(counts, key=lambda word: (counts[word], word)))}
    order = sorted(range(len(sets)), key=lambda position: (len(sets[position]), position))
    sizes = [len(sets[position]) for position in order]
    holders: dict[str, list[int]] = defaultdict(list)
    for turn, (position, size) in enumerate(zip(order, sizes, strict=True)):
        words = sets[position]
        least = threshold * size - _SLACK
        start = bisect_left(sizes, least)
        candidates: set[int] = set()
        for word in sorted(words, key=ranks.__getitem__)[: size - ceil(least) + 1]:
            known = holders[word]
            candidates.update(known[bisect_left(known, start) :])
            known.append(turn)
        for candidate in sorted(candidates):
            other = sets[order[candidate]]
            common = len(words & other)
            if common / (size + sizes[candidate] - common) >= threshold:
                low, high = sorted((position, order[candidate]))
                yield low, high
