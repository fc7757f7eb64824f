"""What the fault server decides about each request, remembers, bills and logs."""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from fault_replies import (
    CONTENT_FAULTS,
    FAULTS,
    LONG_WAIT,
    TRANSPORT_FAULTS,
    Asked,
    Sending,
    names_wait,
    read_log,
    status_of,
)

_POST_TEXT = re.compile(r'^Text:\n(".*")$', re.MULTILINE)
_GIVEN_LABEL = re.compile(r'^- "Prediction": exactly (?!one of the labels \()(.+) and nothing else\.$', re.MULTILINE)


@dataclass(slots=True)
class _Known:
    """What the server remembers of an idempotency key, or of a question."""

    question: str
    sendings: int = 0
    has_met: bool = False
    """Whether it has met its fault or had a good reply."""
    is_completed: bool = False
    content: str | None = None
    """The content fault of its completion."""


class Ledger:
    """Decides what happens to each request, and keeps the books; the arguments are those of `FaultServer`."""

    def __init__(
        self,
        *,
        faults: Mapping[str, float],
        first_only: bool,
        by: str,
        seed: int,
        plan: Callable[[Asked], str | None] | None,
        rate: float | None,
        burst: float | None,
        honours_idempotency: bool,
        model: str,
        key: str | None,
        retry_after: float,
        keep_bodies: bool,
        log_file: Path | None,
    ) -> None:
        unknown = faults.keys() - set(FAULTS)
        if unknown or by not in ("key", "question") or not 0 <= sum(faults.values()) <= 1 + 1e-9:
            raise ValueError(f"unknown faults {sorted(unknown)}, by={by!r}, or shares above 1 in {dict(faults)}")
        self._faults, self._first_only, self._by, self._seed, self._plan = dict(faults), first_only, by, seed, plan
        self._rate, self._burst = rate, burst or max(1.0, rate or 1.0)
        self._tokens, self._filled = self._burst, time.monotonic()
        self._honours, self._model, self._key = honours_idempotency, model, key
        self._retry_after, self._keep_bodies = retry_after, keep_bodies
        self._file = _open_log(log_file) if log_file else None
        self.log: list[Sending] = read_log(log_file) if log_file else []
        self._known: dict[str, _Known] = {}
        self._askings: dict[str, int] = {}
        for sending in self.log:
            self._remember(sending)

    def close(self) -> None:
        """Closes the log file."""
        if self._file is not None:
            self._file.close()

    def take(self, headers: dict[str, str], content: bytes) -> tuple[Asked | None, Sending]:
        """Decides, bills and logs a request that has been read, before anything is sent.

        Returns:
            What was asked, None when that could not be understood; and its entry in the log.
        """
        at = time.monotonic()
        key = headers.get("idempotency-key", "")
        asked = self._understand(headers, content, key)
        if asked is None:
            sending = Sending(len(self.log), at, key, "", 1, None, "bad-request", 400, False)
        else:
            fault, status = self._judge(asked, at)
            known = self._known.get(key)
            is_paid = self._honours and known is not None and known.is_completed
            sending = Sending(
                len(self.log), at, key, asked.question, asked.sending, asked.explains, fault, status,
                billed=_completes(fault) and not is_paid, retry_after=self._wait(fault),
                body=asked.body if self._keep_bodies else None,
            )  # fmt: skip
            self._remember(sending)
        self.log.append(sending)
        self._write(asdict(replace(sending, body=None)))
        return asked, sending

    def replied(self, sending: Sending) -> None:
        """Notes that a whole reply has left."""
        sending.replied_whole = True
        self._write({"number": sending.number, "replied_whole": True})

    def _understand(self, headers: dict[str, str], content: bytes, key: str) -> Asked | None:
        """What is asked, None when it is no request for a completion."""
        try:
            body = json.loads(content)
            text = "\n".join(text for message in body["messages"] for text in _texts(message["content"]))
        except (ValueError, KeyError, TypeError):
            return None
        question = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        quoted, given = _POST_TEXT.search(text), _GIVEN_LABEL.search(text)
        known = self._known.get(key or question)
        return Asked(
            idempotency_key=key,
            question=question,
            sending=1 + (known.sendings if known else 0),
            asking=1 + self._askings.get(question, 0),
            text=text,
            post_text=json.loads(quoted[1]) if quoted else text,
            explains=given[1] if given else None,
            body=body,
            headers=headers,
        )

    def _judge(self, asked: Asked, at: float) -> tuple[str | None, int]:
        """The fault and the status."""
        if self._key is not None and asked.headers.get("authorization") != f"Bearer {self._key}":
            return "bad-key", 401
        if asked.body.get("model") != self._model:
            return "unknown-model", 404
        if not self._let_through(at):
            return "rate", 429
        known = self._known.get(asked.idempotency_key)
        if known is not None and known.question != asked.question:
            return "key-reused", 400
        fault = self._plan(asked) if self._plan else self._drawn(asked)
        if fault is not None and fault not in FAULTS:
            raise ValueError(f"the plan named {fault!r}, which is no fault")
        if self._honours and known is not None and known.is_completed and fault in (None, *CONTENT_FAULTS):
            fault = known.content
        return fault, status_of(fault)

    def _drawn(self, asked: Asked) -> str | None:
        name = asked.question if self._by == "question" else asked.idempotency_key or asked.question
        known = self._known.get(name)
        if self._first_only and known is not None and known.has_met:
            return None
        digest = hashlib.sha256(f"{self._seed}\n{name}".encode()).digest()
        draw = int.from_bytes(digest[:7], "big") / 2**56
        for fault, share in self._faults.items():
            if draw < share:
                return fault
            draw -= share
        return None

    def _let_through(self, at: float) -> bool:
        if self._rate is None:
            return True
        self._tokens = min(self._burst, self._tokens + (at - self._filled) * self._rate)
        self._filled = at
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _wait(self, fault: str | None) -> float | None:
        """The seconds that the client is asked to wait."""
        if fault == "rate":
            assert self._rate is not None
            return max(1, math.ceil((1 - self._tokens) / self._rate))
        if fault == "429-date":  # a date has whole seconds
            return math.ceil(time.time() + self._retry_after) - time.time()
        if fault == "429-long":
            return LONG_WAIT
        return self._retry_after if names_wait(fault) else None

    def _remember(self, sending: Sending) -> None:
        """What later requests depend on; also for the entries of an earlier server's log."""
        self._askings[sending.question] = self._askings.get(sending.question, 0) + 1
        for name in {sending.idempotency_key or sending.question, sending.question}:
            known = self._known.setdefault(name, _Known(sending.question))
            known.sendings += 1
            known.has_met |= sending.fault is None or sending.fault in FAULTS
        if sending.idempotency_key and _completes(sending.fault):
            known = self._known[sending.idempotency_key]
            if not known.is_completed:
                known.content = sending.fault if sending.fault in CONTENT_FAULTS else None
            known.is_completed = True

    def _write(self, entry: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()  # with the kernel: it outlives a kill of this process


def _open_log(path: Path) -> TextIO:
    """The file to append to, without the line that a kill cut off."""
    content = path.read_bytes() if path.exists() else b""
    file = path.open("a")
    file.truncate(content.rfind(b"\n") + 1)
    return file


def _completes(fault: str | None) -> bool:
    """Whether a completion is made, whatever becomes of it on its way."""
    return fault is None or fault in TRANSPORT_FAULTS or fault in CONTENT_FAULTS


def _texts(content: Any) -> list[str]:
    """The texts of a message, which is one text or a list of parts."""
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content if part["type"] == "text"]
