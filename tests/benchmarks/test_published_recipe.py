"""The published recipe's loss, written a second time token by token."""

import math

import pytest
import torch

from benchmarks.published_recipe import IGNORED, task_loss


def test_loss_of_a_task() -> None:
    torch.manual_seed(0)
    student, assistant = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    labels = torch.tensor([[IGNORED, 2, 0], [IGNORED, IGNORED, 3]])

    def probabilities(logits: torch.Tensor, temperature: float) -> list[float]:
        powers = [math.exp(float(value) / temperature) for value in logits]
        return [power / sum(powers) for power in powers]

    hard = [
        -math.log(probabilities(student[row, at - 1], 1.0)[token])
        for row, at, token in ((0, 1, 2), (0, 2, 0), (1, 2, 3))
    ]
    soft = []
    for row in range(2):
        for at in range(3):
            if labels[row, at] == 0:
                continue  # the one label that the published KL leaves out
            p, q = probabilities(assistant[row, at], 2.0), probabilities(student[row, at], 2.0)
            soft.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    expected = 0.7 * sum(hard) / 3 + 0.3 * sum(soft) / 5
    assert float(task_loss(student, assistant, labels)) == pytest.approx(expected, rel=1e-6)
