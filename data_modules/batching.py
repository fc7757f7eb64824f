"""Planned optimizer steps: which posts each step sees is a function of seed and epoch alone.

World size, accumulation and the number of workers only decide how a step's posts are dealt out, never which they are.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from mulcot.types import Task

Counts = NDArray[np.int64]
CostsOfEpoch = Callable[[int], "EpochCosts"]


@dataclass(frozen=True, slots=True)
class EpochCosts:
    """What every post costs and counts in one epoch."""

    tokens: Counts
    """Tokens of all rows of each post, `[posts]`: what the dealing balances and what posts are grouped by."""
    response_tokens: Mapping[Task, Counts]
    """Response tokens of each post by task, `[posts]`: what the losses are averaged over."""

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class PlannedMicroBatch:
    """One micro-batch of one rank."""

    epoch: int
    """The epoch, by which a post's rationales are drawn."""
    posts: tuple[int, ...]
    """Indices of posts; empty when the step has fewer posts than micro-batches."""
    step_tokens: Mapping[Task, int]
    """Response tokens of the whole optimizer step."""


def plan_epoch(
    costs: EpochCosts,
    posts_per_step: int,
    parts: int,
    seed: int,
    epoch: int,
    length_pool: int = 1,
    first_step: int = 0,
) -> Iterator[list[PlannedMicroBatch]]:
    """Plans the optimizer steps of one epoch, one after another.

    Every post is in exactly one step. A step's posts are dealt to the parts greedily, the most expensive post first
    to the part with the fewest tokens so far.

    Args:
        costs: what each post costs in this epoch.
        posts_per_step: posts of an optimizer step; the last step of the order takes what is left.
        parts: micro-batches of a step, `world_size * accumulate_grad_batches`.
        seed: with `epoch`, decides the order.
        epoch: as above.
        length_pool: see `step_order`.
        first_step: the step to begin with; those before it are left out.

    Yields:
        A step's `parts` micro-batches. A task of which no post of the step has a response is left out of its tokens.
    """
    for posts in islice(step_order(costs.tokens, posts_per_step, seed, epoch, length_pool), first_step, None):
        counts = {task: int(of_post[posts].sum()) for task, of_post in costs.response_tokens.items()}
        totals = {task: count for task, count in counts.items() if count}
        dealt = deal(posts.tolist(), costs.tokens[posts].tolist(), parts)
        yield [PlannedMicroBatch(epoch, part, totals) for part in dealt]


def step_order(tokens: Counts, posts_per_step: int, seed: int, epoch: int, length_pool: int = 1) -> Iterator[Counts]:
    """The posts of every step of an epoch.

    The posts are shuffled. Every `length_pool` steps' worth of them is then sorted by tokens, cut into steps of posts
    of about the same length, which padding costs little, and the steps are shuffled again.

    Args:
        tokens: tokens of each post, `[posts]`.
        posts_per_step: posts of a step.
        seed: with `epoch`, decides the order.
        epoch: as above.
        length_pool: steps whose posts are grouped by length; 1 keeps the shuffled order.
    """
    draw = random.Random(f"{seed}/{epoch}")
    shuffled = list(range(len(tokens)))
    draw.shuffle(shuffled)
    order = np.array(shuffled, dtype=np.int64)
    del shuffled
    pool = posts_per_step * length_pool
    for start in range(0, len(order), pool):
        posts = order[start : start + pool]
        if length_pool > 1:
            posts = posts[np.argsort(tokens[posts], kind="stable")]
        steps = [posts[at : at + posts_per_step] for at in range(0, len(posts), posts_per_step)]
        if length_pool > 1:
            draw.shuffle(steps)
        yield from steps


def deal(posts: Sequence[int], tokens: Sequence[int], parts: int) -> list[tuple[int, ...]]:
    """Deals posts out to `parts` hands of nearly equal token counts; ties go by post, so the result is unique.

    Args:
        posts: the posts.
        tokens: the tokens of each.
        parts: hands.
    """
    hands: list[list[int]] = [[] for _ in range(parts)]
    heap = [(0, hand) for hand in range(parts)]
    for count, post in sorted(zip((-count for count in tokens), posts, strict=True)):
        load, hand = heapq.heappop(heap)
        hands[hand].append(post)
        heapq.heappush(heap, (load - count, hand))
    return [tuple(hand) for hand in hands]


def token_batches(tokens: Counts, rows_per_item: int, most_items: int, most_tokens: int | None) -> list[list[int]]:
    """Batches of items of about the same length, for evaluation and prediction.

    Args:
        tokens: tokens of each item's longest row, `[items]`.
        rows_per_item: rows that an item takes in a batch.
        most_items: items of a batch at most.
        most_tokens: tokens of a batch at most, padding included; an item that has more alone is a batch of its own.
            None for no limit.

    Returns:
        Every item in exactly one batch, shorter ones first.
    """
    batches: list[list[int]] = []
    for item in np.argsort(tokens, kind="stable").tolist():
        # Items come in ascending order of length, so this one would be the longest of its batch.
        width = int(tokens[item]) * rows_per_item
        fits = batches and len(batches[-1]) < most_items
        if fits and (most_tokens is None or width * (len(batches[-1]) + 1) <= most_tokens):
            batches[-1].append(item)
        else:
            batches.append([item])
    return batches


class StepSampler(Sampler[PlannedMicroBatch]):
    """Gives one rank its micro-batches of an epoch, in order.

    Args:
        costs_of_epoch: the posts' costs by epoch (rationales are drawn anew each epoch).
        posts: how many posts there are.
        posts_per_step: posts of an optimizer step over all ranks.
        accumulate: micro-batches of a rank per step.
        rank: which rank this is.
        world_size: how many there are.
        seed: decides the order together with the epoch.
        length_pool: see `step_order`.
        seen: an epoch and how many of its steps were taken before the fit was interrupted: it goes on behind them.
    """

    def __init__(
        self,
        costs_of_epoch: CostsOfEpoch,
        posts: int,
        posts_per_step: int,
        accumulate: int,
        rank: int,
        world_size: int,
        seed: int,
        length_pool: int = 1,
        seen: tuple[int, int] = (0, 0),
    ) -> None:
        self.costs_of_epoch = costs_of_epoch
        self.posts = posts
        self.posts_per_step = posts_per_step
        self.accumulate = accumulate
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.length_pool = length_pool
        self.seen = seen
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration gives; the Trainer calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[PlannedMicroBatch]:
        costs = self.costs_of_epoch(self.epoch)
        parts = self.world_size * self.accumulate
        epoch, steps = self.seen
        first = steps if epoch == self.epoch else 0
        for step in plan_epoch(costs, self.posts_per_step, parts, self.seed, self.epoch, self.length_pool, first):
            yield from step[self.rank * self.accumulate : (self.rank + 1) * self.accumulate]

    def __len__(self) -> int:
        return ceil(self.posts / self.posts_per_step) * self.accumulate
