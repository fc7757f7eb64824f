import pytest
import torch

from mulcot.callbacks import CrossEntropy, DistillationLoss, ForwardKL
from mulcot.losses import TopK
from mulcot.types import InputError

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.0]])
TEACHER = torch.tensor([[1.0, 1.0, 0.0], [3.0, 0.0, 0.0]])
TARGETS = torch.tensor([0, 2])


def test_hard_terms_are_the_negative_log_likelihood() -> None:
    expected = -LOGITS.double().softmax(-1).log()[torch.arange(2), TARGETS]
    torch.testing.assert_close(CrossEntropy().token_loss(LOGITS, TARGETS, None).double(), expected)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("scaled", [True, False])
def test_soft_terms_carry_t_squared_unless_told_otherwise(temperature: float, scaled: bool) -> None:
    term = ForwardKL(temperature=temperature, scale_by_temperature=scaled)
    view = TopK.from_logits(TEACHER, 3, temperature)
    p, q = (TEACHER.double() / temperature).softmax(-1), (LOGITS.double() / temperature).softmax(-1)
    expected = (p * (p.log() - q.log())).sum(-1) * (temperature**2 if scaled else 1)
    torch.testing.assert_close(term.token_loss(LOGITS, TARGETS, view).double(), expected, rtol=1e-5, atol=1e-6)


def test_names_tell_two_terms_of_one_class_apart() -> None:
    terms: list[DistillationLoss] = [ForwardKL(), ForwardKL()]
    terms[0].name, terms[1].name = "one", "two"
    assert terms[0].state_key != terms[1].state_key


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(InputError, match="above 0"):
        ForwardKL(temperature=temperature)


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(InputError, match="0 or more"):
        CrossEntropy(weight=-1)


def test_a_soft_term_without_soft_labels_says_what_to_do() -> None:
    term = ForwardKL()
    term.name = "kl"
    with pytest.raises(InputError, match=r"--losses\.kl=null"):
        term.token_loss(LOGITS, TARGETS, None)
