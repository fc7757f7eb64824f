"""What the fault server writes: its faults by name, its log entries, its replies, good and bad."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any, Final

_STATUSES: Final = (400, 401, 403, 404, 408, 409, 413, 422, 425, 429, 500, 502, 503, 529)
LONG_WAIT: Final = 7200
"""The seconds that `429-long` asks to wait."""
STATUS_FAULTS: Final = (
    *map(str, _STATUSES),
    "429-seconds", "429-date", "429-ms-header", "429-nonsense", "429-long", "429-quota", "503-seconds", "redirect",
)  # fmt: skip
"""Answered without any work: nothing is billed. `503-seconds` is a 503 with Retry-After in seconds."""
TRANSPORT_FAULTS: Final = (
    "reset-before", "reset-inside", "short-body", "truncated-json", "html", "bad-utf8", "slow-drip", "hang",
    "late-duplicate", "oversized",
)  # fmt: skip
"""The work is done and billed, and its reply is damaged, lost or sent twice: the same key sent again gets it whole."""
CONTENT_FAULTS: Final = (
    "empty-choices", "no-choices", "empty-content", "null-content", "length", "content-filter", "refusal",
    "wrong-model", "dated-model", "wrong-label", "label-outside", "contradiction", "fences", "prose",
    "whitespace-loop", "other-post", "no-usage",
)  # fmt: skip
"""The reply arrives whole and is not the good one; it is billed, and the same key sent again gets the same."""
FAULTS: Final = (*STATUS_FAULTS, *TRANSPORT_FAULTS, *CONTENT_FAULTS, "restart")
"""Every fault. `restart` closes the listening socket and all connections; nothing is billed then."""

_KEYS: Final = ("Text_analysis", "Image_analysis", "Conflict_resolution", "Final_conclusion", "Prediction")
_GOLD = re.compile(r"gold=([\w-]+)")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for a completion as a plan sees it."""

    idempotency_key: str
    """Empty when the client sent none."""
    question: str
    """The first 16 hexadecimal digits of the SHA-256 of all text in the messages."""
    sending: int
    """1 for the first time that this key is sent (of this question, without a key), 2 for the second, ..."""
    asking: int
    """1 for the first time that this question is sent, under whatever key, 2 for the second, ..."""
    text: str
    """All text in the messages."""
    post_text: str
    """The post's text as the prompt quotes it; the whole text where no prompt of mulcot is recognised."""
    explains: str | None
    """The label that is to be explained, None when the label is to be predicted."""
    body: dict[str, Any]
    """The request."""
    headers: dict[str, str]
    """Its headers, names in lower case."""


