"""An OpenAI-compatible endpoint that fails on purpose, in every way that endpoints fail.

What happens to a request follows from the seed, its idempotency key and how often that key was sent, so a run can be
repeated. The server keeps its own log and its own bill. Tests use `FaultServer` in their event loop, `in_thread` beside
synchronous code, or `in_process`, which runs

    python tests/fault_server.py --port 0 --ready FILE --log FILE.jsonl --seed 0 --faults '{"500": 0.1, "hang": 0.01}'

Standard library only, so that nothing which is tested can be wrong here in the same way.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
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
_POST_TEXT = re.compile(r'^Text:\n(".*")$', re.MULTILINE)
_GIVEN_LABEL = re.compile(r'^- "Prediction": exactly (?!one of the labels \()(.+) and nothing else\.$', re.MULTILINE)
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


@dataclass(slots=True)
class _Known:
    """What the server remembers of an idempotency key."""

    question: str
    sendings: int = 0
    has_met: bool = False
    """Whether its planned fault has happened."""
    is_completed: bool = False
    content: str | None = None
    """The content fault of its completion."""


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class _Reply:
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


class FaultServer:
    """The server, in the event loop that enters it; an async context manager.

    Args:
        faults: The share of questions that meet each fault, by name. Which ones follows from `seed` and the key.
        first_only: Whether a key meets its fault once; else every time that it is sent.
        by: What `faults` counts: `key`, or `question`, where a re-ask under a new key is a second sending of the same.
        seed: Another seed lets other keys meet other faults.
        plan: Names the fault of each request, or None; instead of `faults`.
        delay: Seconds before any reply.
        rate: Requests per second that are let through; beyond it the answer is 429 with Retry-After.
        burst: How many requests an idle server lets through at once; one second's by default.
        honours_idempotency: Whether a repeated key gets its first completion again and is not billed twice.
        labels: What the server predicts.
        model: The model that it has; a request for another one gets 404.
        key: The API key that it demands, None for any.
        port: 0 for a free one.
        retry_after: Seconds in the Retry-After of `429-seconds` and its kin.
        drip: Seconds between two bytes of `slow-drip`.
        late: Seconds between a reply and its late duplicate; 0 sends both at once.
        oversized_bytes: The length of an oversized reply.
        restart_after: Seconds for which a restarting server does not listen.
        keep_bodies: Whether the log in memory holds the requests.
        log_file: Where each log entry is appended as it happens; what it already holds is remembered.
    """

    def __init__(
        self,
        *,
        faults: Mapping[str, float] | None = None,
        first_only: bool = True,
        by: str = "key",
        seed: int = 0,
        plan: Callable[[Asked], str | None] | None = None,
        delay: float = 0.0,
        rate: float | None = None,
        burst: float | None = None,
        honours_idempotency: bool = True,
        labels: Sequence[str] = ("positive", "neutral", "negative"),
        model: str = "fault-model",
        key: str | None = None,
        port: int = 0,
        retry_after: float = 1.0,
        drip: float = 0.05,
        late: float = 0.0,
        oversized_bytes: int = 64 * 2**20,
        restart_after: float = 0.1,
        keep_bodies: bool = True,
        log_file: Path | None = None,
    ) -> None:
        self._faults = dict(faults or {})
        unknown = self._faults.keys() - set(FAULTS)
        if unknown or by not in ("key", "question") or not 0 <= sum(self._faults.values()) <= 1 + 1e-9:
            raise ValueError(f"unknown faults {sorted(unknown)}, by={by!r} or shares over 1 in {self._faults}")
        self._first_only, self._by, self._seed, self._plan = first_only, by, seed, plan
        self._delay, self._rate, self._burst = delay, rate, burst or max(1.0, rate or 1.0)
        self._tokens, self._filled = self._burst, time.monotonic()
        self._honours, self._labels, self.model, self._key = honours_idempotency, tuple(labels), model, key
        self._retry_after, self._drip, self._late = retry_after, drip, late
        self._oversized, self._restart_after, self._keep_bodies = oversized_bytes, restart_after, keep_bodies
        self.port = port
        self.log: list[Sending] = read_log(log_file) if log_file and log_file.exists() else []
        self.others: list[tuple[str, str]] = []
        """Method and path of every request that was none for a completion."""
        self.restarts = 0
        self._known: dict[str, _Known] = {}
        self._askings: dict[str, int] = {}
        for sending in self.log:
            self._remember(sending)
        self._log_file = log_file.open("a") if log_file else None
        self._connections: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}
        self._restarting: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """The base URL for a client."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def bill(self) -> int:
        """How many completions were billed."""
        return bill(self.log)

    async def __aenter__(self) -> FaultServer:
        # Bound and never listening: while the server restarts, nobody else is given the port.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", self.port))
        self.port = self._reserved.getsockname()[1]
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._restarting is not None:
            await self._restarting
        self._server.close()
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()
        self._reserved.close()
        if self._log_file is not None:
            self._log_file.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, limit=2**20, backlog=1024, reuse_address=True
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request after the other."""
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        try:
            while (request := await _read_request(reader)) is not None:
                if request.method != "POST" or not request.path.endswith("/v1/chat/completions"):
                    self.others.append((request.method, request.path))
                    reply = self._other(request)
                    writer.write(reply.head() + reply.body)
                    continue
                asked, sending = self._take(request)
                if self._delay:
                    await asyncio.sleep(self._delay)
                if _is_gone(reader, writer) or not await self._deliver(asked, sending, reader, writer):
                    break
                sending.replied_whole = True
                self._write_log({"number": sending.number, "replied_whole": True})
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away, as it may at any time; the log shows that nothing whole was sent
        except asyncio.CancelledError:
            pass  # the server restarts or ends, and this task with it; asyncio's streams would report it as a mistake
        finally:
            del self._connections[task]
            writer.close()

    def _other(self, request: _Request) -> _Reply:
        if (request.method, request.path) == ("GET", "/v1/models"):
            models = [{"id": self.model, "object": "model", "created": 0, "owned_by": "tests"}]
            return _json(200, {"object": "list", "data": models})
        return _error(404, f"no route {request.method} {request.path}", "not_found")

    # --- what happens to a request: decided, billed and logged in one go, before anything is sent

    def _take(self, request: _Request) -> tuple[Asked | None, Sending]:
        at = time.monotonic()
        key = request.headers.get("idempotency-key", "")
        asked = self._understand(request, key)
        if asked is None:
            sending = Sending(len(self.log), at, key, "", 1, None, "bad-request", 400, False)
        else:
            fault, status = self._judge(asked, at)
            known = self._known.get(key)
            completes = fault is None or fault in TRANSPORT_FAULTS + CONTENT_FAULTS
            paid = self._honours and known is not None and known.is_completed
            sending = Sending(
                len(self.log), at, key, asked.question, asked.sending, asked.explains, fault, status,
                billed=completes and not paid, retry_after=self._wait(fault, at), body=asked.body,
            )  # fmt: skip
            self._remember(sending)
        self.log.append(sending)
        entry = asdict(sending)
        del entry["body"]
        self._write_log(entry)
        if not self._keep_bodies:
            sending.body = None
        return asked, sending

    def _understand(self, request: _Request, key: str) -> Asked | None:
        """The request, None when it is not one for a completion."""
        try:
            body = json.loads(request.body)
            texts = [text for message in body["messages"] for text in _texts(message["content"])]
        except (ValueError, KeyError, TypeError):
            return None
        text = "\n".join(texts)
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
            headers=request.headers,
        )

    def _judge(self, asked: Asked, at: float) -> tuple[str | None, int]:
        """The fault and the status."""
        if self._key is not None and asked.headers.get("authorization") != f"Bearer {self._key}":
            return "bad-key", 401
        if asked.body.get("model") != self.model:
            return "unknown-model", 404
        if not self._let_through(at):
            return "rate", 429
        known = self._known.get(asked.idempotency_key)
        if known is not None and known.question != asked.question:
            return "key-reused", 400
        fault = self._plan(asked) if self._plan else self._drawn(asked)
        if fault is not None and fault not in FAULTS:
            raise ValueError(f"the plan named {fault!r}, which is no fault")
        if self._honours and known is not None and known.is_completed and (fault in (None, *CONTENT_FAULTS)):
            fault = known.content
        return fault, _status(fault)

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

    def _wait(self, fault: str | None, at: float) -> float | None:
        if fault == "rate":
            assert self._rate is not None
            return max(1, math.ceil((1 - self._tokens) / self._rate))
        if fault == "429-date":  # a date has whole seconds
            return math.ceil(time.time() + self._retry_after) - time.time()
        return {"429-long": LONG_WAIT}.get(fault or "", self._retry_after) if _names_wait(fault) else None

    def _remember(self, sending: Sending) -> None:
        """What later requests depend on; also for the entries of an earlier server's log."""
        self._askings[sending.question] = self._askings.get(sending.question, 0) + 1
        for name in {sending.idempotency_key or sending.question, sending.question}:
            known = self._known.setdefault(name, _Known(sending.question))
            known.sendings += 1
            known.has_met |= sending.fault in FAULTS or (sending.status == 200)
        if sending.idempotency_key and (sending.fault is None or sending.fault in TRANSPORT_FAULTS + CONTENT_FAULTS):
            known = self._known[sending.idempotency_key]
            if not known.is_completed:
                known.content = sending.fault if sending.fault in CONTENT_FAULTS else None
            known.is_completed = True

    def _write_log(self, entry: dict[str, Any]) -> None:
        if self._log_file is not None:
            self._log_file.write(json.dumps(entry) + "\n")
            self._log_file.flush()  # with the kernel: it outlives a kill of this process

    # --- what is sent

    async def _deliver(
        self, asked: Asked | None, sending: Sending, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Sends the reply, or whatever the fault sends; says whether it was a whole one."""
        fault = sending.fault
        if fault == "restart":
            if self._restarting is None:
                self._restarting = asyncio.create_task(self._restart())
            await asyncio.sleep(3600)  # the restart ends this connection
        if fault == "hang":
            while await reader.read(2**16):
                pass
            return False
        if fault == "reset-before":
            return _reset(writer)
        reply = self._reply(asked, sending)
        if fault in ("reset-inside", "short-body"):
            writer.write(reply.head() + reply.body[: len(reply.body) // 2])
            await writer.drain()
            await asyncio.sleep(0.02)  # a reset takes along what the client has not read yet
            return _reset(writer) if fault == "reset-inside" else False
        if fault == "slow-drip":
            writer.write(reply.head())
            for position in range(len(reply.body)):
                writer.write(reply.body[position : position + 1])
                await writer.drain()
                await asyncio.sleep(self._drip)
                if _is_gone(reader, writer):
                    return False
            return True
        if fault == "oversized":
            return await self._pour(reply, writer)
        whole = reply.head() + reply.body
        if fault == "late-duplicate" and self._late:
            writer.write(whole)
            await writer.drain()
            await asyncio.sleep(self._late)
        elif fault == "late-duplicate":
            whole += whole
        writer.write(whole)
        await writer.drain()
        return True

    async def _pour(self, reply: _Reply, writer: asyncio.StreamWriter) -> bool:
        """A body without end in sight and without a length that would give it away: blanks before the object."""
        head = _Reply(200, b"", (("transfer-encoding", "chunked"),)).head()
        writer.write(head)
        blanks = b"10000\r\n" + b" " * 2**16 + b"\r\n"
        for _ in range(self._oversized // 2**16):
            writer.write(blanks)
            await writer.drain()
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(reply.body), reply.body))
        await writer.drain()
        return True

    async def _restart(self) -> None:
        self._server.close()
        for task, writer in list(self._connections.items()):
            writer.transport.abort()
            task.cancel()
        await asyncio.sleep(self._restart_after)
        await self._listen()
        self.restarts += 1
        self._restarting = None

    def _reply(self, asked: Asked | None, sending: Sending) -> _Reply:
        fault, status = sending.fault, sending.status
        if asked is None:
            return _error(400, "the request is not JSON with messages", "invalid_request")
        if fault == "redirect":
            where = ("location", f"http://127.0.0.1:{self.port}/redirected/v1/chat/completions")
            return _Reply(status, b"", (where,))
        if status != 200:
            code = {"429-quota": "insufficient_quota", "unknown-model": "model_not_found"}.get(fault or "", "fault")
            return _error(status, f"the fault server says {fault}", code, self._wait_header(fault, sending.retry_after))
        if fault == "html":
            return _Reply(200, b"<!doctype html><title>Sign in</title><p>This network needs a login.", (), "text/html")
        body = json.dumps(self._completion(asked, fault)).encode()
        if fault == "truncated-json":
            body = body[: len(body) // 2]
        if fault == "bad-utf8":
            body = body.replace(b"The text", b"The \xff\xfe text", 1)
        return _Reply(200, body)

    def _wait_header(self, fault: str | None, seconds: float | None) -> tuple[tuple[str, str], ...]:
        if fault == "429-nonsense":
            return (("retry-after", "soon"),)
        if seconds is None:
            return ()
        if fault == "429-date":
            return (("retry-after", formatdate(round(time.time() + seconds), usegmt=True)),)
        if fault == "429-ms-header":
            return (("retry-after-ms", f"{1000 * seconds:g}"),)
        return (("retry-after", f"{seconds:g}"),)

    def _completion(self, asked: Asked, fault: str | None) -> dict[str, Any]:
        content, finish, refusal = self._content(asked, fault), "stop", None
        if fault in ("length", "whitespace-loop"):
            finish = "length" if fault == "length" else "stop"
        if fault == "content-filter":
            finish, content = "content_filter", content[: len(content) // 2]
        if fault == "refusal":
            content, refusal = None, "I cannot help with judging this post."
        if fault in ("empty-content", "null-content"):
            content = "" if fault == "empty-content" else None
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

    def _content(self, asked: Asked, fault: str | None) -> str:
        label = asked.explains or self.judgement(asked.post_text)
        other = next((name for name in self._labels if name != label), label)
        if fault == "wrong-label":
            label = other
        if fault == "label-outside":
            label = "ecstatic"
        text = "a post that was asked about elsewhere" if fault == "other-post" else asked.post_text
        written = json.dumps(rationale(text, label), ensure_ascii=False)
        if fault == "contradiction":
            return f'{written[:-1]}, "Prediction": {json.dumps(other)}}}'
        if fault == "fences":
            return f"```json\n{written}\n```"
        if fault == "prose":
            return f"Certainly! Here is the analysis you asked for:\n\n{written}\n\nLet me know if I can help further."
        if fault == "whitespace-loop":
            return written.partition('"Image_analysis"')[0] + " \n\t" * 4000
        return written[: len(written) // 2] if fault == "length" else written

    def judgement(self, post_text: str) -> str:
        """The label that the server predicts: that of `gold=<label>` in the text, else one that the text's hash draws."""
        gold = _GOLD.search(post_text)
        if gold and gold[1] in self._labels:
            return gold[1]
        digest = hashlib.sha256(post_text.encode("utf-8", "surrogatepass")).digest()
        return self._labels[digest[0] % len(self._labels)]


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


async def _read_request(reader: asyncio.StreamReader) -> _Request | None:
    """The next request, None when the client has closed the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as end:
        if end.partial:
            raise
        return None
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return _Request(method, path, headers, await reader.readexactly(int(headers.get("content-length", 0))))


def _texts(content: Any) -> list[str]:
    """The texts of a message, which is one text or a list of parts."""
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content if part["type"] == "text"]


def _status(fault: str | None) -> int:
    if fault in ("reset-before", "hang", "restart"):
        return 0
    if fault == "redirect":
        return 307
    return int(fault[:3]) if fault and fault[:3].isdigit() else 200


def _names_wait(fault: str | None) -> bool:
    return fault in ("rate", "429-seconds", "429-date", "429-ms-header", "429-long", "503-seconds")


def _json(status: int, body: dict[str, Any], headers: tuple[tuple[str, str], ...] = ()) -> _Reply:
    return _Reply(status, json.dumps(body).encode(), headers)


def _error(status: int, message: str, code: str, headers: tuple[tuple[str, str], ...] = ()) -> _Reply:
    error = {"message": message, "type": "fault_server_error", "param": None, "code": code}
    return _json(status, {"error": error}, headers)


def _is_gone(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    return reader.at_eof() or reader.exception() is not None or writer.transport.is_closing()


def _reset(writer: asyncio.StreamWriter) -> bool:
    """Ends the connection with a reset instead of a regular close; nothing whole was sent, so False."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
    return False


@contextmanager
def in_thread(**settings: Any) -> Iterator[FaultServer]:
    """A server in a thread of its own, beside code that has no event loop; takes what `FaultServer` takes."""
    server = FaultServer(**settings)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fault-server", daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@dataclass(frozen=True, slots=True)
class Process:
    """A server in a process of its own."""

    url: str
    """The base URL for a client."""
    log_file: Path
    """Its log."""
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> list[Sending]:
        """The log as it stands now."""
        return read_log(self.log_file)

    @property
    def bill(self) -> int:
        """The bill as it stands now."""
        return bill(self.log)


@contextmanager
def in_process(folder: Path, *options: str) -> Iterator[Process]:
    """A server in a process and a process group of its own, with its ready file and its log in `folder`.

    It ends with this context, and also when this process is killed. Options are those of the command line.
    """
    ready, log_file = folder / "fault-server.ready", folder / "fault-server.jsonl"
    ready.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--ready", str(ready), "--log", str(log_file), "--while-stdin-is-open"]
    with subprocess.Popen([*command, *options], stdin=subprocess.PIPE, start_new_session=True) as process:
        try:
            while not ready.exists():
                if process.poll() is not None:
                    raise RuntimeError(f"the fault server left with {process.returncode}: {command}")
                time.sleep(0.01)
            yield Process(ready.read_text(), log_file, process)
        finally:
            process.kill()


async def _run(given: argparse.Namespace, **settings: Any) -> None:
    async with FaultServer(**settings) as server:
        fresh = given.ready.with_name(given.ready.name + ".new")
        fresh.write_text(server.url)
        fresh.replace(given.ready)  # whoever waits for the file finds it whole
        ended = asyncio.Event()
        if given.while_stdin_is_open:
            asyncio.get_running_loop().add_reader(0, ended.set)
        await ended.wait()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="An OpenAI-compatible endpoint that fails on purpose.")
    parser.add_argument("--port", type=int, default=0, help="0 for a free one")
    parser.add_argument("--ready", type=Path, required=True, help="where the base URL is written once it listens")
    parser.add_argument("--log", type=Path, help="where the log entries go, a line each; an old log is gone on with")
    parser.add_argument("--faults", type=json.loads, default={}, help="JSON object: share of questions by fault")
    parser.add_argument("--every-sending", action="store_true", help="a key meets its fault every time, not once")
    parser.add_argument("--by", choices=["key", "question"], default="key", help="what the faults are counted by")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before a reply")
    parser.add_argument("--rate", type=float, help="requests per second that it allows")
    parser.add_argument("--burst", type=float, help="requests that it allows at once; one second's by default")
    parser.add_argument("--retry-after", type=float, default=1.0, help="seconds in Retry-After")
    parser.add_argument("--drip", type=float, default=0.05, help="seconds between two bytes of a slow drip")
    parser.add_argument("--restart-after", type=float, default=0.1, help="seconds that a restart takes")
    parser.add_argument("--model", default="fault-model")
    parser.add_argument("--key", help="the API key that it demands")
    parser.add_argument("--labels", nargs="+", default=["positive", "neutral", "negative"])
    parser.add_argument("--forgets-keys", action="store_true", help="a repeated idempotency key is billed again")
    parser.add_argument("--while-stdin-is-open", action="store_true", help="ends when standard input does")
    given = parser.parse_args()
    names = ["port", "faults", "by", "seed", "delay", "rate", "burst", "retry_after", "drip", "restart_after", "model", "key", "labels"]
    settings = {name: getattr(given, name) for name in names}
    settings |= {"first_only": not given.every_sending, "honours_idempotency": not given.forgets_keys}
    asyncio.run(_run(given, **settings, log_file=given.log, keep_bodies=False))


if __name__ == "__main__":
    main()
