"""What the views of the assistant hold, how they are cut and joined, and what is refused."""

import math

import pytest
import torch
from torch import Tensor

from mulcot.losses import Dense, Sampled, TopK, forward_kl
from mulcot.types import InputError

TOKENS, VOCAB = 6, 23


def make_logits(seed: int) -> Tensor:
    return torch.randn(TOKENS, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def draw(logits: Tensor, draws: int, temperature: float = 2.0, **options: float) -> Sampled:
    return Sampled.from_logits(logits, draws, temperature, torch.Generator().manual_seed(0), **options)


def test_the_likeliest_ids_and_the_mass_of_the_others() -> None:
    logits = make_logits(3)
    view = TopK.from_logits(logits, 4, 2.0)
    p = logits.softmax(-1)
    assert view.ids.dtype == torch.int64
    torch.testing.assert_close(view.log_probs.exp(), p.gather(-1, view.ids))
    torch.testing.assert_close(view.log_probs[:, 0].exp(), p.amax(-1))
    torch.testing.assert_close(view.log_tail.exp(), 1 - view.log_probs.exp().sum(-1))
    torch.testing.assert_close(view.log_z.exp(), p.sqrt().sum(-1))
    assert (TopK.from_logits(logits, VOCAB, 2.0).log_tail == -math.inf).all()


@pytest.mark.parametrize("temperature", [2.0, 0.5, 1.0])
def test_the_tail_of_a_nearly_certain_token_is_small_and_not_nothing(temperature: float) -> None:
    """At T≠1 it is 1 - Σ, of which fp32 keeps no digit here, and not below what its mass at T=1 leaves possible."""
    logits = torch.full((1, VOCAB), -60.0)
    logits[0, 5:9] = torch.tensor([0.0, 0.1, 0.2, 0.3])
    log_p, log_tail = TopK.from_logits(logits, 4, temperature).at(temperature)
    exact = (logits.double() / temperature).softmax(-1).sort(descending=True).values
    torch.testing.assert_close(log_p.exp().double(), exact[:, :4], atol=1e-6, rtol=0)
    assert log_tail.isfinite()
    assert log_tail >= exact[:, 4:].sum().log() - abs(1 / temperature - 1) * math.log(VOCAB - 4) - 1e-3
    assert log_tail.exp() < 1e-6


def test_views_are_cut_and_joined_by_token() -> None:
    view = TopK.from_logits(make_logits(3), 4, 2.0)
    again = TopK.cat([view[:2], view[2:], view[:0]])
    assert (len(again), again.k, again.temperature) == (TOKENS, 4, 2.0)
    for name in ("ids", "log_probs", "log_tail", "log_z"):
        assert torch.equal(getattr(again, name), getattr(view, name))
    with pytest.raises(InputError, match="cannot be mixed"):
        TopK.cat([view, TopK.from_logits(make_logits(3), 4, 3.0)])


def test_every_cut_view_serves_temperature_one() -> None:
    assistant, student = make_logits(0), make_logits(1)
    loss = forward_kl(student, TopK.from_logits(assistant, 5, 2.0), 1.0)
    torch.testing.assert_close(loss, forward_kl(student, TopK.from_logits(assistant, 5, 1.0), 1.0))


@pytest.mark.parametrize(
    ("k", "temperature", "message"), [(0, 2.0, "23 ids"), (24, 2.0, "23 ids"), (3, 0.0, "above 0")]
)
def test_impossible_cuts_are_refused(k: int, temperature: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TopK.from_logits(make_logits(0), k, temperature)


def test_dense_log_probabilities_keep_their_digits_far_from_zero() -> None:
    logits = make_logits(0).float()
    moved = Dense((logits.double() + 3e4).float()).at(3.0)
    torch.testing.assert_close(moved, Dense((logits.double() + 3e4).float() - 3e4).at(3.0))


def test_samples_are_distinct_ids_with_their_shares_and_log_probabilities() -> None:
    logits, draws = make_logits(0), 50
    view = draw(logits, draws)
    log_p = (logits / 2).log_softmax(-1)
    assert view.ids.shape == view.weights.shape == view.log_probs.shape == (TOKENS, draws)
    assert (view.temperature, view.rows) == (2.0, VOCAB)
    torch.testing.assert_close(view.weights.sum(-1), torch.ones(TOKENS, dtype=torch.float64))
    for ids, weights, log_probs, row in zip(view.ids, view.weights, view.log_probs, log_p, strict=True):
        drawn = int((weights > 0).sum())
        assert len(set(ids[:drawn].tolist())) == drawn <= VOCAB
        torch.testing.assert_close(log_probs[:drawn], row[ids[:drawn]])
        shares = weights[:drawn] * draws
        torch.testing.assert_close(shares, shares.round())
        assert (ids[drawn:] == 0).all()
        assert (weights[drawn:] == 0).all()
        assert (log_probs[drawn:] == 0).all()


def test_a_flatter_proposal_draws_more_ids_and_weighs_them_down() -> None:
    logits = make_logits(0)
    plain, flat = draw(logits, 200, 1.0), draw(logits, 200, 1.0, proposal_temperature=3.0)
    assert ((flat.weights > 0).sum(-1) > (plain.weights > 0).sum(-1)).all()
    assert not torch.allclose(flat.weights.sum(-1), torch.ones(TOKENS, dtype=torch.float64), atol=1e-3)
    normalised = draw(logits, 200, 1.0, proposal_temperature=3.0, self_normalised=True)
    assert torch.equal(normalised.ids, flat.ids)
    torch.testing.assert_close(normalised.weights, flat.weights / flat.weights.sum(-1, keepdim=True))


def test_unlikely_ids_are_drawn_as_often_as_they_should_be() -> None:
    """One id of probability 0.9 and 100,000 of 1e-6 together 0.1, which sums in fp32 must not lose."""
    logits = torch.full((1, 100_001), math.log(1e-6))
    logits[0, 0] = math.log(0.9)
    view = draw(logits, 20_000, 1.0)
    assert view.weights[0, view.ids[0] == 0].sum().item() == pytest.approx(0.9, abs=4 * (0.09 / 20_000) ** 0.5)
    assert view.ids.max() > 99_000


def test_the_same_generator_draws_the_same_and_ruled_out_ids_never_come() -> None:
    logits = make_logits(0)
    logits[:, :4] = -math.inf
    one, other = draw(logits, 30), draw(logits, 30)
    assert torch.equal(one.ids, other.ids)
    assert not one.weights[one.ids < 4].any()
    assert one.weights.isfinite().all()
    assert one.log_probs.isfinite().all()


@pytest.mark.parametrize(
    ("draws", "temperature", "proposal", "message"),
    [(0, 2.0, 1.0, "draws: 0"), (3, 0.0, 1.0, "above 0"), (3, 1.0, -1.0, "above 0")],
)
def test_impossible_samples_are_refused(draws: int, temperature: float, proposal: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampled.from_logits(make_logits(0), draws, temperature, proposal_temperature=proposal)
