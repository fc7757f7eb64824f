"""How later configuration files and flags change what earlier ones said."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final

from jsonargparse import ActionConfigFile

from mulcot.config_files import find_config, read_yaml
from mulcot.types import InputError

_LOSS_FLAG: Final = re.compile(r"--losses\.[^.]+(?:\.class_path)?")
"""A flag that names a loss's class, or the whole loss."""
_SCHEDULE_FLAG: Final = re.compile(
    r"--(?:losses\.[^.]+\.init_args\.(?:weight|temperature)|model\.init_args\.lambda_soft)"
)
"""A flag that may give a schedule."""
_LAMBDA: Final = ("model", "init_args", "lambda_soft")

_NESTED_FLAG: Final = re.compile(r"--(\w+(?:\.init_args\.\w+){2,})(=null)?")
"""A flag for an argument of a class that is itself an argument of a class."""


class NamedConfigFile(ActionConfigFile):
    """`--config`: finds bare names among the installed configs, and overlays `losses` entry by entry.

    A later file replaces a named loss whole, `null` removes it, the other losses stay. A source of posts is replaced
    whole too, and a schedule of λ: the parser would keep what the earlier one said beside it.
    """

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Applies one config file on top of what was parsed before it."""
        before = dict(cfg.get("losses") or {})
        path = find_config(str(values))
        given = read_yaml(path)
        if _nested(given, "data", "init_args", "posts", "class_path") and cfg.get("data.init_args.posts") is not None:
            cfg["data.init_args.posts"] = None
        if isinstance(_nested(given, *_LAMBDA), dict) and cfg.get(".".join(_LAMBDA)) is not None:
            cfg[".".join(_LAMBDA)] = 0.0
        losses = given.get("losses")
        losses = losses if isinstance(losses, dict) else {}  # of another form: the parser says what it must be
        for name, loss in losses.items():
            if isinstance(loss, dict) and "class_path" not in loss:
                raise InputError(
                    f"{path}: losses.{name} has no class_path: a later file replaces a loss whole; to change one "
                    f"parameter, give --losses.{name}.init_args.PARAMETER=VALUE"
                )
        if cfg.get("losses"):
            cfg["losses"] = {name: None if name in losses else loss for name, loss in before.items()}
        super().__call__(parser, cfg, str(path), option_string)
        if "losses" in cfg:
            cfg["losses"] = {**before, **(cfg.get("losses") or {})}


def with_values_replaced(args: Sequence[str]) -> list[str]:
    """The arguments, with a loss removed before a flag names its class, and a schedule before a flag gives another.

    The parser would mix what a flag gives with what an earlier file or flag gave for the same.
    """
    given: list[str] = []
    for arg, following in zip(args, [*args[1:], ""], strict=True):
        name, _, value = arg.partition("=")
        if _LOSS_FLAG.fullmatch(name) and value != "null":
            given.append(f"--losses.{name.split('.')[1]}=null")
        elif _SCHEDULE_FLAG.fullmatch(name) and (value or following).lstrip().startswith("{"):
            given.append(f"{name}=1")
        given.append(arg)
    return given


def with_nulls_kept(args: Sequence[str]) -> list[str]:
    """The arguments, with `--model.init_args.teacher.init_args.seed null` written as a value of `--model`.

    jsonargparse hands such a flag to the inner class's parser as text, in which null has become the word None.
    """
    given: list[str] = []
    for arg in args:
        before = _NESTED_FLAG.fullmatch(given[-1]) if given and arg == "null" else None
        flag = before or _NESTED_FLAG.fullmatch(arg)
        if flag is None or not (before or flag[2]):
            given.append(arg)
            continue
        if before:
            given.pop()
        name, *keys = flag[1].split(".")
        value: Any = None
        for key in reversed(keys):
            value = {key: value}
        given.append(f"--{name}={json.dumps(value)}")
    return given


def _nested(values: Any, *keys: str) -> Any:
    """The value below these keys, None where there is none."""
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values
