"""Charts as the coordinates that a template draws: lines, ticks and their labels, in the units of an SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

STYLES: Final = 6
"""Line styles that the page's stylesheet tells apart, by colour and by dashes."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 18, 10, 40
"""The margins of a chart; what is between them is the plane."""


@dataclass(frozen=True, slots=True)
class Series:
    """One curve."""

    name: str
    """What the legend calls it; curves of one name share a line there."""
    points: Sequence[tuple[float, float]]
    """x and y, in the order in which they are joined."""
    style: int = 0
    """Which of the line styles."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis."""

    at: float
    """Where, in the chart's units."""
    text: str
    """Its label."""


@dataclass(frozen=True, slots=True)
class Line:
    """A curve in the chart's units."""

    name: str
    """The series' name."""
    style: int
    """The series' style."""
    path: str
    """The `d` of an SVG path."""
    dots: Sequence[tuple[float, float]]
    """The points, where the chart marks them."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart, ready to be drawn."""

    title: str
    """What it shows."""
    description: str
    """The same in words, for whoever does not see it."""
    x_label: str
    """What x is."""
    y_label: str
    """What y is."""
    width: int
    """In its own units."""
    height: int
    """Likewise."""
    plane: tuple[float, float, float, float]
    """Left, top, right and bottom of the plane."""
    x_ticks: Sequence[Tick]
    """Along the bottom."""
    y_ticks: Sequence[Tick]
    """Along the left."""
    lines: Sequence[Line]
    """The curves."""
    legend: Sequence[tuple[str, int]]
    """Names and styles, each name once."""
    diagonal: str = ""
    """The `d` of a path where y is x; empty for none."""


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    *,
    dots: bool = False,
) -> Chart:
    """Curves over a common x.

    Args:
        title: what the chart shows.
        series: the curves; at least one point in all. Points that are not finite are left out.
        x_label: what x is; it counts something, so its marks are whole numbers.
        y_label: what y is.
        y_range: the ends of the y axis; None takes round numbers around the values.
        dots: marks every point.

    Raises:
        ValueError: there is no point.
    """
    finite = [Series(s.name, [p for p in s.points if all(map(math.isfinite, p))], s.style) for s in series]
    points = [point for one in finite for point in one.points]
    if not points:
        raise ValueError(f"the chart {title!r} has no point")
    x_values = ticks(min(x for x, _ in points), max(x for x, _ in points), 5, whole=True)
    y_values = ticks(*(y_range or (min(y for _, y in points), max(y for _, y in points))), 5)
    x_ends = (min(x_values[0], *(x for x, _ in points)), max(x_values[-1], *(x for x, _ in points)))
    ends = [f"{one.name} from {one.points[0][1]:.3g} to {one.points[-1][1]:.3g}" for one in finite if one.points]
    return _chart(title, finite, (x_label, y_label), (460, 250), (x_ends, (y_values[0], y_values[-1])),
                  (x_values, y_values), f"{title}: {'; '.join(ends)}.", dots)  # fmt: skip


def reliability_chart(title: str, series: Sequence[Series]) -> Chart:
    """Accuracy over confidence, both from 0 to 1, beside the diagonal on which they agree.

    Args:
        title: what the chart shows.
        series: for each model mean confidence and accuracy of its bins.
    """
    values = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    told = [f"{s.name}: " + ", ".join(f"{x:.2f} sure, {y:.2f} right" for x, y in s.points) for s in series]
    return _chart(title, series, ("confidence", "accuracy"), (320, 320), ((0.0, 1.0), (0.0, 1.0)),
                  (values, values), f"{title}. {'; '.join(told)}.", True, diagonal=True)  # fmt: skip


def ticks(low: float, high: float, about: int, *, whole: bool = False) -> list[float]:
    """Round numbers, evenly spaced, of which the first is at most `low` and the last at least `high`.

    Args:
        low: the lowest value.
        high: the highest.
        about: how many steps there should be; half as many and twice as many may be.
        whole: whether they are to be whole numbers.
    """
    if high <= low:
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    step = float(math.ceil(step)) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _chart(
    title: str,
    series: Sequence[Series],
    labels: tuple[str, str],
    size: tuple[int, int],
    ends: tuple[tuple[float, float], tuple[float, float]],
    marks: tuple[Sequence[float], Sequence[float]],
    description: str,
    dots: bool,
    diagonal: bool = False,
) -> Chart:
    width, height = size
    (x_low, x_high), (y_low, y_high) = ends

    def x_at(x: float) -> float:
        return round(_LEFT + (x - x_low) / (x_high - x_low) * (width - _LEFT - _RIGHT), 2)

    def y_at(y: float) -> float:
        return round(height - _BOTTOM - (y - y_low) / (y_high - y_low) * (height - _TOP - _BOTTOM), 2)

    places = [[(x_at(x), y_at(y)) for x, y in one.points] for one in series]
    return Chart(
        title=title,
        description=description,
        x_label=labels[0],
        y_label=labels[1],
        width=width,
        height=height,
        plane=(_LEFT, _TOP, width - _RIGHT, height - _BOTTOM),
        x_ticks=[Tick(x_at(x), f"{x:g}") for x in marks[0] if x_low <= x <= x_high],
        y_ticks=[Tick(y_at(y), f"{y:g}") for y in marks[1]],
        lines=[
            Line(one.name, one.style % STYLES, _path(at), at if dots else ())
            for one, at in zip(series, places, strict=True)
            if at
        ],
        legend=list(dict.fromkeys((one.name, one.style % STYLES) for one in series if one.points)),
        diagonal=_path([(x_at(0.0), y_at(0.0)), (x_at(1.0), y_at(1.0))]) if diagonal else "",
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
