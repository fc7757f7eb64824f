"""Where an endpoint is and with which key: checked before anything is sent, and the key shown to nobody."""

from __future__ import annotations

import base64
import ipaddress
import os
from typing import Final
from urllib.parse import quote, quote_plus, urlsplit

from mulcot.secrecy import NO_MERE_ADDRESS, NO_VARIABLE, is_variable
from mulcot.types import InputError

_SHORTEST_SECRET: Final = 4
_ROUTES: Final = ("/chat/completions", "/completions", "/responses", "/models", "/embeddings")


class ApiKey:
    """A key that does not show itself by accident.

    Args:
        value: The key; empty where the endpoint takes none.
    """

    __slots__ = ("_forms", "_value")

    def __init__(self, value: str) -> None:
        self._value = value
        encoded = base64.b64encode(value.encode()).decode()
        forms = {value, quote(value, safe=""), quote_plus(value), encoded, encoded.rstrip("=")}
        # A shorter one is a placeholder, which other words contain.
        self._forms = sorted((form for form in forms if len(form) >= _SHORTEST_SECRET), key=len, reverse=True)

    def reveal(self) -> str:
        """The key itself, for the header that carries it."""
        return self._value

    def redact(self, text: str) -> str:
        """The text without the key, however it is written in it."""
        for form in self._forms:
            text = text.replace(form, "[API key]")
        return text

    def __repr__(self) -> str:
        return "ApiKey(...)"

    def __reduce__(self) -> str:
        raise TypeError("an API key is not written anywhere")


def read_key(variable: str | None) -> ApiKey:
    """The key that an environment variable holds; an empty one for None.

    Raises:
        InputError: That is no variable's name, or the variable holds no usable key. Never shows a value.
    """
    if variable is None:
        return ApiKey("")
    if not is_variable(variable):
        raise InputError(f"api_key_env: {NO_VARIABLE}")
    value = os.environ.get(variable)
    if not value:
        problem = "is not set" if value is None else "is empty"
        raise InputError(
            f"api_key_env: the environment variable {variable} {problem}: put the endpoint's API key there, or set "
            "api_key_env to null for an endpoint that takes no key"
        )
    if not value.isascii() or not value.isprintable() or " " in value:
        raise InputError(
            f"api_key_env: the environment variable {variable} holds a blank, a line end or a character that no key "
            "has: set it to the key alone"
        )
    return ApiKey(value)


def check_base_url(base_url: str) -> str:
    """The base URL without a slash at its end.

    Raises:
        InputError: It is no address, not encrypted, or more than a base URL. Shows no user name, password or query.
    """
    if not isinstance(base_url, str) or base_url != base_url.strip() or not base_url.isprintable() or " " in base_url:
        raise InputError("base_url: must be an address without blanks, like https://api.openai.com/v1")
    try:
        parts = urlsplit(base_url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise InputError("base_url: is no address (host or port): must be like https://api.openai.com/v1") from None
    if "://" not in base_url or parts.scheme.lower() not in ("http", "https") or not host:
        raise InputError(
            "base_url: must begin with https:// and name a host, like https://api.openai.com/v1 "
            "(http:// for a server on this machine)"
        )
    if parts.username is not None or parts.query or parts.fragment:
        raise InputError(f"base_url: {NO_MERE_ADDRESS}")
    place = f"{parts.scheme.lower()}://{f'[{host}]' if ':' in host else host}{'' if port is None else f':{port}'}"
    path = parts.path.rstrip("/")
    route = next((route for route in _ROUTES if path.lower().endswith(route)), None)
    if route is not None:
        right = place + path[: -len(route)]
        raise InputError(f"base_url: {place}{path} ends in a route, which is added here: give {right}")
    if parts.scheme.lower() == "http" and not is_loopback(host):
        raise InputError(
            f"base_url: {place}{path} is not encrypted, so posts and key could be read on the way: give an address "
            "with https:// (http:// is for a server on this machine alone)"
        )
    return place + path


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its name or address alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
