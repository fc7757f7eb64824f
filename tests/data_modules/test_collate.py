from pathlib import Path

import numpy as np
import pytest

from data_modules.batching import PlannedMicroBatch
from data_modules.collate import QuestionSet, TrainingPosts, TrainingSet
from data_modules.encoded import EncodedPosts, Ragged
from data_modules.readers import Table
from mulcot.models import load_processor
from mulcot.rows import RowCollator, RowEncoder
from mulcot.types import DEFAULT_LABELS, TASKS, InputError, Post

TEXTS = ["one", "two words", "three little words", "alone"]
"""The rationales: three of the first post, one of the second, none of the third."""


@pytest.fixture(scope="module")
def encoder(embedded: Path) -> RowEncoder:
    return RowEncoder(load_processor(str(embedded / "models" / "student")), DEFAULT_LABELS)


@pytest.fixture(scope="module")
def posts(embedded: Path) -> list[Post]:
    folder = embedded / "posts" / "posts"
    return list(Table({"train": folder / "train.jsonl"}, folder / "images").read("train"))[:3]


@pytest.fixture(scope="module")
def training(encoder: RowEncoder, posts: list[Post]) -> TrainingPosts:
    rationales = Ragged.of(encoder.response_ids(text) for text in TEXTS)
    encoded = EncodedPosts.encode(posts, encoder, TASKS)
    return TrainingPosts(encoded, np.array([0, 1, 2]), rationales, np.array([0, 3, 4, 4]))


def make_set(training: TrainingPosts, encoder: RowEncoder, **changes: object) -> TrainingSet:
    settings = {"rationales_per_post": 2, "max_tokens": None, "parts": 1, "seed": 0} | changes
    return TrainingSet(training, RowCollator(encoder), **settings)


def drawn(data: TrainingSet, posts: list[Post], index: int, epoch: int) -> tuple[int, ...]:
    return tuple(data.drawn(posts[index].id, index, "reasoning", epoch))


def test_rationales_are_drawn_by_seed_and_epoch_up_to_the_limit(
    training: TrainingPosts, encoder: RowEncoder, posts: list[Post]
) -> None:
    data = make_set(training, encoder)
    draws = {drawn(data, posts, 0, epoch) for epoch in range(20)}
    assert all(len(set(draw)) == 2 and set(draw) < {0, 1, 2} for draw in draws)
    assert len(draws) > 1
    assert drawn(make_set(training, encoder), posts, 0, 7) == drawn(data, posts, 0, 7)
    assert drawn(data, posts, 1, 0) == (3,)
    assert drawn(data, posts, 2, 0) == ()


def test_costs_count_what_the_micro_batches_hold(
    training: TrainingPosts, encoder: RowEncoder, posts: list[Post]
) -> None:
    data = make_set(training, encoder)
    for epoch in range(3):
        costs = data.costs(epoch)
        for index, post in enumerate(posts):
            texts = [TEXTS[number] for number in drawn(data, posts, index, epoch)]
            answer = f'{{"Prediction": "{DEFAULT_LABELS[index]}"}}'
            rows = [encoder.row(post, "reasoning", text) for text in texts]
            rows.append(encoder.row(post, "classification", answer))
            # What the rows hold before they are padded, the picture's tokens among it.
            whole = [int(RowCollator(encoder).batch([row]).inputs["attention_mask"].sum()) for row in rows]
            assert costs.tokens[index] == sum(whole)
            assert costs.response_tokens["reasoning"][index] == sum(len(row.response_ids) for row in rows[:-1])
            assert costs.response_tokens["classification"][index] == len(rows[-1].response_ids)


def test_a_micro_batch_holds_the_rows_of_its_posts(
    training: TrainingPosts, encoder: RowEncoder, posts: list[Post]
) -> None:
    data = make_set(training, encoder, rationales_per_post=9)
    batch = data[PlannedMicroBatch(0, (0, 2), {"reasoning": 40, "classification": 12})]
    assert batch.tasks["reasoning"].rows == tuple(encoder.row(posts[0], "reasoning", text) for text in TEXTS[:3])
    assert batch.tasks["classification"].rows == (
        encoder.row(posts[0], "classification", '{"Prediction": "positive"}'),
        encoder.row(posts[2], "classification", '{"Prediction": "negative"}'),
    )
    assert batch.step_tokens == {"reasoning": 40, "classification": 12}
    assert batch.post_ids == (posts[0].id, posts[2].id)


def test_an_empty_hand_gives_an_empty_micro_batch(training: TrainingPosts, encoder: RowEncoder) -> None:
    batch = make_set(training, encoder)[PlannedMicroBatch(0, (), {"classification": 5})]
    assert batch.tasks == {}
    assert batch.step_tokens == {"classification": 5}


def test_a_micro_batch_over_the_limit_names_the_accumulation_that_fits(
    training: TrainingPosts, encoder: RowEncoder
) -> None:
    free = make_set(training, encoder)[PlannedMicroBatch(0, (0, 1, 2), {})]
    tokens = sum(rows.inputs["input_ids"].numel() for rows in free.tasks.values())
    limited = make_set(training, encoder, max_tokens=tokens // 2 - 1)
    with pytest.raises(InputError, match=r"accumulation is 3 or more \(now 1\)"):
        limited[PlannedMicroBatch(0, (0, 1, 2), {})]
    assert make_set(training, encoder, max_tokens=tokens)[PlannedMicroBatch(0, (0, 1, 2), {})].tasks


def test_questions_ask_every_post_with_every_label(posts: list[Post], encoder: RowEncoder) -> None:
    encoded = EncodedPosts.encode(posts, encoder, TASKS)
    batch = QuestionSet([[2, 0]], encoded, RowCollator(encoder), ["classification"], {})[0]
    assert batch.prompts is None
    assert batch.candidates is not None
    assert batch.numbers == (2, 0)
    asked = [(row.post.id, encoder.decode(row.response_ids)) for row in batch.candidates.rows]
    assert asked == [
        (posts[number].id, f'{{"Prediction": "{label}"}}') for number in (2, 0) for label in DEFAULT_LABELS
    ]


def test_pictures_are_kept_up_to_the_budget(training: TrainingPosts, encoder: RowEncoder) -> None:
    opened: list[str] = []

    class Counting(RowEncoder):
        def head(self, row):
            opened.append(row.post.id)
            return super().head(row)

    for budget, expected in ((0, 6), (64, 3)):
        opened.clear()
        collator = RowCollator(Counting(encoder.processor, DEFAULT_LABELS), picture_cache_mb=budget)
        data = TrainingSet(training, collator, 1, None, 1, 0)
        for _ in range(2):
            data[PlannedMicroBatch(0, (0, 1, 2), {"reasoning": 1, "classification": 1})]
        assert len(opened) == expected


def test_flat_arrays_give_back_the_sequences() -> None:
    sequences = [[1, 2, 3], [], [7], [2**31 - 1]]
    ragged = Ragged.of(sequences)
    assert [list(ragged[index]) for index in range(len(ragged))] == sequences
    assert ragged.lengths.tolist() == [3, 0, 1, 1]
    assert [list(ragged.first(2)[index]) for index in range(2)] == sequences[:2]
    assert len(Ragged.of([])) == 0
