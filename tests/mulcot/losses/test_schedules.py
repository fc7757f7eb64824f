"""Schedules: values by hand, closed forms, ranges, and how they are written in a configuration."""

import math
import random
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ActionConfigFile, ArgumentParser

from mulcot.losses import Schedule, check_range, is_constant, value_of
from mulcot.losses.schedules import Shape
from mulcot.types import InputError

LINEAR = Schedule(shape="linear", start=4.0, end=1.0)


class Term:
    """What a loss term looks like to the parser."""

    def __init__(self, temperature: float | Schedule = 2.0, weight: float | Schedule = 1.0) -> None:
        check_range(temperature, "temperature", 0.0, low_open=True)
        self.temperature = temperature
        self.weight = weight


class OtherTerm(Term):
    pass


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (LINEAR, [4.0, 3.25, 2.5, 1.75, 1.0]),
        (Schedule(shape="linear", start=4.0, end=1.0, share=0.5), [4.0, 2.5, 1.0, 1.0, 1.0]),
        (Schedule(shape="cosine", start=4.0, end=1.0), [4.0, 1 + 1.5 * (1 + math.sqrt(0.5)), 2.5, None, 1.0]),
        (Schedule(shape="warmup", end=0.8, share=0.5), [0.0, 0.4, 0.8, 0.8, 0.8]),
        (Schedule(shape="warmup", start=0.4, end=0.8, share=1.0), [0.4, 0.5, 0.6, 0.7, 0.8]),
        (Schedule(shape="constant", end=3.0), [3.0, 3.0, 3.0, 3.0, 3.0]),
    ],
    ids=str,
)
def test_values_by_hand(schedule: Schedule, values: list[float | None]) -> None:
    for progress, value in zip([0.0, 0.25, 0.5, 0.75, 1.0], values, strict=True):
        if value is not None:
            assert schedule.value(progress) == pytest.approx(value, abs=1e-12)


def test_cosine_has_its_closed_form() -> None:
    schedule = Schedule(shape="cosine", start=4.0, end=1.0, share=0.8)
    for step in range(101):
        way = min(1.0, step / 80)
        assert schedule.value(step / 100) == pytest.approx(2.5 + 1.5 * math.cos(math.pi * way), abs=1e-12)


def test_warmup_takes_a_tenth_of_the_run_unless_told_otherwise() -> None:
    schedule = Schedule(shape="warmup", end=1.0)
    assert [schedule.value(p) for p in (0.0, 0.05, 0.1, 0.5, 1.0)] == pytest.approx([0.0, 0.5, 1.0, 1.0, 1.0])


@pytest.mark.parametrize("shape", ["linear", "cosine", "warmup"])
def test_every_shape_starts_and_ends_exactly_and_never_turns_back(shape: Shape) -> None:
    draw = random.Random(0)
    for _ in range(50):
        start, end, share = draw.uniform(-3, 3), draw.uniform(-3, 3), draw.uniform(0.01, 1)
        schedule = Schedule(shape=shape, start=start, end=end, share=share)
        values = [schedule.value(step / 40) for step in range(41)]
        assert (values[0], values[-1]) == (pytest.approx(start, abs=1e-12), end)
        assert all(min(start, end) - 1e-12 <= value <= max(start, end) + 1e-12 for value in values)
        assert sorted(values, reverse=end < start) == pytest.approx(values, abs=1e-12)
        assert (schedule.value(-1e-9), schedule.value(1 + 1e-9)) == (pytest.approx(start, abs=1e-12), end)


def test_a_number_is_itself() -> None:
    assert [value_of(2.5, progress) for progress in (0.0, 0.3, 1.0)] == [2.5, 2.5, 2.5]
    assert value_of(LINEAR, 0.5) == 2.5


def test_what_is_constant() -> None:
    assert is_constant(2.0)
    assert is_constant(Schedule(shape="constant", end=2.0))
    assert is_constant(Schedule(shape="linear", start=2.0, end=2.0))
    assert is_constant(Schedule(shape="warmup", end=0.0))
    assert not is_constant(LINEAR)
    assert not is_constant(Schedule(shape="warmup", end=2.0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shape": "step", "end": 1.0}, "{end: 1.0, shape: step}: there is no shape 'step'; .* linear, cosine, warmup"),
        ({"shape": "linear", "end": 1.0}, "{end: 1.0, shape: linear}: start is missing"),
        ({"shape": "cosine", "end": 1.0}, "start is missing"),
        ({"shape": "constant", "start": 2.0, "end": 2.0}, "a constant has no start;"),
        ({"shape": "constant", "share": 0.5, "end": 2.0}, "a constant has no share;"),
        ({"shape": "warmup", "share": 0.0, "end": 1.0}, "share: 0.0 is not possible; it must be above 0 and at most 1"),
        ({"shape": "linear", "share": 1.5, "start": 0.0, "end": 1.0}, "share: 1.5 is not possible"),
        ({"shape": "linear", "start": math.nan, "end": 1.0}, "start: nan is not possible; it must be a finite number"),
        ({"shape": "constant", "end": math.inf}, "end: inf is not possible"),
    ],
)
def test_impossible_schedules_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Schedule(**fields)


