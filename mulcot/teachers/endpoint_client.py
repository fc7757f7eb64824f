"""One sending to an endpoint: a request goes out, and a body of bounded size comes back or an error that says why.

Imported when the first question is sent: importing `openai` takes a second, for which a run that finds all replies in
its store need not wait.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx2
import openai

from mulcot.teachers.endpoint_address import ApiKey, is_loopback
from mulcot.teachers.endpoint_failures import failure_of, one_line
from mulcot.teachers.transport import SendingFailedError

MAX_BODY_BYTES: Final = 4 * 2**20
"""Far more than any chat completion without a picture in it."""
_CONNECT_SECONDS: Final = 10.0
_KEY_HEADER: Final = "idempotency-key"
_CHATTY: Final = ("openai", "httpx2", "httpcore2")


class EndpointClient:
    """A client for the chat completions of one endpoint, without any retry; for one event loop.

    It opens as many connections as requests are under way at once, which the caller limits.

    Args:
        base_url: The checked base URL.
        key: The key; no Authorization header where it is empty.
    """

    def __init__(self, base_url: str, key: ApiKey) -> None:
        _silence_loggers()
        self._key = key
        self._seen = _SeenBodies()
        self._base_url = base_url
        # No proxy stands between a program and its own machine.
        self._trust_env = not is_loopback(httpx2.URL(base_url).host)
        self._tls = httpx2.create_ssl_context(trust_env=self._trust_env)
        self._lanes: list[openai.AsyncOpenAI] = []
        self._free: list[openai.AsyncOpenAI] = []

    async def close(self) -> None:
        """Closes every connection."""
        self._free.clear()
        while self._lanes:
            await self._lanes.pop().close()

    async def send(self, body: bytes, idempotency_key: str) -> bytes:
        """Sends a request for a chat completion once; gives the body of a 200.

        Raises:
            SendingFailedError: There is no whole reply, or it is another status.
        """
        headers: dict[str, Any] = {"Idempotency-Key": idempotency_key, "Accept-Encoding": "identity"}
        if not self._key.reveal():
            headers["Authorization"] = openai.Omit()
        problem: openai.OpenAIError | httpx2.InvalidURL | None = None
        lane = self._free.pop() if self._free else self._new_lane()
        try:
            response = await lane.post(
                "/chat/completions", cast_to=httpx2.Response, content=body, options={"headers": headers}
            )
        except openai.APIStatusError as error:
            response = error.response
        except (openai.OpenAIError, httpx2.InvalidURL) as error:
            problem = error
        finally:
            self._free.append(lane)
        # Raised outside of the handlers: what openai raises repeats the server's words, the key among them maybe.
        if problem is not None:
            raise SendingFailedError(self._lost(problem))
        if response.status_code != 200:
            raise failure_of(response.status_code, response.headers, response.content, self._key.redact)
        return response.content

    def _new_lane(self) -> openai.AsyncOpenAI:
        """One more client of one connection.

        One client with a pool of connections looks through all of them twice for each request, and asks the system of
        every idle one whether it is still there: a third of the time of all that was sent. The lane that was given back
        last is taken first, so that as few connections as possible are kept busy.
        """
        http = httpx2.AsyncClient(
            follow_redirects=False,  # a redirect would carry posts, and with bad luck the key, to somebody else
            timeout=httpx2.Timeout(None, connect=_CONNECT_SECONDS),  # the transport sets a deadline for the whole
            limits=httpx2.Limits(max_connections=1, max_keepalive_connections=1),
            event_hooks={"response": [self._check]},
            verify=self._tls,
            trust_env=self._trust_env,
        )
        lane = openai.AsyncOpenAI(
            base_url=self._base_url,
            api_key=self._key.reveal() or "none",
            max_retries=0,
            timeout=http.timeout,
            http_client=http,
        )
        self._lanes.append(lane)
        return lane

    def _lost(self, error: Exception) -> str:
        """Why there is no reply, as the HTTP library says it: openai says `Connection error.` to everything."""
        cause = error.__cause__ or error
        words = one_line(self._key.redact(str(cause)))
        return f"the connection failed ({type(cause).__name__}: {words})"

    async def _check(self, response: httpx2.Response) -> None:
        """Called with the headers of every reply, before its body is read."""
        encoding = response.headers.get("content-encoding", "identity").lower()
        if encoding != "identity":
            # A few bytes may unpack to gigabytes; nothing was said to take them.
            raise SendingFailedError(
                f"{response.status_code} with a compressed body ({encoding[:20]!r}), not asked for"
            )
        asked_by = response.request.headers.get(_KEY_HEADER, "")
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _CheckedStream(response.stream, self._seen, asked_by, response.status_code)


class _SeenBodies:
    """Which question each of the last replies belonged to.

    A server or proxy may send a reply twice over one connection; the second would then be read as the reply to the next
    question on it. Two questions never get the same bytes, which carry an id and a time.
    """

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._asked_by: OrderedDict[bytes, str] = OrderedDict()

    def belongs_to_another(self, digest: bytes, asked_by: str) -> bool:
        """Whether the reply is known as the reply to another question."""
        return self._asked_by.get(digest, asked_by) != asked_by

    def add(self, digest: bytes, asked_by: str) -> None:
        """Remembers a whole reply."""
        self._asked_by[digest] = asked_by
        if len(self._asked_by) > self._most:
            self._asked_by.popitem(last=False)


class _CheckedStream(httpx2.AsyncByteStream):
    """A body's stream with a cap, which fails as soon as the body turns out to be another question's reply."""

    def __init__(self, stream: httpx2.AsyncByteStream, seen: _SeenBodies, asked_by: str, status: int) -> None:
        self._stream, self._seen, self._asked_by, self._status = stream, seen, asked_by, status

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size, content = 0, hashlib.sha256()
        async for chunk in self._stream:
            size += len(chunk)
            content.update(chunk)
            if size > MAX_BODY_BYTES:
                raise SendingFailedError(f"{self._status} with a body of more than {MAX_BODY_BYTES} bytes")
            if self._status == 200 and self._seen.belongs_to_another(content.digest(), self._asked_by):
                # Before the end of the message is read, so that the connection, now one reply behind, is closed.
                raise SendingFailedError("the connection repeated the reply to another question")
            yield chunk
        if self._status == 200:
            self._seen.add(content.digest(), self._asked_by)

    async def aclose(self) -> None:
        """Closes the stream below."""
        await self._stream.aclose()


def _silence_loggers() -> None:
    """Keeps the libraries' loggers above the levels at which they write about every request.

    They write addresses and the headers of replies, in which a server may repeat what it was sent.
    """
    known = [name for name in logging.root.manager.loggerDict if name.startswith(tuple(f"{top}." for top in _CHATTY))]
    for name in (*_CHATTY, *known):
        logger = logging.getLogger(name)
        if logger.getEffectiveLevel() < logging.WARNING:
            logger.setLevel(logging.WARNING)
