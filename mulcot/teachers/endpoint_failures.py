"""What an endpoint's refusals mean: status, Retry-After and the message in the body."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final

from mulcot.teachers.transport import GO_ON, SendingFailedError, Verdict

_AGAIN: Final = (408, 409, 425, 429)
_PAYMENT: Final = (402,)
_WRONG: Final = {
    401: "it does not take the API key: correct the environment variable that api_key_env names",
    403: "this is not allowed with this API key: use another key, model or endpoint",
    404: "there is no such address or model: correct base_url or model",
    405: "there is no such address: correct base_url",
}
_QUOTA_CODES: Final = ("insufficient_quota", "billing_hard_limit_reached", "insufficient_balance")
_MAX_MESSAGE: Final = 300


def failure_of(
    status: int, headers: Mapping[str, str], body: bytes, redact: Callable[[str], str]
) -> SendingFailedError:
    """What a reply means that is not 200.

    Args:
        status: The HTTP status.
        headers: The headers; names are looked up in lower case.
        body: What was read of the body.
        redact: Takes secrets out of a text; a server may repeat the key that it was given.
    """
    error = _error(body)
    if 300 <= status < 400:
        place = one_line(redact(headers.get("location", "another address")))
        return SendingFailedError(
            f"{status}: it redirects to {place}, and redirects are not followed: correct base_url",
            "wrong",
        )
    message = f"{status}: {one_line(redact(_said(error, body)))}"
    if status in _PAYMENT or (status in (403, 429) and _is_quota(error)):
        return SendingFailedError(f"{message}; the quota is exhausted: raise it or wait, {GO_ON}", "paused")
    if error.get("code") == "model_not_found":
        return SendingFailedError(f"{message}; it does not know the model: correct model", "wrong")
    if status in _WRONG:
        return SendingFailedError(f"{message}; {_WRONG[status]}", "wrong")
    verdict: Verdict = "never" if 400 <= status < 500 and status not in _AGAIN else "again"
    return SendingFailedError(message, verdict, retry_after(headers, time.time()), is_rate=status == 429)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """The seconds that a reply asks to wait, None where it does not say or nobody can tell what it means.

    Args:
        headers: The headers: `retry-after-ms`, or `retry-after` in seconds or as an HTTP date.
        now: The time of the epoch, for a date in a reply that has no date of its own.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is not None or value is None:
        return seconds
    until = _date(value)
    if until is None:
        return None
    # Compared with the server's own clock where it shows it: the two clocks may differ by more than the wait.
    own = _date(headers.get("date", ""))
    return max(0.0, until - now if own is None else until - own)


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _date(value: str) -> float | None:
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


def _error(body: bytes) -> dict[str, Any]:
    """The error object of a body, in any of the forms that servers give it; empty where there is none."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    error = content.get("error", content) if isinstance(content, dict) else content
    if isinstance(error, dict):
        return error
    return {"message": error} if isinstance(error, str) else {}


def _is_quota(error: Mapping[str, Any]) -> bool:
    return any(error.get(name) in _QUOTA_CODES for name in ("code", "type"))


def _said(error: Mapping[str, Any], body: bytes) -> str:
    """What the server says."""
    return next(
        (error[name] for name in ("message", "detail") if isinstance(error.get(name), str)),
        body.decode("utf-8", "replace"),
    )


def one_line(text: str) -> str:
    """The beginning of a foreign text, on one line, without control characters; says when there is none."""
    words = " ".join("".join(sign if sign.isprintable() else " " for sign in text[: 8 * _MAX_MESSAGE]).split())
    return (words[:_MAX_MESSAGE] + "…" if len(words) > _MAX_MESSAGE else words) or "no message"
