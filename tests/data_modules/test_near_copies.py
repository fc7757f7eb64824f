import random
from collections.abc import Iterable
from itertools import combinations

import pytest

from data_modules.near_copies import group, near_copy_pairs, normalised_words
from mulcot.types import InputError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hail in May, again!", "hail in may again"),
        ("RT @storm_9: Hail in #May http://t.co/x1Y2 https://t.c…", "hail in may"),
        ("rt @a: RT @b: hail", "hail"),
        ("RT @ Storm : Hail in # May https : t . co JNz6Ocp595", "hail in may"),  # tokenised, as in Twitter-2015
        ("hail http :", "hail"),
        ("hail pic.twitter.com/abc www.hail.org/?a=b", "hail"),
        ("start RT now", "start rt now"),  # only a leading RT is a mark
        ("Don’t DON'T dont", "dont"),
        ("rain &amp; wind &lt;3", "rain wind 3"),
        ("two\u00a0blanks\n\tand\u200b", "two blanks and"),
        ("I ❤️ it 👍🏽👍", "i ❤ it 👍"),
        ("so good😂😂😂", "so good 😂"),
        ("𝗕𝗼𝗹𝗱 ＦＵＬＬ", "bold full"),
        ("Straße STRASSE", "strasse"),
        ("Cafe\u0301 Caf\u00e9", "caf\u00e9"),
        ("今天下雨", "今 天 下 雨"),
        ("مرحبا بالعالم", "مرحبا بالعالم"),
        ("नमस्ते दुनिया", "नमस्ते दुनिया"),  # combining vowel signs are part of the word
        ("snake_case-word", "snake case word"),
        ("https://t.co/1 @a !!!", ""),
    ],
)
def test_words(text: str, words: str) -> None:
    assert normalised_words(text) == set(words.split())


def components(count: int, pairs: Iterable[tuple[int, int]]) -> set[frozenset[int]]:
    """Connected components, by colouring from every position; independent of union-find."""
    neighbours: dict[int, set[int]] = {position: set() for position in range(count)}
    for one, other in pairs:
        neighbours[one].add(other)
        neighbours[other].add(one)
    found: set[frozenset[int]] = set()
    seen: set[int] = set()
    for start in range(count):
        if start in seen:
            continue
        reached, front = {start}, [start]
        while front:
            new = neighbours[front.pop()] - reached
            reached |= new
            front += new
        seen |= reached
        found.add(frozenset(reached))
    return found


def brute_force(texts: list[str], threshold: float) -> list[tuple[int, int]]:
    words = [normalised_words(text) for text in texts]
    return [
        (one, other)
        for one, other in combinations(range(len(texts)), 2)
        if (
            len(words[one] & words[other]) / len(words[one] | words[other]) >= threshold
            if words[one] or words[other]
            else texts[one] == texts[other]
        )
    ]


def random_texts(seed: int, count: int, vocabulary: int) -> list[str]:
    """Texts of 0 to 12 words, rare and frequent ones, some of them copies of others with a few words changed."""
    generator = random.Random(seed)
    words = [f"w{number}" for number in range(vocabulary)]
    weights = [1 / (number + 1) for number in range(vocabulary)]
    texts: list[str] = []
    for _ in range(count):
        if texts and generator.random() < 0.3:
            copy = generator.choice(texts).split()
            for _ in range(generator.randint(0, 2)):
                if copy and generator.random() < 0.5:
                    copy.pop(generator.randrange(len(copy)))
                else:
                    copy.append(generator.choice(words))
            texts.append(" ".join(["RT", "@a", *copy]) if generator.random() < 0.3 else " ".join(copy))
        else:
            texts.append(" ".join(generator.choices(words, weights, k=generator.randint(0, 12))) or "!" * len(texts))
    return texts


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.55, 2 / 3, 0.7, 0.8, 0.9, 1.0])
@pytest.mark.parametrize(("seed", "vocabulary"), [(0, 30), (1, 30), (2, 300)])
def test_near_copies_are_those_of_comparing_everything(seed: int, vocabulary: int, threshold: float) -> None:
    texts = random_texts(seed, 300, vocabulary)
    pairs = list(near_copy_pairs(texts, threshold))
    wanted = brute_force(texts, threshold)
    assert set(pairs) <= set(wanted)
    assert components(len(texts), pairs) == components(len(texts), wanted)
    assert 0 < len(wanted) < 300 * 299 / 2  # neither side is trivial
    assert list(near_copy_pairs(texts, threshold)) == pairs
    # Among texts with different words no pair is left out.
    words = [normalised_words(text) for text in texts]
    first = [at for at in range(300) if words[at] and words[at] not in words[:at]]
    assert {pair for pair in wanted if set(pair) <= set(first)} == {pair for pair in pairs if set(pair) <= set(first)}


@pytest.mark.parametrize("size", range(1, 60))
def test_the_limit_itself_is_near_enough(size: int) -> None:
    """All thresholds that are fractions with this denominator: rounding loses none of them."""
    words = [f"w{number}" for number in range(size)]
    for common in range(1, size):
        # The word that is left out is the rarest or the most frequent one.
        for part in (words[:common], words[-common:]):
            assert list(near_copy_pairs([" ".join(words), " ".join(part)], common / size)) == [(0, 1)]
            assert not list(near_copy_pairs([" ".join(words), " ".join(part)], common / size + 1e-6))


def test_equal_texts_are_a_chain() -> None:
    texts = ["Hail in May", "hail in MAY!", "snow", "RT @a: hail in may", "Snow http://t.co/1"]
    assert sorted(near_copy_pairs(texts, 0.8)) == [(0, 1), (1, 3), (2, 4)]
    assert len(list(near_copy_pairs(["the same words"] * 10_000, 0.8))) == 9_999


def test_texts_without_words_must_be_equal_as_they_stand() -> None:
    texts = ["@a", "@b", "http://t.co/1", "@a", "!!!", "@a"]
    assert list(near_copy_pairs(texts, 0.1)) == [(0, 3), (3, 5)]


def test_short_texts() -> None:
    texts = ["hail", "Hail!", "hail snow", "snow hail", "snow"]
    assert components(5, near_copy_pairs(texts, 0.8)) == {frozenset({0, 1}), frozenset({2, 3}), frozenset({4})}
    assert components(5, near_copy_pairs(texts, 0.5)) == {frozenset(range(5))}


@pytest.mark.parametrize("threshold", [0, -0.1, 1.01, float("nan")])
def test_a_threshold_is_a_similarity(threshold: float) -> None:
    with pytest.raises(InputError, match=r"^near_copies: .* is no similarity; give a number above 0 and up to 1"):
        near_copy_pairs([], threshold)


def test_groups_are_connected_components_in_order() -> None:
    assert group(6, [(4, 1), (5, 4), (2, 3)]) == [[0], [1, 4, 5], [2, 3]]
    assert group(0, []) == []
    generator = random.Random(0)
    for _ in range(20):
        pairs = [(generator.randrange(40), generator.randrange(40)) for _ in range(generator.randint(0, 50))]
        groups = group(40, pairs)
        assert {frozenset(members) for members in groups} == components(40, pairs)
        assert [members[0] for members in groups] == sorted(members[0] for members in groups)
        assert all(members == sorted(members) for members in groups)
