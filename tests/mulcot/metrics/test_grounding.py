"""Whether texts fit their own pictures, with embeddings made by hand."""

import math

import numpy as np
import pytest
import torch

from mulcot.metrics.grounding import agreement, bootstrap_interval


def test_texts_that_are_their_own_pictures() -> None:
    axes = torch.eye(6)
    found = agreement(axes, axes, range(6), shuffles=4, seed=0)
    assert found.model_dump() == {"posts": 6, "own": 1.0, "shuffled": 0.0, "wins": 1.0, "interval": (1.0, 1.0)}
    turned = agreement(axes, -axes, range(6), shuffles=4, seed=0)
    assert (turned.own, turned.shuffled, turned.wins) == (-1.0, 0.0, 0.0)


def test_a_text_that_says_the_same_of_every_picture_wins_by_half() -> None:
    angles = torch.linspace(0, 1, 8)
    pictures = torch.stack([angles.cos(), angles.sin()], dim=1)
    texts = torch.tensor([[1.0, 0.0]]).expand(8, 2)
    found = agreement(texts, pictures, range(8), shuffles=200, seed=0)
    assert found.own == pytest.approx(float(angles.cos().mean()))
    assert found.shuffled == pytest.approx(float(angles.cos().mean()), rel=1e-6), "a derangement keeps the pictures"
    # Every shuffle is a permutation; text i wins where i < the other, over all i and shuffles as often as it loses.
    assert found.wins == pytest.approx(0.5, abs=0.02)
    equal = agreement(texts, texts, range(8), shuffles=3, seed=0)
    assert (equal.wins, equal.interval) == (0.5, (0.5, 0.5)), "ties count half"


def test_an_equal_picture_is_no_other_one() -> None:
    """Two pairs of posts share their pictures: only what stands in the other pair is compared with."""
    pictures = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    found = agreement(pictures, pictures, ["a", "a", "b", "b"], shuffles=9, seed=1)
    assert (found.posts, found.shuffled, found.wins) == (4, 0.0, 1.0)
    alone = agreement(pictures[:2], pictures[:2], ["a", "a"], shuffles=9, seed=1)
    assert alone.model_dump() == {"posts": 0, "own": None, "shuffled": None, "wins": None, "interval": None}


def test_random_embeddings_are_at_chance_and_a_seed_decides() -> None:
    drawn = torch.Generator().manual_seed(0)
    texts, pictures = (torch.nn.functional.normalize(torch.randn(400, 8, generator=drawn), dim=1) for _ in range(2))
    found = agreement(texts, pictures, range(400), shuffles=5, seed=0)
    assert found.interval is not None
    assert found.interval[0] < 0.5 < found.interval[1]
    assert agreement(texts, pictures, range(400), shuffles=5, seed=0) == found
    assert agreement(texts, pictures, range(400), shuffles=5, seed=1).shuffled != found.shuffled


@pytest.mark.parametrize(("wins", "posts"), [(60, 100), (350, 400)])
def test_the_interval_of_wins_is_about_that_of_a_binomial_share(wins: int, posts: int) -> None:
    values = np.array([1.0] * wins + [0.0] * (posts - wins))
    low, high = bootstrap_interval(values, seed=0)
    share = wins / posts
    width = 1.959964 * math.sqrt(share * (1 - share) / posts)
    assert (low, high) == pytest.approx((share - width, share + width), abs=0.15 * width + 0.5 / posts)
