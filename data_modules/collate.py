"""Data sets whose items are whole batches: a plan or a slice of posts in, padded tensors out of the worker."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from data_modules.batching import EpochCosts, PlannedMicroBatch
from data_modules.encoded import EncodedPosts, Ragged
from mulcot.rows import MicroBatch, QuestionBatch, RowBatch, RowCollator, TextRow
from mulcot.types import InputError, Post, RationaleRecord, Task, prediction_json


class TrainingPosts:
    """Encoded posts with the responses that are to be learnt.

    Args:
        encoded: the posts; its tasks are those that are trained.
        gold: the gold label of each post as its number in the encoder's label set, `[posts]`, -1 where it has none;
            used for `classification`.
        rationales: response ids of all rationales, post by post.
        first: where each post's rationales begin in `rationales`, and where the last one's end, `[posts + 1]`.
    """

    def __init__(
        self, encoded: EncodedPosts, gold: NDArray[np.int64], rationales: Ragged, first: NDArray[np.int64]
    ) -> None:
        self.encoded = encoded
        self.gold = gold
        self.rationales = rationales
        self.first = first
        self.answers = Ragged.of(encoded.encoder.response_ids(prediction_json(name)) for name in encoded.encoder.labels)

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def tasks(self) -> Sequence[Task]:
        """The tasks that are trained."""
        return tuple(self.encoded.tails)

    @cached_property
    def rationales_of(self) -> NDArray[np.int64]:
        """How many rationales each post has, `[posts]`."""
        return np.diff(self.first)

    def responses(self, index: int, task: Task) -> range:
        """The numbers of a post's responses: in `rationales`, or in `answers` for the classification."""
        if task == "reasoning":
            return range(int(self.first[index]), int(self.first[index + 1]))
        known = int(self.gold[index])
        return range(known, known + 1) if known >= 0 else range(0)

    def tokens(self) -> NDArray[np.int64]:
        """Tokens of all rows of each post, each with one response, `[posts]`; a shared beginning counts in each."""
        total = np.zeros(len(self), dtype=np.int64)
        for task in self.tasks:
            if task == "reasoning":
                rows, responses = self.rationales_of, np.diff(self.rationales.offsets[self.first])
            else:
                rows, responses = (self.gold >= 0).astype(np.int64), self.answers.lengths[self.gold] * (self.gold >= 0)
            total += rows * self.encoded.lengths(task) + responses
        return total

    def row(self, post: Post, index: int, task: Task, response: int) -> TextRow:
        """A post with one of its responses."""
        ids = self.rationales if task == "reasoning" else self.answers
        return self.encoded.row(post, index, task, ids[response])


