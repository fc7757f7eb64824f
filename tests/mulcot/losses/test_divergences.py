"""Laws that every divergence obeys on every view that it takes, and golden values from plain Python in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mulcot.losses import DIVERGENCES, Dense, Sampled, TopK, View, cross_entropy, log_probs
from mulcot.types import InputError

TOKENS, VOCAB, DRAWS = 6, 23, 40

VIEWS: dict[str, Callable[[Tensor, float], View]] = {
    "dense": lambda logits, _: Dense(logits),
    "top 1": lambda logits, temperature: TopK.from_logits(logits, 1, temperature),
    "top 5": lambda logits, temperature: TopK.from_logits(logits, 5, temperature),
    "all but one": lambda logits, temperature: TopK.from_logits(logits, VOCAB - 1, temperature),
    "top all": lambda logits, temperature: TopK.from_logits(logits, VOCAB, temperature),
    "sampled": lambda logits, temperature: Sampled.from_logits(
        logits, DRAWS, temperature, torch.Generator().manual_seed(7), proposal_temperature=1.5
    ),
}
KINDS = {"dense": "dense", "sampled": "sampled"}
CASES = [(name, of) for name, spec in DIVERGENCES.items() for of in VIEWS if KINDS.get(of, "top_k") in spec.views]


def make_logits(seed: int, tokens: int = TOKENS, dtype: torch.dtype = torch.float64, scale: float = 2.0) -> Tensor:
    return (torch.randn(tokens, VOCAB, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def loss_of(name: str, student: Tensor, view: View, temperature: float) -> Tensor:
    return DIVERGENCES[name].function(student, view, temperature)


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    (result,) = torch.autograd.grad(loss.sum(), of)
    return result


@pytest.fixture(autouse=True)
def blocks_of_two_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that these few tokens are several blocks, the last of them a part of one."""
    monkeypatch.setitem(log_probs._BLOCK, "cpu", 2 * VOCAB)


