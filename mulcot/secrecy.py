"""Secrets in settings, which are written to files: found, refused and never repeated."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from mulcot.types import InputError

_VARIABLES: Final = re.compile(r".*(API_?KEY|ACCESS_KEY|TOKEN|SECRET|PASSWORD)", re.IGNORECASE)
"""How the names of environment variables end that hold secrets."""
_SHORTEST: Final = 8
"""Characters of a secret: a shorter value may well stand in a setting by chance."""
_VARIABLE: Final = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
NO_VARIABLE: Final = (
    "must be the name of an environment variable in capital letters, like OPENAI_API_KEY; what stands there is none "
    "and is not repeated here: if it is the key itself, take it out of the configuration, put it into a variable, "
    "and have it replaced where it may have been seen"
)
NO_MERE_ADDRESS: Final = (
    "holds a user name, a query or a fragment, which may be a secret: give the address alone; the key belongs into the "
    "environment variable that api_key_env names"
)
_USER: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s]*@", re.IGNORECASE)
_ABOUT: Final = ("api_key", "base_url")
"""What a setting's name holds whose value may be a secret."""


def check_settings(settings: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> None:
    """Refuses settings that hold a secret.

    Args:
        settings: by name; the values may hold further ones.
        environment: that of the process, whose keys and tokens are known.

    Raises:
        InputError: one of them does; the message names it and shows no value.
    """
    secrets = _secrets(environment)
    for name, value in _leaves(settings):
        last = name.rpartition(".")[2]
        if last == "api_key_env" and value is not None and not is_variable(value):
            raise InputError(f"{name}: {NO_VARIABLE}")
        text = str(value)
        if _USER.search(text) or (last == "base_url" and ("?" in text or "#" in text)):
            raise InputError(f"{name}: {NO_MERE_ADDRESS}")
        if held := next((variable for variable, secret in secrets.items() if secret in text), None):
            raise InputError(
                f"{name}: holds the value of the environment variable {held}, and settings are written to files: take "
                "it out; the name of the variable belongs into api_key_env"
            )


def is_variable(value: object) -> bool:
    """Whether it may be the name of an environment variable that holds a key.

    Args:
        value: what stands where the name belongs.
    """
    return isinstance(value, str) and _VARIABLE.fullmatch(value) is not None


def shown(name: str, value: str, environment: Mapping[str, str] = os.environ) -> str:
    """A wrong value as a message may repeat it.

    Args:
        name: of the setting.
        value: as it was given.
        environment: that of the process, whose keys and tokens are known.
    """
    about = any(word in name or word in value for word in _ABOUT)
    held = any(secret in value for secret in _secrets(environment).values())
    return "not repeated here, for it may be a secret" if about or held else repr(value)


def _secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """The values of variables whose names are those of keys and tokens."""
    return {
        name: value for name, value in environment.items() if len(value) >= _SHORTEST and _VARIABLES.fullmatch(name)
    }


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _leaves(each, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple) and not name.endswith("api_key_env"):
        for each in value:
            yield from _leaves(each, name)
    else:
        yield name, value