@dataclass(slots=True)
class Sending:
    """One request for a completion in the log."""

    number: int
    """0 for the first request that the server ever got, 1, ..."""
    at: float
    """`time.monotonic()` when the request had been read, which all processes of a machine share."""
    idempotency_key: str
    """As in `Asked`, like the next two."""
    question: str
    sending: int
    explains: str | None
    fault: str | None
    """What happened to it: a fault's name, `rate` (over the rate), `key-reused` (another question had that key), or a
    mistake of the client: `bad-request`, `bad-key`, `unknown-model`. None for a good reply."""
    status: int
    """The status sent; 0 when none was."""
    billed: bool
    """Whether a completion was paid for: no when a repeated key gets what it got before."""
    retry_after: float | None = None
    """The seconds that the client was asked to wait, however that was written."""
    replied_whole: bool = False
    """Whether everything that belongs to a reply was handed to the connection of a client that was still there."""
    body: dict[str, Any] | None = None
    """The request, where bodies are kept; never in a log file."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP response."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    kind: str = "application/json"

    def head(self, length: int | None = None) -> bytes:
        """Status line and headers; `length` where another one is to be announced than the body has."""
        lines = [f"HTTP/1.1 {self.status} Reply", f"content-type: {self.kind}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        if not any(name == "transfer-encoding" for name, _ in self.headers):
            lines.append(f"content-length: {len(self.body) if length is None else length}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class Replies:
    """Writes the reply to a request once its fault is decided.

    Args:
        model: The name of the model that answers.
        labels: What it predicts.
    """

    def __init__(self, model: str, labels: Sequence[str]) -> None:
        self.model, self.labels = model, tuple(labels)

    def judgement(self, post_text: str) -> str:
        """The label that is predicted: that of `gold=<label>` in the text, else one that the text's hash draws."""
        gold = _GOLD.search(post_text)
        if gold and gold[1] in self.labels:
            return gold[1]
        digest = hashlib.sha256(post_text.encode("utf-8", "surrogatepass")).digest()
        return self.labels[digest[0] % len(self.labels)]

    def write(self, asked: Asked | None, sending: Sending) -> Reply:
        """The reply; `asked` is None for a request that was not understood."""
        fault, status = sending.fault, sending.status
        if asked is None:
            return error_reply(400, "the request is not JSON with messages", "invalid_request")
        if fault == "redirect":
            return Reply(status, b"", (("location", "/redirected/v1/chat/completions"),))
        if status != 200:
            code = {"429-quota": "insufficient_quota", "unknown-model": "model_not_found"}.get(fault or "", "fault")
            return error_reply(status, f"the fault server says {fault}", code, _wait_header(fault, sending.retry_after))
        if fault == "html":
            return Reply(200, b"<!doctype html><title>Sign in</title><p>This network needs a login.", (), "text/html")
        body = json.dumps(self._completion(asked, fault)).encode()
        if fault == "truncated-json":
            body = body[: len(body) // 2]
        if fault == "bad-utf8":
            body = body.replace(b"The text", b"The \xff\xfe text", 1)
        return Reply(200, body)

    def _completion(self, asked: Asked, fault: str | None) -> dict[str, Any]:
        content = self._content(asked, fault)
        finish = {"length": "length", "content-filter": "content_filter"}.get(fault or "", "stop")
        refusal = "I cannot help with judging this post." if fault == "refusal" else None
        message = {"role": "assistant", "content": content, "refusal": refusal}
        model = {"wrong-model": "another-model", "dated-model": f"{self.model}-2025-01-31"}.get(fault or "", self.model)
        name = hashlib.sha256((asked.idempotency_key or asked.question).encode()).hexdigest()[:24]
        completion: dict[str, Any] = {
            "id": f"chatcmpl-{name}", "object": "chat.completion", "created": 1_700_000_000, "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
        }  # fmt: skip
        read, written = len(asked.text.split()), len((content or "").split())
        if fault != "no-usage":
            usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
            completion["usage"] = usage
        if fault == "empty-choices":
            completion["choices"] = []
        if fault == "no-choices":
            del completion["choices"]
        return completion

    def _content(self, asked: Asked, fault: str | None) -> str | None:
        label = asked.explains or self.judgement(asked.post_text)
        other = next((name for name in self.labels if name != label), label)
        label = {"wrong-label": other, "label-outside": "ecstatic"}.get(fault or "", label)
        text = "a post that was asked about elsewhere" if fault == "other-post" else asked.post_text
        written = json.dumps(rationale(text, label), ensure_ascii=False)
        changed: dict[str | None, str | None] = {
            "empty-content": "",
            "null-content": None,
            "refusal": None,
            "length": written[: len(written) // 2],
            "content-filter": written[: len(written) // 2],
            "contradiction": f'{written[:-1]}, "Prediction": {json.dumps(other)}}}',
            "fences": f"```json\n{written}\n```",
            "prose": f"Certainly! Here is the analysis:\n\n{written}\n\nLet me know if I can help further.",
            "whitespace-loop": written.partition('"Image_analysis"')[0] + " \n\t" * 4000,
        }
        return changed.get(fault, written)


def _wait_header(fault: str | None, seconds: float | None) -> tuple[tuple[str, str], ...]:
    if fault == "429-nonsense":
        return (("retry-after", "soon"),)
    if seconds is None:
        return ()
    if fault == "429-date":
        return (("retry-after", formatdate(round(time.time() + seconds), usegmt=True)),)
    if fault == "429-ms-header":
        return (("retry-after-ms", f"{1000 * seconds:g}"),)
    return (("retry-after", f"{seconds:g}"),)


def rationale(post_text: str, label: str) -> dict[str, str]:
    """The five fields of a good reply; the first quotes the post, so that a reply shows where it belongs."""
    return dict(
        zip(
            _KEYS,
            (
                f"The text reads {post_text[:120]!r}, and its words sound {label} by themselves.",
                f"The picture shows nothing that speaks against a {label} mood.",
                "Text and picture agree, so there is no conflict between them.",
                f"Taken together, the text and the picture make the post {label}.",
                label,
            ),
            strict=True,
        )
    )


def bill(log: Iterable[Sending]) -> int:
    """How many completions of a log were billed."""
    return sum(sending.billed for sending in log)


def read_log(path: Path) -> list[Sending]:
    """The log that a server appended to a file, in order; a last line that a kill cut off is left out."""
    log: list[Sending] = []
    for line in path.read_text().splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        entry = json.loads(line)
        if "at" in entry:
            log.append(Sending(**entry))
        else:
            log[entry["number"]].replied_whole = entry["replied_whole"]
    return log


def status_of(fault: str | None) -> int:
    if fault in ("reset-before", "hang", "restart"):
        return 0
    if fault == "redirect":
        return 307
    return int(fault[:3]) if fault and fault[:3].isdigit() else 200


def names_wait(fault: str | None) -> bool:
    return fault in ("rate", "429-seconds", "429-date", "429-ms-header", "429-long", "503-seconds")


def json_reply(status: int, body: dict[str, Any], headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    return Reply(status, json.dumps(body).encode(), headers)


def error_reply(status: int, message: str, code: str, headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    error = {"message": message, "type": "fault_servererror_reply", "param": None, "code": code}
    return json_reply(status, {"error": error}, headers)