@pytest.mark.parametrize(("name", "of"), CASES)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
class TestLaws:
    def test_equal_distributions_cost_nothing(self, name: str, of: str, temperature: float) -> None:
        logits = make_logits(0).requires_grad_()
        loss = loss_of(name, logits, VIEWS[of](logits, temperature), temperature)
        torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-12, rtol=0)
        if of == "sampled":
            return  # its gradient is that of the drawn ids, 0 in the mean alone: see the test of unbiasedness
        at_equal = gradient(loss, logits)
        if name == "total_variation":  # it has a kink here: any subgradient will do
            assert (at_equal.abs() <= (logits / temperature).softmax(-1) / temperature).all()
        else:
            torch.testing.assert_close(at_equal, torch.zeros_like(logits), atol=1e-12, rtol=0)

    def test_different_distributions_cost_something(self, name: str, of: str, temperature: float) -> None:
        assistant, student = make_logits(0, tokens=400), make_logits(1, tokens=400)
        loss = loss_of(name, student, VIEWS[of](assistant, temperature), temperature)
        if of == "sampled":
            assert loss.mean() > 4 * loss.std() / 20
        elif (name, of) == ("logit_mse", "top 1"):
            assert (loss == 0).all()  # one logit has no other to differ from
        else:
            assert (loss > 0).all()

    def test_a_constant_on_the_logits_changes_nothing(self, name: str, of: str, temperature: float) -> None:
        assistant, student = make_logits(0), make_logits(1)
        shift = torch.tensor([-700.0, -3.0, 0.0, 5.0, 80.0, 700.0], dtype=torch.float64).unsqueeze(-1)
        plain = loss_of(name, student, VIEWS[of](assistant, temperature), temperature)
        moved = loss_of(name, student + shift, VIEWS[of](assistant - shift, temperature), temperature)
        torch.testing.assert_close(moved, plain, atol=1e-11, rtol=1e-11)

    def test_padding_rows_of_the_student_s_head_are_no_ids(self, name: str, of: str, temperature: float) -> None:
        """Qwen2.5-VL has 151,936 rows at 3B and 152,064 at 7B, for one tokenizer."""
        view = VIEWS[of](make_logits(0), temperature)
        logits = make_logits(1).requires_grad_()
        wide = torch.cat([make_logits(1), make_logits(2)], dim=-1).requires_grad_()
        loss, plain = loss_of(name, wide, view, temperature), loss_of(name, logits, view, temperature)
        torch.testing.assert_close(loss, plain, atol=1e-12, rtol=0)
        of_wide = gradient(loss, wide)
        torch.testing.assert_close(of_wide[:, :VOCAB], gradient(plain, logits), atol=1e-12, rtol=0)
        assert (of_wide[:, VOCAB:] == 0).all()

    def test_no_tokens_give_a_zero_that_can_be_back_propagated(self, name: str, of: str, temperature: float) -> None:
        logits = make_logits(0, tokens=0).requires_grad_()
        total = loss_of(name, logits, VIEWS[of](logits, temperature), temperature).sum()
        assert total.item() == 0
        total.backward()
        assert logits.grad is not None
        assert logits.grad.shape == (0, VOCAB)

    def test_chunks_equal_the_whole(self, name: str, of: str, temperature: float) -> None:
        view = VIEWS[of](make_logits(0), temperature)
        student = make_logits(1).requires_grad_()
        whole = loss_of(name, student, view, temperature)
        parts = [slice(0, 1), slice(1, 4), slice(4, TOKENS)]
        chunked = torch.cat([loss_of(name, student[part], view[part], temperature) for part in parts])
        torch.testing.assert_close(chunked, whole)
        torch.testing.assert_close(gradient(chunked, student), gradient(whole, student))

    def test_half_precision_logits_are_computed_in_fp32(self, name: str, of: str, temperature: float) -> None:
        assistant, student = make_logits(0, dtype=torch.bfloat16), make_logits(1, dtype=torch.bfloat16).requires_grad_()
        loss = loss_of(name, student, VIEWS[of](assistant, temperature), temperature)
        double = student.detach().double().requires_grad_()
        exact = loss_of(name, double, VIEWS[of](assistant.double(), temperature), temperature)
        assert loss.dtype == torch.float32
        # Reverse KL divides the rounding of a cut tail, 1e-7, by that tail.
        tolerance = 5e-5 if (name, temperature) == ("reverse_kl", 0.5) else 4e-6
        torch.testing.assert_close(loss.double(), exact, atol=tolerance, rtol=tolerance)
        of_half = gradient(loss, student)
        assert of_half.dtype == torch.bfloat16
        torch.testing.assert_close(of_half.double(), gradient(exact, double), atol=1e-5, rtol=2**-8)

    def test_gradient_agrees_with_finite_differences(self, name: str, of: str, temperature: float) -> None:
        view = VIEWS[of](make_logits(0), temperature)
        student = make_logits(1).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: loss_of(name, x, view, temperature), (student,))

    def test_extreme_logits_stay_finite(self, name: str, of: str, temperature: float) -> None:
        high = torch.where(make_logits(0) > 0, 1e4, -1e4).float()
        for assistant, student in [(high, -high), (high, high), (high, high * 0), (high * 0, high)]:
            student = student.clone().requires_grad_()
            loss = loss_of(name, student, VIEWS[of](assistant, temperature), temperature)
            assert loss.isfinite().all()
            assert gradient(loss, student).isfinite().all()
        same = loss_of(name, high, VIEWS[of](high, temperature), temperature)
        # The squares of what fp32 rounds away at 2e4 are 1e-6.
        torch.testing.assert_close(same, torch.zeros_like(same), atol=2e-5 if name == "logit_mse" else 2e-6, rtol=0)

    def test_the_assistant_gets_no_gradient(self, name: str, of: str, temperature: float) -> None:
        view = VIEWS[of](make_logits(0).requires_grad_(), temperature)
        assert not loss_of(name, make_logits(1), view, temperature).requires_grad

    def test_the_graph_may_be_used_twice(self, name: str, of: str, temperature: float) -> None:
        """The first backward writes into the buffer of the forward; inspection may ask for a second one."""
        student = make_logits(1).requires_grad_()
        loss = loss_of(name, student, VIEWS[of](make_logits(0), temperature), temperature).sum()
        (first,) = torch.autograd.grad(loss, student, retain_graph=True)
        first = first.clone()
        (second,) = torch.autograd.grad(3 * loss, student)
        torch.testing.assert_close(second, 3 * first)

    def test_a_graph_is_made_only_when_it_is_asked_for(self, name: str, of: str, temperature: float) -> None:
        student, view = make_logits(1).requires_grad_(), VIEWS[of](make_logits(0), temperature)
        with torch.no_grad():
            plain = loss_of(name, student, view, temperature)
        assert plain.grad_fn is None
        torch.testing.assert_close(plain, loss_of(name, student, view, temperature).detach())

    def test_equals_the_value_by_hand(self, name: str, of: str, temperature: float) -> None:
        assistant, student = make_logits(0), make_logits(1)
        view = VIEWS[of](assistant, temperature)
        loss = loss_of(name, student, view, temperature)
        rows = zip(assistant.tolist(), student.tolist(), strict=True)
        golden = [by_hand(name, view, token, a, s, temperature) for token, (a, s) in enumerate(rows)]
        assert loss.tolist() == pytest.approx(golden, rel=1e-10, abs=1e-14)


