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
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fault_wire
from fault_ledger import Ledger
from fault_replies import (
    CONTENT_FAULTS,
    FAULTS,
    LONG_WAIT,
    STATUS_FAULTS,
    TRANSPORT_FAULTS,
    Asked,
    Replies,
    Reply,
    Sending,
    bill,
    error_reply,
    json_reply,
    rationale,
    read_log,
)

__all__ = [
    "CONTENT_FAULTS",
    "FAULTS",
    "LONG_WAIT",
    "STATUS_FAULTS",
    "TRANSPORT_FAULTS",
    "Asked",
    "FaultServer",
    "Process",
    "Sending",
    "bill",
    "in_process",
    "in_thread",
    "rationale",
    "read_log",
]


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


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
        self._ledger = Ledger(
            faults=faults or {}, first_only=first_only, by=by, seed=seed, plan=plan, rate=rate, burst=burst,
            honours_idempotency=honours_idempotency, model=model, key=key, retry_after=retry_after,
            keep_bodies=keep_bodies, log_file=log_file,
        )  # fmt: skip
        self.log = self._ledger.log
        self.replies = Replies(model, labels)
        self.others: list[tuple[str, str]] = []
        """Method and path of every request that was none for a completion."""
        self.restarts = 0
        self.connections = 0
        """How many were opened."""
        self.port = port
        self._delay, self._drip, self._late = delay, drip, late
        self._oversized, self._restart_after = oversized_bytes, restart_after
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
        self._end_connections()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()
        self._reserved.close()
        self._ledger.close()

    def _end_connections(self) -> None:
        for task, writer in self._connections.items():
            writer.transport.abort()  # a regular close would wait for a client that does not read
            task.cancel()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, limit=2**20, backlog=1024, reuse_address=True
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request after the other."""
        task = asyncio.current_task()
        assert task is not None
        self.connections += 1
        self._connections[task] = writer
        try:
            while (request := await _read_request(reader)) is not None:
                if not await self._respond(request, reader, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away, as it may at any time; the log shows that nothing whole was sent
        except asyncio.CancelledError:
            pass  # the server restarts or ends, and this task with it; asyncio's streams would report it as a mistake
        finally:
            del self._connections[task]
            writer.close()

    async def _respond(self, request: _Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answers a request; False when the connection is to end."""
        if request.method != "POST" or not request.path.endswith("/v1/chat/completions"):
            self.others.append((request.method, request.path))
            return await fault_wire.send(writer, self._other(request))
        asked, sending = self._ledger.take(request.headers, request.body)
        if self._delay:
            await asyncio.sleep(self._delay)
        is_whole = not fault_wire.is_gone(reader, writer) and await self._deliver(asked, sending, reader, writer)
        if is_whole:
            self._ledger.replied(sending)
        return is_whole

    def _other(self, request: _Request) -> Reply:
        if (request.method, request.path) == ("GET", "/v1/models"):
            models = [{"id": self.replies.model, "object": "model", "created": 0, "owned_by": "tests"}]
            return json_reply(200, {"object": "list", "data": models})
        return error_reply(404, f"no route {request.method} {request.path}", "not_found")

    async def _deliver(
        self, asked: Asked | None, sending: Sending, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Sends the reply, or whatever the fault sends; says whether it was a whole one."""
        if sending.fault == "restart":
            if self._restarting is None:
                self._restarting = asyncio.create_task(self._restart())
            await asyncio.Event().wait()  # the restart ends this connection
        if sending.fault == "hang":
            while await reader.read(2**16):
                pass
            return False
        if sending.fault == "reset-before":
            return fault_wire.reset(writer)
        reply = self.replies.write(asked, sending)
        match sending.fault:
            case "reset-inside" | "short-body" as fault:
                return await fault_wire.send_half(writer, reply, ends_with_reset=fault == "reset-inside")
            case "slow-drip":
                return await fault_wire.drip(reader, writer, reply, self._drip)
            case "oversized":
                return await fault_wire.pour(writer, reply, self._oversized)
            case "late-duplicate":
                return await fault_wire.send_twice(writer, reply, self._late)
        return await fault_wire.send(writer, reply)

    async def _restart(self) -> None:
        self._server.close()
        self._end_connections()
        await asyncio.sleep(self._restart_after)
        await self._listen()
        self.restarts += 1
        self._restarting = None


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
    names = "port faults by seed delay rate burst retry_after drip restart_after model key labels".split()  # noqa: SIM905
    settings = {name: getattr(given, name) for name in names}
    settings |= {"first_only": not given.every_sending, "honours_idempotency": not given.forgets_keys}
    asyncio.run(_run(given, **settings, log_file=given.log, keep_bodies=False))


if __name__ == "__main__":
    main()
