"""What an endpoint's reply holds: a chat completion, checked before anybody believes it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from mulcot.teachers.base import Finish, TeacherReply
from mulcot.teachers.endpoint_failures import failure_of, one_line
from mulcot.teachers.transport import SendingFailedError

_FINISH: Final[dict[str, Finish]] = {
    "stop": "stop",
    "length": "length",
    "max_tokens": "length",
    "content_filter": "filtered",
}
_SNAPSHOT = re.compile(r"[-@:](?:\d{3,8}|\d{4}-\d\d-\d\d)")
"""What a server may add to the name of a model that was asked for by its short name."""


def read_reply(body: bytes, model: str, redact: Callable[[str], str]) -> TeacherReply:
    """The reply in the body of a 200.

    A completion without a choice is a reply all the same: it was read whole and paid for, so its whole body is the
    text, for the stage to refuse and to keep.

    Args:
        body: The whole body.
        model: The name that the server is to give its model; a dated snapshot of it is the same model.
        redact: Takes secrets out of a text.

    Raises:
        SendingFailedError: It is no chat completion, or one of another model.
    """
    try:
        completion = json.loads(body)  # bytes, so that bad UTF-8 is an error and not a guess
    except (ValueError, RecursionError):
        beginning = one_line(redact(body.decode("utf-8", "replace")))[:80]
        raise SendingFailedError(f"200 with a body that is not JSON, which begins {beginning!r}") from None
    if not isinstance(completion, dict):
        raise SendingFailedError(f"200 with a JSON {type(completion).__name__}, not a chat completion")
    if completion.get("error") and not completion.get("choices"):
        raise _hidden_failure(completion["error"], body, redact)
    _check_model(completion.get("model"), model, redact)
    usage = completion.get("usage")
    tokens = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    choice = _first(completion.get("choices"))
    if choice is None:
        return TeacherReply(body.decode(), *tokens, finish="unknown")
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    text = _text(message.get("content"))
    if not text and isinstance(message.get("refusal"), str):
        return TeacherReply(message["refusal"], *tokens, finish="filtered")
    reason = choice.get("finish_reason")
    return TeacherReply(text, *tokens, finish=_FINISH.get(reason, "unknown") if isinstance(reason, str) else "unknown")


def _hidden_failure(error: object, body: bytes, redact: Callable[[str], str]) -> SendingFailedError:
    """An error that a gateway passes on with status 200; its code is the status that it got itself."""
    code = error.get("code") if isinstance(error, dict) else None
    status = code if isinstance(code, int) and 400 <= code < 600 else 500
    return failure_of(status, {}, body, redact)


def _check_model(served: object, asked: str, redact: Callable[[str], str]) -> None:
    """Refuses the reply of another model: it would be recorded, and trained on, under a wrong name."""
    if not isinstance(served, str) or not served or is_same_model(served, asked):
        return
    name = one_line(redact(served))
    raise SendingFailedError(
        f"it answers as model {name!r} instead of {asked!r}: correct model, or set reply_model to that name "
        "if it is the same model",
        "wrong",
    )


def is_same_model(served: str, asked: str) -> bool:
    """Whether a server's name for its model is the name that was asked for, or a dated snapshot of that.

    Capitals do not count, nor does a publisher before a slash that only one of the two names.
    """
    pairs = [(served.casefold(), asked.casefold())]
    if ("/" in served) != ("/" in asked):
        pairs.append((pairs[0][0].rsplit("/", 1)[-1], pairs[0][1].rsplit("/", 1)[-1]))
    for have, want in pairs:
        stem = want.removesuffix("-latest")
        if have in (want, stem) or (have.startswith(stem) and _SNAPSHOT.fullmatch(have, len(stem))):
            return True
    return False


def _first(choices: object) -> dict[str, Any] | None:
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else None


def _text(content: object) -> str:
    """A message's text, which is one string or a list of parts; empty where there is none."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = [part.get("text") for part in content if isinstance(part, Mapping)]
    return "".join(text for text in texts if isinstance(text, str))


def _count(usage: object, name: str) -> int:
    """A number of tokens; 0 where the server does not say."""
    number = usage.get(name) if isinstance(usage, dict) else None
    return number if isinstance(number, int) and not isinstance(number, bool) and number >= 0 else 0
