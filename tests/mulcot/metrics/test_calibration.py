"""The expected calibration error by hand and against torchmetrics."""

import random

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from mulcot.metrics.functional import calibration


def test_by_hand():
    # (0.4, 0.4667]: 2 posts at 0.44 on average, both right. (0.9333, 1]: 3 posts at 0.97 on average, 1 right.
    found = calibration([0.42, 0.46, 0.95, 0.96, 1.0], [True, True, True, False, False])
    assert found.ece == pytest.approx(2 / 5 * (1 - 0.44) + 3 / 5 * (0.97 - 1 / 3))
    assert [tuple(bin_) for bin_ in found.bins] == [
        pytest.approx((6 / 15, 7 / 15, 0.44, 1.0, 2)),
        pytest.approx((14 / 15, 1.0, 0.97, 1 / 3, 3)),
    ]


def test_an_edge_belongs_to_the_bin_below_it_and_zero_to_the_first():
    found = calibration([0.0, 0.5, 0.5000001], [False, True, True], bins=2)
    assert [(bin_.lower, bin_.upper, bin_.posts) for bin_ in found.bins] == [(0.0, 0.5, 2), (0.5, 1.0, 1)]


def test_confidence_that_equals_accuracy_is_no_error():
    assert calibration([0.75] * 4, [True, True, True, False]).ece == pytest.approx(0.0)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_equals_torchmetrics(bins):
    rng = random.Random(bins)
    table = torch.softmax(torch.tensor([[rng.gauss(0, 2) for _ in range(3)] for _ in range(300)]).double(), dim=1)
    gold = torch.tensor([rng.randrange(3) for _ in range(300)])
    expected = multiclass_calibration_error(table, gold, num_classes=3, n_bins=bins, norm="l1").item()
    right = (table.argmax(1) == gold).tolist()
    found = calibration(table.max(1).values.tolist(), right, bins)
    assert found.ece == pytest.approx(expected, abs=1e-6)
    assert sum(bin_.posts for bin_ in found.bins) == 300
    assert sum(bin_.posts * bin_.accuracy for bin_ in found.bins) == pytest.approx(sum(right))


def test_what_is_no_probability_is_refused():
    for wrong in (1.2, -0.1, float("nan")):
        with pytest.raises(ValueError, match="not between 0 and 1"):
            calibration([wrong], [True])
    with pytest.raises(ValueError, match="0 confidences for 0 posts"):
        calibration([], [])
    with pytest.raises(ValueError, match="1 confidences for 2 posts"):
        calibration([0.5], [True, False])