def by_hand(
    name: str, view: View, token: int, assistant: list[float], student: list[float], temperature: float
) -> float:
    """The divergence of one token in plain Python, from the definitions."""
    p, q = python_softmax(assistant, temperature), python_softmax(student, temperature)
    if isinstance(view, Sampled):
        drawn = zip(view.ids[token].tolist(), view.weights[token].tolist(), strict=True)
        return math.fsum(weight * math.log(p[i] / q[i]) for i, weight in drawn)
    kept = sorted(range(VOCAB), key=lambda i: -p[i])[: view.k if isinstance(view, TopK) else VOCAB]
    if name == "logit_mse":
        gaps = [(student[i] - assistant[i]) / temperature for i in kept]
        return math.fsum((gap - math.fsum(gaps) / len(gaps)) ** 2 for gap in gaps) / len(gaps)
    others = [i for i in range(VOCAB) if i not in kept]
    buckets = [(p[i], q[i]) for i in kept]
    if others:
        buckets.append((math.fsum(p[i] for i in others), math.fsum(q[i] for i in others)))
    return python_divergences()[name](*zip(*buckets, strict=True))


def python_divergences() -> dict[str, Callable[[tuple[float, ...], tuple[float, ...]], float]]:
    """The definitions, on two distributions over the same buckets, at the default parameters."""

    def kl(a: tuple[float, ...], b: tuple[float, ...]) -> float:
        return math.fsum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

    def mix(a: tuple[float, ...], b: tuple[float, ...], share: float) -> tuple[float, ...]:
        return tuple(share * x + (1 - share) * y for x, y in zip(a, b, strict=True))

    return {
        "forward_kl": kl,
        "reverse_kl": lambda p, q: kl(q, p),
        "jsd": lambda p, q: 0.5 * kl(p, mix(p, q, 0.5)) + 0.5 * kl(q, mix(p, q, 0.5)),
        "skewed_kl": lambda p, q: kl(p, mix(p, q, 0.1)),
        "skewed_reverse_kl": lambda p, q: kl(q, mix(q, p, 0.1)),
        "total_variation": lambda p, q: math.fsum(abs(x - y) for x, y in zip(p, q, strict=True)) / 2,
    }