class TrainingSet(Dataset[MicroBatch]):
    """Planned micro-batches of training posts.

    Args:
        posts: the posts and their responses.
        collator: pads rows.
        rationales_per_post: at most so many of a post's rationales in one epoch, drawn by seed and epoch.
        max_tokens: tokens of a micro-batch, padding included, that must not be exceeded; None for no limit.
        parts: micro-batches of an optimizer step, for the message when there are too few.
        seed: decides which rationales are drawn.
    """

    def __init__(
        self,
        posts: TrainingPosts,
        collator: RowCollator,
        rationales_per_post: int,
        max_tokens: int | None,
        parts: int,
        seed: int,
    ) -> None:
        self.posts = posts
        self.collator = collator
        self.rationales_per_post = rationales_per_post
        self.max_tokens = max_tokens
        self.parts = parts
        self.seed = seed

    def __len__(self) -> int:
        return len(self.posts)

    def drawn(self, post_id: str, index: int, task: Task, epoch: int) -> Sequence[int]:
        """The responses with which a post takes part in an epoch: by (seed, epoch, post id) alone."""
        responses = self.posts.responses(index, task)
        if task == "classification" or len(responses) <= self.rationales_per_post:
            return responses
        draw = random.Random(f"{self.seed}/{epoch}/{post_id}")
        return draw.sample(responses, self.rationales_per_post)

    def costs(self, epoch: int) -> EpochCosts:
        """What every post costs in an epoch; a picture's tokens count where the pictures' sizes are known."""
        posts = self.posts
        tokens = np.zeros(len(posts), dtype=np.int64)
        response_tokens: dict[Task, NDArray[np.int64]] = {}
        for task in posts.tasks:
            if task == "reasoning":
                rows, responses = self._rationale_costs(epoch)
            else:
                rows, responses = np.ones(len(posts), dtype=np.int64), posts.answers.lengths[posts.gold]
            tokens += rows * posts.encoded.lengths(task) + responses
            response_tokens[task] = responses
        return EpochCosts(tokens, response_tokens)

    def _rationale_costs(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rationales and their tokens of every post in an epoch."""
        posts = self.posts
        counts = np.minimum(posts.rationales_of, self.rationales_per_post)
        ends = posts.rationales.offsets[posts.first]
        tokens = np.diff(ends)
        lengths = posts.rationales.lengths
        for index in np.flatnonzero(posts.rationales_of > self.rationales_per_post).tolist():
            drawn = self.drawn(posts.encoded[index].id, index, "reasoning", epoch)
            tokens[index] = lengths[list(drawn)].sum()
        return counts, tokens

    def __getitem__(self, plan: PlannedMicroBatch) -> MicroBatch:
        rows: dict[Task, list[TextRow]] = {}
        posts = [self.posts.encoded[index] for index in plan.posts]
        for post, index in zip(posts, plan.posts, strict=True):
            for task in self.posts.tasks:
                for response in self.drawn(post.id, index, task, plan.epoch):
                    rows.setdefault(task, []).append(self.posts.row(post, index, task, response))
        tasks = self.collator.tasks(rows)
        self.collator.trim_pictures()
        self._check_size(tasks)
        idle = None if posts else self._idle()
        return MicroBatch(tasks, dict(plan.step_tokens), tuple(post.id for post in posts), idle)

    def _idle(self) -> RowBatch:
        """One row of the first post that has any; see `MicroBatch.idle`."""
        task, index = next(
            (task, index)
            for index in range(len(self.posts))
            for task in self.posts.tasks
            if self.posts.responses(index, task)
        )
        row = self.posts.row(self.posts.encoded[index], index, task, self.posts.responses(index, task)[0])
        return self.collator.tasks({task: [row]})[task]

    def _check_size(self, tasks: Mapping[Task, RowBatch]) -> None:
        distinct = {id(rows.inputs): rows.inputs for rows in tasks.values()}  # tasks may share theirs
        tokens = sum(inputs["input_ids"].numel() for inputs in distinct.values())
        if self.max_tokens is not None and tokens > self.max_tokens:
            fits = -(-tokens * self.parts // self.max_tokens)
            raise InputError(
                f"a micro-batch holds {tokens} tokens, more than data.init_args.max_tokens={self.max_tokens}: raise "
                f"trainer.accumulate_grad_batches so that world size x accumulation is {fits} or more (now "
                f"{self.parts})"
            )


class QuestionSet(Dataset[QuestionBatch]):
    """Slices of posts as questions: candidates for label scoring, prompts for generation.

    Args:
        slices: the numbers of the posts of each batch; a batch may be empty.
        encoded: the posts, encoded for `tasks`.
        collator: pads rows.
        tasks: `classification` for the candidates, `reasoning` for the prompts.
        references: teacher rationales by post id.
    """

    def __init__(
        self,
        slices: Sequence[Sequence[int]],
        encoded: EncodedPosts,
        collator: RowCollator,
        tasks: Sequence[Task],
        references: Mapping[str, RationaleRecord],
    ) -> None:
        self.slices = slices
        self.encoded = encoded
        self.collator = collator
        self.tasks = tasks
        self.references = references
        encoder = encoded.encoder
        self.answers = [encoder.response_ids(prediction_json(label)) for label in encoder.labels]

    def __len__(self) -> int:
        return len(self.slices)

    def sizes(self) -> tuple[NDArray[np.int64], int]:
        """Tokens of the longest line that each post needs in a batch, `[posts]`, and how many lines it needs."""
        lengths = {task: self.encoded.lengths(task) for task in self.tasks}
        longest = np.maximum.reduce(list(lengths.values()))
        if "classification" not in self.tasks:
            return longest, 1
        if self.collator.form.layout == "paired":
            return longest + max(map(len, self.answers)), len(self.answers)
        line = lengths["classification"] + sum(map(len, self.answers))
        return line + (self.encoded.branch_tokens("reasoning") if "reasoning" in self.tasks else 0), 1

    def __getitem__(self, index: int) -> QuestionBatch:
        numbers = self.slices[index]
        if not numbers:
            return QuestionBatch((), None, None)
        posts = [self.encoded[number] for number in numbers]
        asked = list(zip(posts, numbers, strict=True))
        rows: dict[Task, list[TextRow]] = {}
        if "classification" in self.tasks:
            rows["classification"] = [
                self.encoded.row(*each, "classification", answer) for each in asked for answer in self.answers
            ]
        if "reasoning" in self.tasks:
            rows["reasoning"] = [self.encoded.row(*each, "reasoning") for each in asked]
        batches = self.collator.tasks(rows)
        self.collator.trim_pictures()
        references = tuple(self.references.get(post.id) for post in posts)
        candidates, prompts = batches.get("classification"), batches.get("reasoning")
        return QuestionBatch(tuple(posts), candidates, prompts, references, tuple(numbers))


class ResponseSet(Dataset[MicroBatch]):
    """Slices of posts with all their responses, for a forward pass over what a student will learn.

    Args:
        slices: the numbers of the posts of each batch; a batch may be empty.
        posts: the posts and their responses.
        collator: makes batches of rows.
    """

    def __init__(self, slices: Sequence[Sequence[int]], posts: TrainingPosts, collator: RowCollator) -> None:
        self.slices = slices
        self.posts = posts
        self.collator = collator

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> MicroBatch:
        rows: dict[Task, list[TextRow]] = {}
        posts = [self.posts.encoded[number] for number in self.slices[index]]
        for post, number in zip(posts, self.slices[index], strict=True):
            for task in self.posts.tasks:
                for response in self.posts.responses(number, task):
                    rows.setdefault(task, []).append(self.posts.row(post, number, task, response))
        tasks = self.collator.tasks(rows) if rows else {}
        self.collator.trim_pictures()
        tokens = {task: len(given.targets) for task, given in tasks.items()}
        return MicroBatch(tasks, tokens, tuple(post.id for post in posts))


class PostSet(Dataset[list[Post]]):
    """Slices of posts as they are, for the teacher."""

    def __init__(self, slices: Sequence[Sequence[int]], posts: Sequence[Post]) -> None:
        self.slices = slices
        self.posts = posts

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> list[Post]:
        return [self.posts[number] for number in self.slices[index]]
