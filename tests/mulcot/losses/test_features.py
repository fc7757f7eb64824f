"""Laws of the losses on hidden states, golden values from numpy, and the map of layers by hand."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mulcot.losses import hidden_cosine, hidden_mse, layer_map
from mulcot.types import InputError

Loss = Callable[..., Tensor]
TOKENS, NARROW, WIDE = 7, 5, 9


def states(seed: int, channels: int, tokens: int = TOKENS, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(tokens, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def make_projection(bias: bool = True, dtype: torch.dtype = torch.float64) -> nn.Linear:
    projection = nn.Linear(NARROW, WIDE, bias=bias, dtype=dtype)
    with torch.no_grad():
        for seed, parameter in enumerate(projection.parameters(), 10):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return projection


def golden(loss: Loss, student: Tensor, assistant: Tensor, projection: nn.Linear | None) -> list[float]:
    s, a = (x.detach().double().numpy() for x in (student, assistant))
    if projection is not None:
        s = s @ projection.weight.detach().double().numpy().T
        s = s if projection.bias is None else s + projection.bias.detach().double().numpy()
    if loss is hidden_mse:
        return [float(np.mean((x - y) ** 2)) for x, y in zip(s, a, strict=True)]
    return [1 - float(x @ y / np.sqrt((x @ x) * (y @ y))) for x, y in zip(s, a, strict=True)]


@pytest.mark.parametrize("loss", [hidden_mse, hidden_cosine])
class TestLaws:
    @pytest.mark.parametrize("bias", [True, False])
    def test_equals_the_value_by_hand(self, loss: Loss, bias: bool) -> None:
        projection = make_projection(bias)
        student, assistant, same = states(0, NARROW), states(1, WIDE), states(2, NARROW)
        assert loss(student, assistant, projection).tolist() == pytest.approx(
            golden(loss, student, assistant, projection), rel=1e-12
        )
        assert loss(student, same).tolist() == pytest.approx(golden(loss, student, same, None), rel=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_equal_states_cost_exactly_nothing(self, loss: Loss, dtype: torch.dtype) -> None:
        student = states(0, NARROW, dtype=dtype).requires_grad_()
        value = loss(student, student)
        assert torch.equal(value, torch.zeros_like(value))
        value.sum().backward()
        assert student.grad is not None
        torch.testing.assert_close(student.grad, torch.zeros_like(student), atol=1e-7, rtol=0)

    def test_different_states_cost_something(self, loss: Loss) -> None:
        assert (loss(states(0, NARROW, 200), states(1, NARROW, 200)) > 0).all()
        near = states(0, NARROW, 200, torch.float32)
        assert (loss(near, near * (1 + 1e-7)) >= 0).all()

    def test_chunks_equal_the_whole(self, loss: Loss) -> None:
        projection, student, assistant = make_projection(), states(0, NARROW).requires_grad_(), states(1, WIDE)
        inputs = [student, *projection.parameters()]
        whole = loss(student, assistant, projection)
        parts = [slice(0, 1), slice(1, 4), slice(4, TOKENS)]
        chunked = torch.cat([loss(student[part], assistant[part], projection) for part in parts])
        torch.testing.assert_close(chunked, whole)
        torch.testing.assert_close(torch.autograd.grad(chunked.sum(), inputs), torch.autograd.grad(whole.sum(), inputs))

    def test_no_tokens_give_a_zero_that_can_be_back_propagated(self, loss: Loss) -> None:
        projection, student = make_projection(), states(0, NARROW, 0).requires_grad_()
        total = loss(student, states(1, WIDE, 0), projection).sum()
        total.backward()
        assert total.item() == 0
        assert student.grad is not None
        assert student.grad.shape == (0, NARROW)
        assert projection.weight.grad is not None
        assert torch.equal(projection.weight.grad, torch.zeros_like(projection.weight))

    def test_the_assistant_gets_no_gradient(self, loss: Loss) -> None:
        assistant = states(1, WIDE).requires_grad_()
        projection, student = make_projection(), states(0, NARROW).requires_grad_()
        loss(student, assistant, projection).sum().backward()
        assert assistant.grad is None
        assert student.grad is not None
        assert projection.weight.grad is not None
        assert projection.bias.grad is not None

    def test_gradient_agrees_with_finite_differences(self, loss: Loss) -> None:
        projection, assistant = make_projection(), states(1, WIDE)

        def of(student: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return torch.func.functional_call(
                _Wrapped(loss, projection), {"linear.weight": weight, "linear.bias": bias}, (student, assistant)
            )

        inputs = (states(0, NARROW), projection.weight.detach().clone(), projection.bias.detach().clone())
        assert torch.autograd.gradcheck(of, [x.requires_grad_() for x in inputs])

    @pytest.mark.parametrize("autocast", [True, False])
    def test_half_precision_is_computed_in_fp32(self, loss: Loss, autocast: bool) -> None:
        student, assistant = states(0, NARROW, dtype=torch.bfloat16), states(1, WIDE, dtype=torch.bfloat16)
        projection = make_projection(dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = loss(student, assistant, projection)
        assert value.dtype == torch.float32
        assert value.tolist() == pytest.approx(golden(loss, student, assistant, projection), rel=1e-5)
        half = make_projection(dtype=torch.bfloat16)
        assert loss(student, assistant, half).tolist() == pytest.approx(
            golden(loss, student, assistant, half), rel=1e-5
        )

    def test_long_and_zero_states_stay_finite(self, loss: Loss) -> None:
        for scale in (0.0, 1e-20, 1e4, 1e8):
            student = (states(0, NARROW, dtype=torch.float32) * scale).requires_grad_()
            value = loss(student, states(1, NARROW, dtype=torch.float32))
            value.sum().backward()
            assert value.isfinite().all()
            assert student.grad is not None
            assert student.grad.isfinite().all()

    def test_shapes_that_do_not_fit_are_refused(self, loss: Loss) -> None:
        with pytest.raises(InputError, match="student has 5 channels and the assistant 9: a projection is needed"):
            loss(states(0, NARROW), states(1, WIDE))
        with pytest.raises(InputError, match="from 5 channels to 9; it must go from the student's 9 to the assist"):
            loss(states(0, WIDE), states(1, WIDE), make_projection())
        with pytest.raises(InputError, match="states of 7 tokens cannot learn from those of 1"):
            loss(states(0, NARROW), states(1, NARROW, 1))


class _Wrapped(nn.Module):
    """A loss with its projection as a submodule, whose parameters functional_call can replace."""

    def __init__(self, loss: Loss, linear: nn.Linear) -> None:
        super().__init__()
        self.loss = loss
        self.linear = linear

    def forward(self, student: Tensor, assistant: Tensor) -> Tensor:
        return self.loss(student, assistant, self.linear)


def test_cosine_depends_on_directions_alone() -> None:
    student, assistant = states(0, NARROW), states(1, NARROW)
    plain = hidden_cosine(student, assistant)
    torch.testing.assert_close(hidden_cosine(3 * student, assistant / 50), plain)
    assert hidden_cosine(student, -student).tolist() == pytest.approx([2.0] * TOKENS)


def test_cosine_keeps_its_digits_at_small_angles() -> None:
    """In fp32, 1 - cos is a multiple of 6e-8 and mostly 0 here."""
    angle = 1e-4
    value = hidden_cosine(torch.tensor([[1.0, angle]]), torch.tensor([[1.0, 0.0]]))
    assert value.item() == pytest.approx(angle**2 / 2, rel=1e-3)


@pytest.mark.parametrize(
    ("student", "assistant", "count", "pairs"),
    [
        (4, 12, None, [(1, 3), (2, 6), (3, 9), (4, 12)]),  # TinyBERT's
        (12, 4, None, [(3, 1), (6, 2), (9, 3), (12, 4)]),
        (3, 4, None, [(1, 1), (2, 3), (3, 4)]),
        (4, 3, None, [(1, 1), (3, 2), (4, 3)]),
        (36, 28, 4, [(9, 7), (18, 14), (27, 21), (36, 28)]),
        (28, 36, 4, [(7, 9), (14, 18), (21, 27), (28, 36)]),
        (36, 28, 3, [(12, 9), (24, 19), (36, 28)]),  # 28 / 3 = 9.33 and 18.67
        (36, 28, 1, [(36, 28)]),
        (5, 5, None, [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]),
        (6, 5, 4, [(2, 1), (3, 3), (5, 4), (6, 5)]),  # 1.5 and 2.5 go up
        (1, 9, None, [(1, 9)]),
    ],
)
def test_layers_by_hand(student: int, assistant: int, count: int | None, pairs: list[tuple[int, int]]) -> None:
    assert list(layer_map(student, assistant, count)) == pairs


def test_every_map_rises_ends_with_the_last_and_keeps_depth() -> None:
    for student in range(1, 41):
        for assistant in range(1, 41):
            for count in {1, min(student, assistant) // 2 or 1, min(student, assistant)}:
                pairs = layer_map(student, assistant, count)
                assert len(pairs) == count
                assert pairs[-1] == (student, assistant)
                assert pairs[0][0] >= 1 <= pairs[0][1]
                assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(pairs))
                # Each is half a layer off its depth at most.
                assert all(abs(s / student - a / assistant) <= 0.5 / student + 0.5 / assistant for s, a in pairs)


def test_a_deeper_student_uses_every_layer_of_the_assistant() -> None:
    """The published mapping steps by student layers // assistant layers, which fails for 36 and 28."""
    pairs = layer_map(36, 28)
    assert [a for _, a in pairs] == list(range(1, 29))
    assert pairs[:5] == ((1, 1), (3, 2), (4, 3), (5, 4), (6, 5))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((36, 28, 30), "30 pairs of layers were asked for; it must be between 1 and 28, as the student has 36"),
        ((36, 28, 0), "0 pairs of layers"),
        ((0, 28, None), "the student has 0 layers"),
        ((36, 0, None), "the assistant has 0 layers"),
    ],
)
def test_impossible_maps_are_refused(layers: tuple[int, int, int | None], message: str) -> None:
    with pytest.raises(InputError, match=message):
        layer_map(*layers)