def python_softmax(row: list[float], temperature: float) -> list[float]:
    weights = [math.exp((x - max(row)) / temperature) for x in row]
    return [weight / math.fsum(weights) for weight in weights]


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
def test_a_view_of_another_kind_is_refused(name: str) -> None:
    kinds = {"dense": "dense", "top_k": "top 5", "sampled": "sampled"}
    assert DIVERGENCES[name].views <= set(kinds)
    for kind in set(kinds) - DIVERGENCES[name].views:
        with pytest.raises(InputError, match="view of the assistant, not"):
            loss_of(name, make_logits(1), VIEWS[kinds[kind]](make_logits(0), 2.0), 2.0)


@pytest.mark.parametrize(("name", "of"), [case for case in CASES if case[1] in ("top 5", "sampled")])
def test_another_temperature_than_the_stored_one_is_refused(name: str, of: str) -> None:
    view = VIEWS[of](make_logits(0), 2.0)
    if name == "logit_mse":  # logits have no temperature of their own
        at_two, at_three = (loss_of(name, make_logits(1), view, temperature) for temperature in (2.0, 3.0))
        torch.testing.assert_close(at_two * 4, at_three * 9)
        return
    with pytest.raises(InputError, match="made for T=2 and cannot serve T=3"):
        loss_of(name, make_logits(1), view, 3.0)


@pytest.mark.parametrize(("name", "of"), CASES)
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_impossible_temperatures_are_refused(name: str, of: str, temperature: float) -> None:
    with pytest.raises(InputError, match="above 0"):
        loss_of(name, make_logits(1), VIEWS[of](make_logits(0), 2.0), temperature)


@pytest.mark.parametrize(("name", "of"), [case for case in CASES if case[1] in ("top 5", "sampled")])
def test_soft_labels_over_more_ids_than_the_student_has_are_refused(name: str, of: str) -> None:
    with pytest.raises(InputError, match="over 23 ids were given to a student with 20"):
        loss_of(name, make_logits(1)[:, :20], VIEWS[of](make_logits(0), 2.0), 2.0)


@pytest.mark.parametrize(("name", "of"), [case for case in CASES if case[1] == "dense"])
@pytest.mark.parametrize(("student_rows", "rows"), [(20, None), (20, 18), (23, 18)])
def test_two_heads_are_cut_to_the_ids_that_both_have(name: str, of: str, student_rows: int, rows: int | None) -> None:
    assistant, student = make_logits(0), make_logits(1)[:, :student_rows]
    both = rows or student_rows
    loss = loss_of(name, student, Dense(assistant, rows), 2.0)
    torch.testing.assert_close(loss, loss_of(name, student[:, :both], Dense(assistant[:, :both]), 2.0))


@pytest.mark.parametrize(("name", "of"), CASES)
def test_fp32_is_as_exact_as_fp32_can_be(name: str, of: str) -> None:
    """A vocabulary of 20,000, peaked: the value and the gradient against fp64."""
    generator = torch.Generator().manual_seed(3)
    assistant = torch.randn(8, 20_000, generator=generator) * 3
    student = assistant + torch.randn(8, 20_000, generator=generator)
    single, double = student.clone().requires_grad_(), student.double().requires_grad_()
    view = VIEWS[of](assistant.double(), 1.0)
    found = loss_of(name, single, view, 1.0)
    exact = loss_of(name, double, view, 1.0)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)
    error = gradient(found, single).double() - gradient(exact, double)
    assert error.norm() <= 1e-5 * gradient(loss_of(name, double, view, 1.0), double).norm()


def test_cross_entropy_equals_the_value_by_hand() -> None:
    logits, targets = make_logits(0), torch.tensor([0, 3, VOCAB - 1, 7, 7, 1])
    rows = zip(logits.tolist(), targets.tolist(), strict=True)
    golden = [-math.log(python_softmax(row, 1.0)[target]) for row, target in rows]
    assert cross_entropy(logits, targets).tolist() == pytest.approx(golden, rel=1e-12)
    half = logits.bfloat16()
    assert cross_entropy(half, targets).dtype == torch.float32
    torch.testing.assert_close(cross_entropy(half, targets), cross_entropy(half.float(), targets))
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, targets), (logits.requires_grad_(),))


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
