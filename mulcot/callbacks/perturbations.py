"""Test posts with a part taken away or swapped for another post's, to ask a model about them again."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

from mulcot.ablations import Part, without
from mulcot.metrics.swaps import derangement
from mulcot.types import Post

PARTS: Final[tuple[Part, ...]] = ("image", "text", "aspect")


@dataclass(frozen=True, slots=True)
class Perturbation:
    """Altered posts."""

    numbers: tuple[int, ...]
    """Which of the drawn posts each one is made of."""
    posts: tuple[Post, ...]
    """They have the ids and gold labels of these."""
    other_golds: tuple[str | None, ...] = ()
    """The gold labels of the aspects that they are asked about now, where an aspect of the same post was swapped in."""


def perturbations(
    drawn: Sequence[Post], split: Sequence[Post], parts: Sequence[Part], seed: int
) -> dict[str, Perturbation]:
    """Every perturbation of some posts, by its name: `<part>_removed` and `<part>_swapped`.

    A swap never gives a post its own part or an equal one: pictures are compared by their bytes, texts and aspects as
    they are written. Posts that cannot get another one are not in it. An aspect is swapped for another one of the same
    text and picture where the split has one, else for that of another post.

    Args:
        drawn: The posts.
        split: All posts of the split, where other aspects of a drawn post are looked for.
        parts: What to perturb; aspects are only where posts have them.
        seed: Decides what is swapped with what.
    """
    found: dict[str, Perturbation] = {}
    for part in parts:
        rng = random.Random(f"{part} {seed}")
        if part == "aspect":
            numbers = [number for number, post in enumerate(drawn) if post.aspect]
            swapped = _swapped_aspects(drawn, split, numbers, rng)
        else:
            numbers = list(range(len(drawn)))
            swapped = _swapped(drawn, numbers, part, picture_digest if part == "image" else _text, rng)
        if numbers:
            removed = [without(drawn[number], part) for number in numbers]
            found[f"{part}_removed"] = Perturbation(tuple(numbers), tuple(removed))
            found[f"{part}_swapped"] = swapped
    return found


def picture_digest(post: Post) -> str:
    """A digest of a post's picture, by its bytes."""
    return _digest(post.image.read_bytes())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _text(post: Post) -> str:
    return post.text


def _swapped(
    drawn: Sequence[Post], numbers: Sequence[int], part: Part, kind: Callable[[Post], Hashable], rng: random.Random
) -> Perturbation:
    """Each of some posts with a part of another one, of another kind."""
    partners = derangement([kind(drawn[number]) for number in numbers], rng)
    pairs = sorted((numbers[one], numbers[other]) for one, other in partners.items())
    posts = [replace(drawn[one], **{part: getattr(drawn[other], part)}) for one, other in pairs]
    return Perturbation(tuple(one for one, _ in pairs), tuple(posts), (None,) * len(pairs))


def _swapped_aspects(
    drawn: Sequence[Post], split: Sequence[Post], numbers: Sequence[int], rng: random.Random
) -> Perturbation:
    siblings = _siblings(drawn, split, numbers)
    chosen = {number: rng.choice(others) for number, others in siblings.items()}
    rest = [number for number in numbers if number not in chosen]
    strangers = _swapped(drawn, rest, "aspect", lambda post: post.aspect, rng)
    altered: dict[int, tuple[Post, str | None]] = {}
    altered |= {number: (post, None) for number, post in zip(strangers.numbers, strangers.posts, strict=True)}
    altered |= {number: (replace(drawn[number], aspect=other.aspect), other.label) for number, other in chosen.items()}
    order = sorted(altered)
    return Perturbation(
        tuple(order), tuple(altered[number][0] for number in order), tuple(altered[number][1] for number in order)
    )


def _siblings(drawn: Sequence[Post], split: Sequence[Post], numbers: Sequence[int]) -> dict[int, list[Post]]:
    """For each post that has any, the posts of its text and picture with other aspects, in the split's order."""
    by_text: dict[str, list[Post]] = defaultdict(list)
    for post in split:
        by_text[post.text].append(post)
    digest = cache(picture_digest)
    found: dict[int, list[Post]] = {}
    for number in numbers:
        post = drawn[number]
        others = [other for other in by_text[post.text] if other.aspect and other.aspect != post.aspect]
        alike = [other for other in others if digest(other) == digest(post)]
        if alike:
            found[number] = alike
    return found
