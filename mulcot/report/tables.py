"""Tables of the page as plain values: what a cell shows, the number behind it, and where that number stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

DASH: Final = "—"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell."""

    text: str
    """What is read."""
    detail: str = ""
    """A second line in smaller type, such as a standard deviation or an interval."""
    value: float | None = None
    """The number behind it, unrounded; None where it is no number."""
    source: str = ""
    """The file and the path in it that the number stands at; empty where the table names it."""
    share: float | None = None
    """How strongly it is shaded, in [0, 1]; None for no shade."""
    minor: bool = False
    """Whether its row is a part of the row above, such as one seed of a system."""


@dataclass(frozen=True, slots=True)
class PageTable:
    """One table. The first column holds the headings of the rows."""

    caption: str
    """What it shows."""
    columns: Sequence[str]
    """The headings of the columns."""
    rows: Sequence[Sequence[Cell]]
    """The cells, as many in each row as there are columns."""
    source: str = ""
    """Which file its numbers stand in."""
    numeric: bool = True
    """Whether all columns but the first are numbers, which stand on the right."""


def decimal(value: float, digits: int = 3, sign: bool = False) -> str:
    """A number with so many decimals, with a minus that is as wide as a plus; `sign` writes the plus too."""
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def number_cell(value: float | None, detail: str = "", source: str = "", digits: int = 3, sign: bool = False) -> Cell:
    """A number, or a dash where there is none."""
    if value is None:
        return Cell(DASH, detail)
    return Cell(decimal(value, digits, sign), detail, value, source)


def count_cell(value: int | None, source: str = "") -> Cell:
    """A count, or a dash where there is none."""
    return Cell(DASH) if value is None else Cell(f"{value:,}", value=value, source=source)


def spread_cell(score: Mapping[str, Any] | None, seeds: int = 1, source: str = "", sign: bool = False) -> Cell:
    """A mean with its standard deviation over seeds, and how many seeds had a number where it is not all."""
    if score is None:
        return Cell(DASH)
    lines = [] if score["sd"] is None else [f"± {score['sd']:.3f}"]
    if score["n"] != seeds:
        lines.append(f"n = {score['n']}")
    return number_cell(score["mean"], ", ".join(lines), source, sign=sign)


def interval(ends: Sequence[float] | None, sign: bool = False) -> str:
    """The ends of an interval in brackets; empty where there is none."""
    if ends is None:
        return ""
    return "[{}, {}]".format(*(decimal(end, sign=sign) for end in ends))


def p_value(value: float) -> str:
    """A p-value, with as many digits as tell something."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: float | None) -> str:
    """Seconds in words; None is a stage that did not come to its end."""
    if seconds is None:
        return "not finished"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
