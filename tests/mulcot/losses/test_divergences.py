"""Laws that every divergence obeys, and golden values from plain Python in float64."""

import math

import pytest
import torch
from torch import Tensor

from mulcot.losses import DIVERGENCES, TopK, cross_entropy, forward_kl
from mulcot.types import InputError

TOKENS, VOCAB = 6, 23


def make_logits(seed: int, tokens: int = TOKENS, dtype: torch.dtype = torch.float64, scale: float = 2.0) -> Tensor:
    return (torch.randn(tokens, VOCAB, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    (result,) = torch.autograd.grad(loss.sum(), of)
    return result


def python_softmax(row: list[float], temperature: float) -> list[float]:
    weights = [math.exp((x - max(row)) / temperature) for x in row]
    return [weight / math.fsum(weights) for weight in weights]


def python_bucketed_kl(assistant: list[float], student: list[float], k: int, temperature: float) -> float:
    """KL over the assistant's k likeliest ids and the sum of the others, by hand."""
    p, q = python_softmax(assistant, temperature), python_softmax(student, temperature)
    order = sorted(range(len(p)), key=lambda i: -p[i])
    buckets = [(p[i], q[i]) for i in order[:k]]
    if k < len(p):
        buckets.append((math.fsum(p[i] for i in order[k:]), math.fsum(q[i] for i in order[k:])))
    return math.fsum(a * math.log(a / b) for a, b in buckets)


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
@pytest.mark.parametrize("k", [1, 5, VOCAB - 1, VOCAB])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
class TestLaws:
    def test_equal_distributions_cost_nothing(self, name: str, k: int, temperature: float) -> None:
        logits = make_logits(0).requires_grad_()
        loss = DIVERGENCES[name](logits, TopK.from_logits(logits, k, temperature), temperature)
        torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-12, rtol=0)
        torch.testing.assert_close(gradient(loss, logits), torch.zeros_like(logits), atol=1e-12, rtol=0)

    def test_different_distributions_cost_something(self, name: str, k: int, temperature: float) -> None:
        view = TopK.from_logits(make_logits(0, tokens=200), k, temperature)
        assert (DIVERGENCES[name](make_logits(1, tokens=200), view, temperature) > 0).all()

    def test_a_constant_on_the_logits_changes_nothing(self, name: str, k: int, temperature: float) -> None:
        assistant, student = make_logits(0), make_logits(1)
        shift = torch.tensor([-700.0, -3.0, 0.0, 5.0, 80.0, 700.0], dtype=torch.float64).unsqueeze(-1)
        plain = DIVERGENCES[name](student, TopK.from_logits(assistant, k, temperature), temperature)
        moved = DIVERGENCES[name](student + shift, TopK.from_logits(assistant - shift, k, temperature), temperature)
        torch.testing.assert_close(moved, plain, atol=1e-11, rtol=1e-11)

    def test_padding_rows_of_the_student_s_head_are_no_ids(self, name: str, k: int, temperature: float) -> None:
        """Qwen2.5-VL has 151,936 rows at 3B and 152,064 at 7B, for one tokenizer."""
        view = TopK.from_logits(make_logits(0), k, temperature)
        logits = make_logits(1).requires_grad_()
        padded = torch.cat([logits, make_logits(2)], dim=-1)
        loss = DIVERGENCES[name](padded, view, temperature)
        plain = DIVERGENCES[name](logits, view, temperature)
        torch.testing.assert_close(loss, plain, atol=1e-12, rtol=0)
        torch.testing.assert_close(gradient(loss, logits), gradient(plain, logits), atol=1e-12, rtol=0)

    def test_no_tokens_give_a_zero_that_can_be_back_propagated(self, name: str, k: int, temperature: float) -> None:
        logits = make_logits(0, tokens=0).requires_grad_()
        total = DIVERGENCES[name](logits, TopK.from_logits(logits, k, temperature), temperature).sum()
        assert total.item() == 0
        total.backward()
        assert logits.grad is not None
        assert logits.grad.shape == (0, VOCAB)

    def test_chunks_equal_the_whole(self, name: str, k: int, temperature: float) -> None:
        view = TopK.from_logits(make_logits(0), k, temperature)
        student = make_logits(1).requires_grad_()
        whole = DIVERGENCES[name](student, view, temperature)
        parts = [slice(0, 1), slice(1, 4), slice(4, TOKENS)]
        chunked = torch.cat([DIVERGENCES[name](student[part], view[part], temperature) for part in parts])
        torch.testing.assert_close(chunked, whole)
        torch.testing.assert_close(gradient(chunked, student), gradient(whole, student))

    def test_half_precision_logits_are_computed_in_fp32(self, name: str, k: int, temperature: float) -> None:
        assistant, student = make_logits(0, dtype=torch.bfloat16), make_logits(1, dtype=torch.bfloat16)
        loss = DIVERGENCES[name](student, TopK.from_logits(assistant, k, temperature), temperature)
        exact = DIVERGENCES[name](student.double(), TopK.from_logits(assistant.double(), k, temperature), temperature)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.double(), exact, atol=2e-6, rtol=2e-6)

    def test_gradient_agrees_with_finite_differences(self, name: str, k: int, temperature: float) -> None:
        view = TopK.from_logits(make_logits(0), k, temperature)
        student = make_logits(1).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: DIVERGENCES[name](x, view, temperature), (student,))

    def test_extreme_logits_stay_finite(self, name: str, k: int, temperature: float) -> None:
        high = torch.where(make_logits(0) > 0, 1e4, -1e4).float()
        for assistant, student in [(high, -high), (high, high), (high, high * 0), (high * 0, high)]:
            student = student.clone().requires_grad_()
            view = TopK.from_logits(assistant, k, temperature)
            loss = DIVERGENCES[name](student, view, temperature)
            assert loss.isfinite().all()
            assert gradient(loss, student).isfinite().all()
        same = DIVERGENCES[name](high, TopK.from_logits(high, k, temperature), temperature)
        torch.testing.assert_close(same, torch.zeros_like(same), atol=2e-6, rtol=0)

    def test_the_assistant_gets_no_gradient(self, name: str, k: int, temperature: float) -> None:
        assistant = make_logits(0).requires_grad_()
        view = TopK.from_logits(assistant, k, temperature)
        assert not DIVERGENCES[name](make_logits(1), view, temperature).requires_grad

    def test_another_temperature_than_the_stored_one_is_refused(self, name: str, k: int, temperature: float) -> None:
        view = TopK.from_logits(make_logits(0), k, temperature)
        with pytest.raises(InputError, match=f"made for T={temperature:g} and cannot serve T=3"):
            DIVERGENCES[name](make_logits(1), view, 3.0)


