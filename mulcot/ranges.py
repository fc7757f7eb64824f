"""Numbers within a range, as types of constructors' arguments, and the check that a configuration keeps to them.

jsonargparse does not see such a type where annotations are postponed, so the command line checks what it is about to
construct, before anything is loaded.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Final, Literal, get_args, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from mulcot.types import InputError

LARGEST_SIDE: Final = 7_000
"""Pixels: with both sides so long a picture has as many as are decoded of one."""

Count = Annotated[int, Field(ge=1)]
"""1, 2, ..."""
Natural = Annotated[int, Field(ge=0)]
"""0, 1, ..."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What random generators take."""
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
"""Of a picture, in pixels."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A finite number above 0."""
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A finite number, 0 or above."""
Share = Annotated[float, Field(ge=0, le=1)]
"""0 to 1, both included."""
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
"""0 to 1, without 1."""

Labels = Annotated[Sequence[str], Field(min_length=2)]
"""A label set."""

_BATCHES: Final[Any] = Annotated[int, Field(ge=1, strict=True)] | Share | None
TRAINER: Final[dict[str, Any]] = {
    "trainer.accumulate_grad_batches": Count,
    "trainer.check_val_every_n_epoch": Count | None,
    "trainer.devices": Count | Literal[-1] | list[Natural] | str,
    "trainer.gradient_clip_val": NonNegative | None,
    "trainer.limit_predict_batches": _BATCHES,
    "trainer.limit_test_batches": _BATCHES,
    "trainer.limit_train_batches": _BATCHES,
    "trainer.limit_val_batches": _BATCHES,
    "trainer.log_every_n_steps": Natural | None,
    "trainer.max_epochs": Count | Literal[-1] | None,
    "trainer.max_steps": Count | Literal[-1],
    "trainer.num_nodes": Count,
    "trainer.num_sanity_val_steps": Natural | Literal[-1] | None,
    "trainer.overfit_batches": Annotated[int, Field(ge=0, strict=True)] | Share,
    "trainer.val_check_interval": Count | Positive | str | None,
}
"""What Lightning's Trainer does not check before it trains."""
_WORDS: Final = {
    "ge": "{} or more",
    "gt": "above {}",
    "le": "{} or less",
    "lt": "below {}",
    "min_length": "a list of {} or more",
}
_OF_ANOTHER_KIND: Final = (
    "none_required",
    "dataclass_type",
    "literal_error",
    "string_type",
    "list_type",
    "is_instance_of",
)


def check_ranges(kind: type, given: Mapping[str, Any]) -> None:
    """Refuses an argument that is not in the range of its type.

    Args:
        kind: the class that is to be constructed.
        given: its arguments, those that are dataclasses with what is in them.

    Raises:
        InputError: the message names argument, class and value, and says what would be right.
    """
    for name, hint in _ranged(kind).items():
        if name in given:
            check_number(name, hint, given[name], f" of {kind.__name__}")
    for value in given.values():
        if is_dataclass(value) and not isinstance(value, type):
            check_ranges(type(value), {field.name: getattr(value, field.name) for field in fields(value)})


def check_trainer(config: Any) -> None:
    """Refuses numbers that the trainer and the random generators could not work with.

    Args:
        config: the configuration of a verb; its keys may be whole paths.

    Raises:
        InputError: the message names key and value, and says what would be right.
    """
    for name, hint in {"seed_everything": Seed | bool, **TRAINER}.items():
        check_number(name, hint, config[name])


def check_number(name: str, hint: Any, value: Any, owner: str = "") -> None:
    """Refuses a value that is not in the range of a type.

    Args:
        name: opens the message.
        hint: the type.
        value: a number, or a container of numbers.
        owner: stands behind the name.

    Raises:
        InputError: it is not.
    """
    try:
        TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        fitting = [one for one in errors if one["type"] not in _OF_ANOTHER_KIND] or errors
        wrong = fitting[0]
        place = "".join(f"[{part}]" for part in wrong["loc"] if isinstance(part, int))
        limits = [_WORDS[key].format(_plain(limit)) for key, limit in wrong.get("ctx", {}).items() if key in _WORDS]
        wanted = " and ".join(limits) or wrong["msg"].removeprefix("Input should be ")
        raise InputError(f"{name}{place}{owner} is {wrong['input']!r}; it must be {wanted}") from error


def _plain(limit: float) -> float:
    return int(limit) if limit == int(limit) else limit


@cache
def _ranged(kind: type) -> dict[str, Any]:
    """The arguments of a class whose type has a range in it."""
    init = kind if is_dataclass(kind) else inspect.getattr_static(kind, "__init__")
    try:
        hints = get_type_hints(init, include_extras=True)
    except (NameError, TypeError):  # a foreign class, whose annotations are not to be had here
        return {}
    names = inspect.signature(kind).parameters
    return {name: hint for name, hint in hints.items() if name in names and _has_range(hint)}


def _has_range(hint: Any) -> bool:
    return hasattr(hint, "__metadata__") or any(_has_range(inner) for inner in get_args(hint))
