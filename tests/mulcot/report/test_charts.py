"""Charts: every coordinate is worked out from the size of the plane, 46 to 442 by 10 to 210 of 460 by 250."""

import math

import pytest

from mulcot.report.charts import Series, line_chart, reliability_chart, ticks


def test_a_curve_lies_where_its_values_say():
    chart = line_chart("loss", [Series("ce", [(0, 0), (5, 10), (10, 5)])], "step", "nats")
    assert (chart.width, chart.height) == (460, 250)
    assert chart.plane == (46, 10, 442, 210)
    assert chart.lines[0].path == "M46 210 L244 10 L442 110"
    assert [(tick.at, tick.text) for tick in chart.x_ticks] == [
        (46, "0"),
        (125.2, "2"),
        (204.4, "4"),
        (283.6, "6"),
        (362.8, "8"),
        (442, "10"),
    ]
    assert [(tick.at, tick.text) for tick in chart.y_ticks] == [
        (210, "0"),
        (170, "2"),
        (130, "4"),
        (90, "6"),
        (50, "8"),
        (10, "10"),
    ]
    assert chart.description == "loss: ce from 0 to 5."


def test_what_counts_has_whole_numbers_as_marks():
    chart = line_chart("accuracy", [Series("a", [(1, 0.5), (2, 0.6), (3, 0.7)])], "epoch", "accuracy", dots=True)
    assert [tick.text for tick in chart.x_ticks] == ["1", "2", "3"]
    assert [x for x, _ in chart.lines[0].dots] == [46, 244, 442]


def test_a_single_point_and_a_level_curve_have_a_place():
    for points in ([(3, 0.5)], [(0, 0.5), (9, 0.5)]):
        chart = line_chart("t", [Series("a", points)], "x", "y")
        for x, y in [tuple(map(float, part.split())) for part in chart.lines[0].path[1:].split(" L")]:
            assert 46 <= x <= 442
            assert 10 < y < 210


def test_what_is_not_finite_is_left_out():
    chart = line_chart("t", [Series("a", [(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)])], "x", "y")
    assert chart.lines[0].path.count("L") == 1
    with pytest.raises(ValueError, match="has no point"):
        line_chart("t", [Series("a", [(0, math.nan)])], "x", "y")


def test_seeds_of_one_name_share_a_line_of_the_legend():
    series = [Series("ce", [(0, 1), (1, 2)], 0), Series("ce", [(0, 2), (1, 1)], 0), Series("kl", [(0, 1), (1, 1)], 1)]
    chart = line_chart("t", series, "x", "y")
    assert chart.legend == [("ce", 0), ("kl", 1)]
    assert len(chart.lines) == 3


def test_the_reliability_diagram_of_known_bins():
    # The plane is 46 to 302 by 10 to 280: confidence 0.5 is in its middle, 174, accuracy 0.25 at 280 - 0.25 * 270.
    chart = reliability_chart("calibration", [Series("seed 0", [(0.5, 0.25), (1.0, 1.0)])])
    assert chart.plane == (46, 10, 302, 280)
    assert chart.lines[0].path == "M174 212.5 L302 10"
    assert list(chart.lines[0].dots) == [(174, 212.5), (302, 10)]
    assert chart.diagonal == "M46 280 L302 10"
    assert chart.description == "calibration. seed 0: 0.50 sure, 0.25 right, 1.00 sure, 1.00 right."


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.61, 0.89, [0.6, 0.7, 0.8, 0.9]),
        (0.0, 14.7, [0.0, 5.0, 10.0, 15.0]),
        (-3.0, 4.0, [-4.0, -2.0, 0.0, 2.0, 4.0]),
        (120.0, 990.0, [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]),
    ],
)
def test_marks_are_round_and_hold_the_values_between_them(low, high, expected):
    assert ticks(low, high, 5) == pytest.approx(expected)