@pytest.mark.parametrize("k", [1, 5, VOCAB - 1, VOCAB])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_forward_kl_equals_the_value_by_hand(k: int, temperature: float) -> None:
    assistant, student = make_logits(0), make_logits(1)
    rows = zip(assistant.tolist(), student.tolist(), strict=True)
    golden = [python_bucketed_kl(a, s, k, temperature) for a, s in rows]
    loss = forward_kl(student, TopK.from_logits(assistant, k, temperature), temperature)
    assert loss.tolist() == pytest.approx(golden, rel=1e-12)


def test_every_view_serves_temperature_one() -> None:
    assistant, student = make_logits(0), make_logits(1)
    loss = forward_kl(student, TopK.from_logits(assistant, 5, 2.0), 1.0)
    torch.testing.assert_close(loss, forward_kl(student, TopK.from_logits(assistant, 5, 1.0), 1.0))


@pytest.mark.parametrize("k", [5, VOCAB])
def test_forward_kl_has_the_gradient_of_the_soft_cross_entropy(k: int) -> None:
    temperature, assistant = 2.0, make_logits(0)
    student = make_logits(1).requires_grad_()
    p = (assistant / temperature).softmax(-1)
    q = (student / temperature).softmax(-1)
    in_head = torch.zeros_like(p).scatter(-1, assistant.topk(k).indices, 1.0)
    soft = -(in_head * p * q.log()).sum(-1)
    if k < VOCAB:
        others = 1 - in_head
        soft = soft - (others * p).sum(-1) * (others * q).sum(-1).log()
    loss = forward_kl(student, TopK.from_logits(assistant, k, temperature), temperature)
    torch.testing.assert_close(gradient(loss, student), gradient(soft, student))


def test_more_ids_never_lower_the_divergence() -> None:
    assistant, student = make_logits(0), make_logits(1)
    losses = [forward_kl(student, TopK.from_logits(assistant, k, 2.0), 2.0) for k in range(1, VOCAB + 1)]
    assert (torch.stack(losses).diff(dim=0) > -1e-12).all()


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


def test_cross_entropy_equals_the_value_by_hand() -> None:
    logits, targets = make_logits(0), torch.tensor([0, 3, VOCAB - 1, 7, 7, 1])
    rows = zip(logits.tolist(), targets.tolist(), strict=True)
    golden = [-math.log(python_softmax(row, 1.0)[target]) for row, target in rows]
    assert cross_entropy(logits, targets).tolist() == pytest.approx(golden, rel=1e-12)
    half = logits.bfloat16()
    assert cross_entropy(half, targets).dtype == torch.float32
    torch.testing.assert_close(cross_entropy(half, targets), cross_entropy(half.float(), targets))


def test_cross_entropy_of_extreme_logits_and_of_no_tokens() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([1, 2]))
    assert loss.tolist() == pytest.approx([2e4, math.log(2)])
    torch.testing.assert_close(gradient(loss, logits), torch.tensor([[1, -1, 0], [0, 0.5, -0.5]]))
    empty = torch.zeros(0, 3, requires_grad=True)
    total = cross_entropy(empty, torch.zeros(0, dtype=torch.int64)).sum()
    total.backward()
    assert total.item() == 0
    assert empty.grad is not None


def test_view_holds_what_it_says() -> None:
    logits = make_logits(3)
    view = TopK.from_logits(logits, 4, 2.0)
    p = logits.softmax(-1)
    assert view.ids.dtype == torch.int64
    torch.testing.assert_close(view.log_probs.exp(), p.gather(-1, view.ids))
    torch.testing.assert_close(view.log_probs[:, 0].exp(), p.amax(-1))
    torch.testing.assert_close(view.log_tail.exp(), 1 - view.log_probs.exp().sum(-1))
    torch.testing.assert_close(view.log_z.exp(), p.sqrt().sum(-1))
    assert (TopK.from_logits(logits, VOCAB, 2.0).log_tail == -math.inf).all()


def test_views_are_cut_and_joined_by_token() -> None:
    view = TopK.from_logits(make_logits(3), 4, 2.0)
    again = TopK.cat([view[:2], view[2:], view[:0]])
    assert (len(again), again.k, again.temperature) == (TOKENS, 4, 2.0)
    for name in ("ids", "log_probs", "log_tail", "log_z"):
        assert torch.equal(getattr(again, name), getattr(view, name))
    with pytest.raises(InputError, match="cannot be mixed"):
        TopK.cat([view, TopK.from_logits(make_logits(3), 4, 3.0)])


@pytest.mark.parametrize(
    ("k", "temperature", "message"), [(0, 2.0, "23 ids"), (24, 2.0, "23 ids"), (3, 0.0, "above 0")]
)
def test_impossible_views_are_refused(k: int, temperature: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TopK.from_logits(make_logits(0), k, temperature)
