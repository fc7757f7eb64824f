"""What divergences have to do with each other, in their limits, their bounds and the mean over samples."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from mulcot.losses import (
    DIVERGENCES,
    Dense,
    Divergence,
    Sampled,
    TopK,
    forward_kl,
    jsd,
    logit_mse,
    reverse_kl,
    skewed_kl,
    skewed_reverse_kl,
    total_variation,
)
from mulcot.types import InputError

TOKENS, VOCAB = 200, 23
F_DIVERGENCES = sorted(name for name, spec in DIVERGENCES.items() if "dense" in spec.views and name != "logit_mse")


def make_logits(seed: int, tokens: int = TOKENS, scale: float = 2.0) -> Tensor:
    return torch.randn(tokens, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    (result,) = torch.autograd.grad(loss.sum(), of)
    return result


@pytest.mark.parametrize("name", F_DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
class TestBuckets:
    def test_more_ids_never_lower_a_divergence_and_dense_is_the_most(self, name: str, temperature: float) -> None:
        """The inequality of data processing: what is put together cannot be told apart."""
        assistant, student = make_logits(0), make_logits(1)
        views = [TopK.from_logits(assistant, k, temperature) for k in range(1, VOCAB + 1)] + [Dense(assistant)]
        losses = [DIVERGENCES[name].function(student, view, temperature) for view in views]
        assert all((more >= fewer - 1e-12).all() for fewer, more in pairwise(losses))

    def test_all_ids_equal_dense(self, name: str, temperature: float) -> None:
        assistant, student = make_logits(0), make_logits(1).requires_grad_()
        cut = DIVERGENCES[name].function(student, TopK.from_logits(assistant, VOCAB, temperature), temperature)
        dense = DIVERGENCES[name].function(student, Dense(assistant), temperature)
        torch.testing.assert_close(cut, dense)
        torch.testing.assert_close(gradient(cut, student), gradient(dense, student))


@pytest.mark.parametrize(
    "view", [Dense(make_logits(0)), TopK.from_logits(make_logits(0), 5, 2.0)], ids=["dense", "k=5"]
)
class TestLimitsAndBounds:
    def test_jsd_tends_to_forward_and_to_reverse_kl(self, view: Dense | TopK) -> None:
        student = make_logits(1).requires_grad_()
        small = 1e-7
        for beta, limit in [(small, forward_kl), (1 - small, reverse_kl)]:
            near, exact = jsd(student, view, 2.0, beta=beta) / small, limit(student, view, 2.0)
            torch.testing.assert_close(near, exact, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(gradient(near, student), gradient(exact, student), rtol=1e-3, atol=1e-6)

    def test_jsd_is_bounded(self, view: Dense | TopK) -> None:
        for beta in (0.1, 0.5, 0.9):
            entropy = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
            assert (jsd(make_logits(1, scale=20), view, 2.0, beta=beta) <= entropy + 1e-12).all()

    def test_skewed_divergences_are_bounded_and_tend_to_kl(self, view: Dense | TopK) -> None:
        student, far = make_logits(1), make_logits(1, scale=20)
        for skewed, limit in [(skewed_kl, forward_kl), (skewed_reverse_kl, reverse_kl)]:
            assert (skewed(far, view, 2.0, alpha=0.1) <= math.log(10) + 1e-12).all()
            torch.testing.assert_close(skewed(student, view, 2.0, alpha=0.0), limit(student, view, 2.0), rtol=0, atol=0)
            torch.testing.assert_close(
                skewed(student, view, 2.0, alpha=1e-9), limit(student, view, 2.0), rtol=1e-6, atol=1e-6
            )

    def test_total_variation_is_at_most_one_and_keeps_to_pinsker(self, view: Dense | TopK) -> None:
        for student in (make_logits(1), make_logits(1, scale=50)):
            distance = total_variation(student, view, 2.0)
            assert (distance <= 1 + 1e-12).all()
            assert (distance <= (forward_kl(student, view, 2.0) / 2).sqrt() + 1e-12).all()
            assert (distance <= (reverse_kl(student, view, 2.0) / 2).sqrt() + 1e-12).all()


def test_jsd_of_one_half_is_symmetric() -> None:
    one, other = make_logits(0), make_logits(1)
    torch.testing.assert_close(jsd(one, Dense(other), 2.0), jsd(other, Dense(one), 2.0))
    torch.testing.assert_close(jsd(one, Dense(other), 2.0, beta=0.3), jsd(other, Dense(one), 2.0, beta=0.7))
    torch.testing.assert_close(forward_kl(one, Dense(other), 2.0), reverse_kl(other, Dense(one), 2.0))


def test_forward_kl_tends_to_half_the_logit_mse_as_the_temperature_grows() -> None:
    student, view, temperature = make_logits(1), Dense(make_logits(0)), 1e4
    kl = temperature**2 * forward_kl(student, view, temperature)
    torch.testing.assert_close(2 * kl, temperature**2 * logit_mse(student, view, temperature), rtol=1e-2, atol=0)


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_an_impossible_beta_is_refused(beta: float) -> None:
    with pytest.raises(InputError, match="not between 0 and 1"):
        jsd(make_logits(1), Dense(make_logits(0)), 1.0, beta=beta)


@pytest.mark.parametrize("skewed", [skewed_kl, skewed_reverse_kl])
@pytest.mark.parametrize("alpha", [1.0, -0.1, math.nan])
def test_an_impossible_alpha_is_refused(skewed: Divergence, alpha: float) -> None:
    with pytest.raises(InputError, match="0 or more and below 1"):
        skewed(make_logits(1), Dense(make_logits(0)), 1.0, alpha=alpha)


@pytest.mark.parametrize("k", [5, VOCAB - 1, VOCAB, None])
def test_forward_kl_has_the_gradient_of_the_soft_cross_entropy(k: int | None) -> None:
    temperature, assistant = 2.0, make_logits(0)
    student = make_logits(1).requires_grad_()
    p = (assistant / temperature).softmax(-1)
    q = (student / temperature).softmax(-1)
    in_head = torch.zeros_like(p).scatter(-1, assistant.topk(k or VOCAB).indices, 1.0)
    soft = -(in_head * p * q.log()).sum(-1)
    if k is not None and k < VOCAB:
        others = 1 - in_head
        soft = soft - (others * p).sum(-1) * (others * q).sum(-1).log()
    view = Dense(assistant) if k is None else TopK.from_logits(assistant, k, temperature)
    loss = forward_kl(student, view, temperature)
    torch.testing.assert_close(gradient(loss, student), gradient(soft, student))


@pytest.mark.parametrize("proposal_temperature", [1.0, 2.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_samples_give_the_dense_divergence_and_gradient_in_the_mean(
    proposal_temperature: float, temperature: float
) -> None:
    """20,000 independent draws of three ids for one token, within four standard errors each."""
    draws = 20_000
    assistant, student = make_logits(0, 1), make_logits(1, 1).requires_grad_()
    exact = forward_kl(student, Dense(assistant), temperature)
    view = Sampled.from_logits(
        assistant.expand(draws, VOCAB),
        3,
        temperature,
        torch.Generator().manual_seed(0),
        proposal_temperature=proposal_temperature,
    )
    many = student.detach().expand(draws, VOCAB).clone().requires_grad_()
    values = forward_kl(many, view, temperature)
    for found, wanted in [(values.detach(), exact.detach()), (gradient(values, many), gradient(exact, student)[0])]:
        error = (found.mean(dim=0) - wanted).abs()
        assert (error <= 4 * found.std(dim=0) / draws**0.5).all()
        assert (found.std(dim=0) > 0).all()


def test_ids_that_the_assistant_rules_out_leave_every_divergence_finite() -> None:
    assistant, student = make_logits(0).float(), make_logits(1).float().requires_grad_()
    assistant[:, 3:20] = -math.inf
    for name in F_DIVERGENCES:
        for view in (Dense(assistant), TopK.from_logits(assistant, 6, 2.0), TopK.from_logits(assistant, VOCAB, 2.0)):
            loss = DIVERGENCES[name].function(student, view, 2.0)
            assert loss.isfinite().all()
            assert gradient(loss, student).isfinite().all()


@pytest.mark.parametrize("gap", [20.0, 60.0, 5000.0])
def test_a_student_that_is_nearly_certain_keeps_a_correct_tail(gap: float) -> None:
    """1 - Σ of the student's probabilities is 0 in fp32 here, and its log would be -inf."""
    student = torch.full((1, VOCAB), -gap)
    student[0, 0] = 0.0
    loss = forward_kl(student, TopK.from_logits(torch.zeros(1, VOCAB), 1, 1.0), 1.0)
    p = 1 / VOCAB
    # All ids are equally likely for the assistant, so it does not matter which one is kept unless it is id 0.
    kept = TopK.from_logits(torch.zeros(1, VOCAB), 1, 1.0).ids.item()
    if kept == 0:
        golden = p * math.log(p) + (1 - p) * (math.log(1 - p) - math.log(VOCAB - 1) + gap)
    else:
        golden = p * (math.log(p) + gap) + (1 - p) * math.log(1 - p)
    assert loss.item() == pytest.approx(golden, rel=1e-5)


@pytest.mark.parametrize("temperature", [2.0, 0.5])
def test_an_assistant_that_is_nearly_certain_keeps_a_tail_that_reverse_kl_can_take(temperature: float) -> None:
    """In fp32 1 - Σ is 0 here; the mass of the tail at T=1 says how small it can be at most."""
    gap = 60.0
    assistant, student = torch.full((1, VOCAB), -gap), torch.zeros(1, VOCAB)
    assistant[0, 0] = 0.0
    loss = reverse_kl(student, TopK.from_logits(assistant, 1, temperature), temperature)
    q, log_tail = 1 / VOCAB, math.log(VOCAB - 1) - gap / temperature
    golden = q * math.log(q) + (1 - q) * (math.log(1 - q) - log_tail)
    assert loss.item() == pytest.approx(golden, abs=abs(1 - 1 / temperature) * math.log(VOCAB - 1))
