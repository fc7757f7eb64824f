"""A number, or a schedule of it over the run: temperatures, λ and weights.

```yaml
temperature: 2.0                                          # a number
temperature: {shape: linear, start: 4.0, end: 1.0}        # a schedule
weight: {shape: warmup, end: 1.0, share: 0.1}
```

Whoever trains knows how far the run is; everything here is a pure function of that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Final, Literal

from mulcot.types import InputError

Shape = Literal["constant", "linear", "cosine", "warmup"]
_SHARES: Final[dict[Shape, float]] = {"constant": 1.0, "linear": 1.0, "cosine": 1.0, "warmup": 0.1}
"""Over how much of the run a shape moves where nothing else is said."""


@dataclass(frozen=True)
class Schedule:
    """A number that changes from `start` to `end` with the optimizer steps; between them it never turns back.

    With x, the share of the way that is done: `linear` and `warmup` are start + x · (end - start), `cosine` is
    end + (start - end) · (1 + cos πx) / 2 (Loshchilov & Hutter, arXiv 1608.03983, equation 5). `warmup` is `linear`
    with defaults of its own: it rises from 0 within the first tenth of the run.

    Raises:
        InputError: a number is missing, superfluous or not possible.
    """

    end: float
    """What it comes to; of the shape constant, what it is all the time."""
    shape: Shape = "linear"
    """How it gets there."""
    start: float | None = None
    """What it begins with; the shape warmup begins with 0 unless told otherwise, constant has none."""
    share: float | None = None
    """The share of all optimizer steps, above 0 and at most 1, within which it gets there and after which it stays:
    1 unless told otherwise, of the shape warmup 0.1."""

    def __post_init__(self) -> None:
        if self.shape not in _SHARES:
            raise InputError(f"{self}: there is no shape {self.shape!r}; a schedule is one of {', '.join(_SHARES)}")
        superfluous = [name for name in ("start", "share") if getattr(self, name) is not None]
        if self.shape == "constant" and superfluous:
            raise InputError(
                f"{self}: a constant has no {' and no '.join(superfluous)}; leave it out, or give a number"
            )
        if self.shape in ("linear", "cosine") and self.start is None:
            raise InputError(f"{self}: start is missing; the shape {self.shape} goes from start to end")
        for name, number in self.bounds.items():
            _check_number(number, f"{self}: {name}", -math.inf)
        if self.share is not None:
            _check_number(self.share, f"{self}: share", 0.0, 1.0, low_open=True)

    def __str__(self) -> str:
        """As it is written in a configuration, so that an error shows which of several is meant."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return f"{{{', '.join(f'{name}: {value}' for name, value in given.items() if value is not None)}}}"

    @property
    def bounds(self) -> dict[str, float]:
        """Its first and last value, by the name of the field that says it; all others lie between them."""
        return {"end": self.end} if self.shape == "constant" else {"start": self.start or 0.0, "end": self.end}

    def value(self, progress: float) -> float:
        """The number at a point of the run.

        Args:
            progress: how much of the run is done: 0 at the first optimizer step, 1 at the last one. What is beyond
                counts as the end that it is beyond.
        """
        if self.shape == "constant":
            return self.end
        start, way = self.start or 0.0, min(1.0, max(0.0, progress) / (self.share or _SHARES[self.shape]))
        if way == 1.0:
            return self.end  # start + (end - start) is not always end
        if self.shape == "cosine":
            return self.end + (start - self.end) * (1 + math.cos(math.pi * way)) / 2
        return start + way * (self.end - start)


def value_of(given: float | Schedule, progress: float) -> float:
    """The number at a point of the run, of a plain number or of a schedule; see `Schedule.value`."""
    return given.value(progress) if isinstance(given, Schedule) else given


def is_constant(given: float | Schedule) -> bool:
    """Whether it is the same number all the time, as soft labels from a cache need their temperature to be."""
    return not isinstance(given, Schedule) or len(set(given.bounds.values())) == 1


def check_range(
    given: float | Schedule, name: str, low: float, high: float = math.inf, *, low_open: bool = False
) -> None:
    """Refuses a number, or a schedule that would ever come to one, outside [low, high], and infinity and NaN.

    Args:
        given: the number or schedule.
        name: what the user calls it, for the error; a schedule's fields are named `name.start` and `name.end`.
        low: the least that is possible.
        high: the most that is possible.
        low_open: `low` itself is not possible, as of a temperature.

    Raises:
        InputError: it is outside.
    """
    # No shape turns back on its way, so that the two ends stand for the whole schedule.
    ends = {f"{name}.{end}": at for end, at in given.bounds.items()} if isinstance(given, Schedule) else {name: given}
    for place, number in ends.items():
        _check_number(number, place, low, high, low_open=low_open)


def _check_number(number: float, name: str, low: float, high: float = math.inf, *, low_open: bool = False) -> None:
    if math.isfinite(number) and low <= number <= high and not (low_open and number == low):
        return
    if low == -math.inf:
        wanted = "a finite number"
    elif high == math.inf:
        wanted = f"a number above {low:g}" if low_open else f"{low:g} or more"
    else:
        wanted = f"above {low:g} and at most {high:g}" if low_open else f"between {low:g} and {high:g}"
    raise InputError(f"{name}: {number} is not possible; it must be {wanted}")
