from pathlib import Path

import pytest
import torch

from data_modules.collate import QuestionSet
from data_modules.encoded import EncodedPosts
from data_modules.readers import Table
from mulcot.generation import SeededSampler, decode_replies, label_probabilities, sample_seed
from mulcot.models import base_model, load_model, load_processor
from mulcot.rows import QuestionBatch, RowCollator, RowEncoder
from mulcot.types import DEFAULT_LABELS, TASKS


@pytest.fixture(scope="module")
def encoder(embedded: Path) -> RowEncoder:
    return RowEncoder(load_processor(str(embedded / "models" / "student")), DEFAULT_LABELS)


@pytest.fixture(scope="module")
def model(embedded: Path) -> torch.nn.Module:
    model = load_model(str(embedded / "models" / "student")).eval()
    with torch.no_grad():  # far from uniform, so that different answers get clearly different probabilities
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


def questions(embedded: Path, encoder: RowEncoder, first: int, last: int) -> QuestionBatch:
    folder = embedded / "posts" / "posts"
    posts = Table({"val": folder / "val.jsonl"}, folder / "images").read("val")
    encoded = EncodedPosts.encode(posts, encoder, TASKS)
    return QuestionSet([range(first, last)], encoded, RowCollator(encoder), TASKS, {})[0]


@torch.no_grad()
def test_probabilities_are_those_of_the_whole_answers(
    embedded: Path, encoder: RowEncoder, model: torch.nn.Module
) -> None:
    batch = questions(embedded, encoder, 0, 3)
    assert batch.candidates is not None
    table = label_probabilities(model, batch.candidates, 3)
    assert table.sum(dim=-1).tolist() == pytest.approx([1.0] * 3)
    for post, row in zip(batch.posts, table, strict=True):
        scores = []
        for label in DEFAULT_LABELS:
            candidate = encoder.row(post, "classification", f'{{"Prediction": "{label}"}}')
            alone = RowCollator(encoder).batch([candidate])
            labels = alone.inputs["input_ids"].clone()
            labels[:, : -len(candidate.response_ids)] = -100
            loss = base_model(model)(**alone.inputs, labels=labels).loss
            scores.append(-float(loss) * len(candidate.response_ids))
        assert row.tolist() == pytest.approx(torch.tensor(scores).softmax(0).tolist(), abs=1e-4)


def test_greedy_replies_do_not_depend_on_the_batch(embedded: Path, encoder: RowEncoder, model: torch.nn.Module) -> None:
    together = questions(embedded, encoder, 0, 3)
    assert together.prompts is not None
    replies = decode_replies(model, together.prompts, encoder, 12)
    for index, reply in enumerate(replies):
        alone = questions(embedded, encoder, index, index + 1)
        assert alone.prompts is not None
        assert decode_replies(model, alone.prompts, encoder, 12) == [reply]


def test_a_sample_depends_on_its_seed_alone(embedded: Path, encoder: RowEncoder, model: torch.nn.Module) -> None:
    seeds = [sample_seed(0, str(post), 0) for post in range(3)]
    together = questions(embedded, encoder, 0, 3)
    assert together.prompts is not None
    replies = decode_replies(model, together.prompts, encoder, 12, SeededSampler(seeds, 0.7))
    assert len(set(replies)) == 3
    for index, reply in enumerate(replies):
        alone = questions(embedded, encoder, index, index + 1)
        assert alone.prompts is not None
        assert decode_replies(model, alone.prompts, encoder, 12, SeededSampler([seeds[index]], 0.7)) == [reply]


def test_the_sampler_draws_from_the_softmax_at_its_temperature() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    draws = 4000
    sampler = SeededSampler([sample_seed(0, str(index), 0) for index in range(draws)], temperature=0.7)
    tokens = sampler(scores.expand(draws, -1), range(draws)).argmax(dim=-1)
    expected = (scores[0] / 0.7).softmax(0)
    counts = torch.bincount(tokens, minlength=4)
    chi_square = float(((counts - draws * expected) ** 2 / (draws * expected)).sum())
    assert chi_square < 16.27  # 99.9% of a chi-square of three degrees of freedom


def test_sample_seeds_differ_by_seed_post_and_index() -> None:
    seeds = [sample_seed(*key) for key in [(0, "1", 0), (1, "1", 0), (0, "2", 0), (0, "1", 1), (0, "11", 0)]]
    assert len(set(seeds)) == 5
    assert sample_seed(0, "1", 0) == seeds[0]
