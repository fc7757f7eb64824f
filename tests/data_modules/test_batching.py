import random
from itertools import chain, pairwise

import numpy as np
import pytest

from data_modules.batching import (
    EpochCosts,
    PlannedMicroBatch,
    StepSampler,
    deal,
    plan_epoch,
    step_order,
    token_batches,
)


def make_costs(count: int, seed: int = 0) -> EpochCosts:
    draw = random.Random(seed)
    tokens = [draw.randint(20, 400) for _ in range(count)]
    reasoning = [draw.randint(0, 200) for _ in range(count)]
    return EpochCosts(np.array(tokens), {"reasoning": np.array(reasoning), "classification": np.full(count, 7)})


COSTS = make_costs(101)
POOLS = [1, 3, 100]


@pytest.mark.parametrize("length_pool", POOLS)
@pytest.mark.parametrize("parts", [1, 2, 3, 8, 20])
def test_every_post_is_in_exactly_one_step_of_an_epoch(parts: int, length_pool: int) -> None:
    steps = list(plan_epoch(COSTS, posts_per_step=16, parts=parts, seed=3, epoch=5, length_pool=length_pool))
    assert [len(step) for step in steps] == [parts] * 7
    assert sorted(chain.from_iterable(part.posts for step in steps for part in step)) == list(range(101))


@pytest.mark.parametrize("length_pool", POOLS)
def test_a_step_s_posts_do_not_depend_on_how_they_are_dealt(length_pool: int) -> None:
    def steps(parts: int) -> list[set[int]]:
        planned = plan_epoch(COSTS, 16, parts, seed=3, epoch=5, length_pool=length_pool)
        return [set(chain.from_iterable(part.posts for part in step)) for step in planned]

    assert steps(1) == steps(2) == steps(8)


@pytest.mark.parametrize("length_pool", POOLS)
def test_seed_and_epoch_change_the_order(length_pool: int) -> None:
    def first(seed: int, epoch: int) -> tuple[int, ...]:
        return next(plan_epoch(COSTS, 16, 1, seed, epoch, length_pool))[0].posts

    assert first(0, 0) == first(0, 0)
    assert len({first(0, 0), first(0, 1), first(1, 0)}) == 3


def test_every_micro_batch_carries_the_response_tokens_of_its_whole_step() -> None:
    for step in plan_epoch(COSTS, 16, 4, seed=0, epoch=0):
        posts = [post for part in step for post in part.posts]
        expected = {
            "reasoning": sum(COSTS.response_tokens["reasoning"][post] for post in posts),
            "classification": 7 * len(posts),
        }
        assert all(part.step_tokens == expected for part in step)


def test_a_task_without_responses_in_a_step_is_left_out_of_its_tokens() -> None:
    costs = EpochCosts(np.full(4, 9), {"reasoning": np.zeros(4, dtype=int), "classification": np.full(4, 2)})
    (step,) = plan_epoch(costs, 16, 1, seed=0, epoch=0)
    assert step[0].step_tokens == {"classification": 8}


def test_a_step_with_fewer_posts_than_parts_leaves_hands_empty() -> None:
    (step,) = plan_epoch(make_costs(3), 16, 5, seed=0, epoch=0)
    assert sorted(len(part.posts) for part in step) == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("length_pool", [1, 3])
def test_a_resumed_epoch_goes_on_behind_the_steps_that_were_taken(length_pool: int) -> None:
    whole = list(plan_epoch(COSTS, 16, 4, seed=3, epoch=5, length_pool=length_pool))
    for first in range(len(whole) + 1):
        rest = list(plan_epoch(COSTS, 16, 4, seed=3, epoch=5, length_pool=length_pool, first_step=first))
        assert rest == whole[first:]

    def batches(seen: tuple[int, int], epoch: int) -> list[PlannedMicroBatch]:
        sampler = StepSampler(lambda _: COSTS, len(COSTS), 16, 2, 1, 2, 3, length_pool, seen)
        sampler.set_epoch(epoch)
        assert len(sampler) == 2 * len(whole)  # of the whole epoch, whatever was seen
        return list(sampler)

    assert batches((5, 2), 5) == batches((0, 0), 5)[4:]
    assert batches((5, 2), 6) == batches((0, 0), 6)


def test_hands_are_balanced_to_within_the_largest_post() -> None:
    tokens = COSTS.tokens.tolist()
    hands = deal(range(101), tokens, 4)
    loads = [sum(tokens[post] for post in hand) for hand in hands]
    assert max(loads) - min(loads) <= max(tokens)


def test_ranks_take_disjoint_parts_that_make_up_the_epoch() -> None:
    def posts(rank: int) -> list[int]:
        sampler = StepSampler(lambda epoch: COSTS, 101, 16, accumulate=3, rank=rank, world_size=2, seed=0)
        sampler.set_epoch(2)
        plans = list(sampler)
        assert len(plans) == len(sampler) == 7 * 3
        return [post for plan in plans for post in plan.posts]

    assert sorted(posts(0) + posts(1)) == list(range(101))


def padded(steps: list[np.ndarray], tokens: np.ndarray) -> int:
    """Tokens of all steps when each is padded to its longest post."""
    return sum(len(posts) * int(tokens[posts].max()) for posts in steps)


def test_a_pool_makes_steps_of_about_one_length_and_keeps_its_posts() -> None:
    tokens = make_costs(1600).tokens
    plain = list(step_order(tokens, 16, seed=0, epoch=0))
    pooled = list(step_order(tokens, 16, seed=0, epoch=0, length_pool=10))
    whole = int(tokens.sum())
    assert padded(plain, tokens) > 1.6 * whole
    assert padded(pooled, tokens) < 1.15 * whole
    for start in range(0, 100, 10):
        # What a pool holds is still decided by the shuffle alone.
        assert set(np.concatenate(plain[start : start + 10])) == set(np.concatenate(pooled[start : start + 10]))
    longest = [tokens[posts].max() for posts in pooled[:10]]
    assert longest != sorted(longest), "the steps of a pool do not come in the order of length"


def test_the_shuffled_order_is_the_one_that_python_s_generator_gives() -> None:
    expected = list(range(101))
    random.Random("3/5").shuffle(expected)
    assert np.concatenate(list(step_order(COSTS.tokens, 16, seed=3, epoch=5))).tolist() == expected


@pytest.mark.parametrize("rows", [1, 3, 200])
def test_batches_for_evaluation_stay_within_both_limits(rows: int) -> None:
    tokens = COSTS.tokens
    batches = token_batches(tokens, rows, most_items=12, most_tokens=4000)
    assert sorted(chain.from_iterable(batches)) == list(range(101))
    for batch in batches:
        assert len(batch) <= 12
        assert len(batch) == 1 or rows * len(batch) * tokens[batch].max() <= 4000
    # No two neighbours could have been one batch: the posts are as many as fit.
    for left, right in pairwise(batches):
        joined = [*left, right[0]]
        assert len(joined) > 12 or rows * len(joined) * tokens[joined].max() > 4000


def test_without_a_token_limit_only_the_number_of_items_counts() -> None:
    assert [len(batch) for batch in token_batches(COSTS.tokens, 3, 50, None)] == [50, 50, 1]