@pytest.mark.parametrize("given", [1e-6, 2.0, LINEAR, Schedule(shape="warmup", start=0.5, end=2.0)])
def test_possible_temperatures_pass(given: float | Schedule) -> None:
    check_range(given, "temperature", 0.0, low_open=True)


@pytest.mark.parametrize(
    ("given", "limits", "message"),
    [
        (0.0, {"low": 0.0, "low_open": True}, "^x: 0.0 is not possible; it must be a number above 0$"),
        (math.nan, {"low": 0.0, "low_open": True}, "^x: nan is not"),
        (math.inf, {"low": 0.0}, "^x: inf is not possible; it must be 0 or more$"),
        (-1, {"low": 0.0}, "^x: -1 is not possible; it must be 0 or more$"),
        (1.5, {"low": 0.0, "high": 1.0}, "^x: 1.5 is not possible; it must be between 0 and 1$"),
        (Schedule(shape="warmup", end=2.0), {"low": 0.0, "low_open": True}, "^x.start: 0.0 is not possible"),
        (Schedule(shape="cosine", start=2.0, end=-0.1), {"low": 0.0}, "^x.end: -0.1 is not possible"),
        (Schedule(shape="constant", end=2.0), {"low": 0.0, "high": 1.0}, "^x.end: 2.0 is not possible"),
    ],
)
def test_what_is_outside_its_range_is_refused_by_name(
    given: float | Schedule, limits: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_range(given, "x", **limits)


def parsed(*args: str) -> Term:
    parser = ArgumentParser(parser_mode="omegaconf+", exit_on_error=False)  # as mulcot.lightning_cli has it
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_argument("--losses", type=dict[str, Term | None], default={})
    config = parser.parse_args(args)
    # The configuration that a stage writes down must read back as the same.
    again = parser.parse_string(parser.dump(config, skip_none=False))
    terms = [parser.instantiate_classes(one).losses["kl"] for one in (config, again)]
    assert vars(terms[0]) == vars(terms[1])
    return terms[0]


class TestInAConfiguration:
    @pytest.fixture
    def write(self, tmp_path: Path) -> Any:
        def write(name: str, temperature: str) -> str:
            init = f"{{temperature: {temperature}}}"
            text = f"losses: {{kl: {{class_path: {__name__}.OtherTerm, init_args: {init}}}}}"
            (tmp_path / name).write_text(text)
            return f"--config={tmp_path / name}"

        return write

    def test_a_number_or_a_schedule(self, write: Any) -> None:
        assert parsed(write("a.yaml", "3")).temperature == 3.0
        assert parsed(write("b.yaml", "{shape: linear, start: 4.0, end: 1.0}")).temperature == LINEAR
        warmup = parsed(write("c.yaml", "{shape: warmup, end: 2, share: 0.5, start: 1}")).temperature
        assert warmup == Schedule(shape="warmup", start=1.0, end=2.0, share=0.5)
        assert isinstance(warmup.end, float)

    def test_the_later_file_wins(self, write: Any) -> None:
        number, schedule = write("number.yaml", "3"), write("schedule.yaml", "{shape: linear, start: 4.0, end: 1.0}")
        assert parsed(number, schedule).temperature == LINEAR
        assert parsed(schedule, number).temperature == 3.0

    def test_flags_change_the_whole_or_one_field(self, write: Any) -> None:
        number, schedule = write("number.yaml", "3"), write("schedule.yaml", "{shape: linear, start: 4.0, end: 1.0}")
        flag = "--losses.kl.init_args.temperature"
        assert parsed(schedule, f"{flag}=1.5").temperature == 1.5
        assert parsed(schedule, f"{flag}.end=2").temperature == Schedule(shape="linear", start=4.0, end=2.0)
        assert parsed(number, f"{flag}={{shape: linear, start: 4, end: 1}}").temperature == LINEAR
