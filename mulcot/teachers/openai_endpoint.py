"""A teacher behind an OpenAI-compatible endpoint: OpenAI itself, vLLM, `transformers serve` and many others."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

from PIL import Image

from mulcot.images import load_image
from mulcot.teachers.base import TeacherReply, TeacherRequest, TeacherStoppedError
from mulcot.teachers.endpoint_address import ApiKey, check_base_url, read_key
from mulcot.teachers.endpoint_replies import read_reply
from mulcot.teachers.limits import Prices
from mulcot.teachers.rate_limit import RateLimit
from mulcot.teachers.transport import Transport
from mulcot.types import DEFAULT_LABELS, RATIONALE_KEYS, InputError, StoredPicture

if TYPE_CHECKING:
    from mulcot.teachers.endpoint_client import EndpointClient

_VERSION: Final = 1
"""Part of the parameters: a change of what is sent makes other replies, so stored ones must not stand for them."""
_JPEG_QUALITY: Final = 90


class OpenAITeacher:
    """Asks a model behind an OpenAI-compatible endpoint, with the post's picture in the request.

    Args:
        base_url: The endpoint without the route, like `https://api.openai.com/v1`; `http://` for this machine alone.
        model: The model's name at the endpoint.
        api_key_env: The environment variable that holds the key, never the key itself; null where none is needed.
        labels: The labels of the data set, for `structured`.
        structured: `json_schema` has the server hold the reply to the five fields, the rationale before the label;
            `off` relies on the prompt. The reply is validated either way.
        max_pixels: A larger picture is made smaller before it is sent; null sends no picture.
        temperature: The sampling temperature; null leaves it to the server.
        top_p: The share of probability that is sampled from; null leaves it to the server.
        max_tokens: The longest reply.
        max_tokens_name: What the endpoint calls that; newer models of OpenAI take `max_completion_tokens` only.
        seed: The seed of the sampling, to which re-asks and further samples add; null sends none.
        reply_model: The model's name in the replies, where it is neither `model` nor a dated snapshot of it.
        price_per_million_prompt: US dollars for a million tokens read; null where it is not known.
        price_per_million_completion: US dollars for a million tokens written; null where it is not known.
        concurrency: How many requests may be under way at once.
        deadline: Seconds for one sending, to the last byte of the reply.
        max_retries: How often one question is sent again.
        max_backoff: The longest back-off in seconds, where the endpoint does not say how long to wait.
        longest_wait: The longest wait in seconds that the endpoint may ask for; a longer one pauses the run.
        give_up_after: The run is paused after so many questions in a row without any reply.

    Raises:
        InputError: The address, the key or a number cannot be right. No message shows the key.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key_env: str | None = "OPENAI_API_KEY",
        labels: Sequence[str] = DEFAULT_LABELS,
        structured: Literal["json_schema", "off"] = "json_schema",
        max_pixels: int | None = 1_003_520,
        temperature: float | None = 0.7,
        top_p: float | None = None,
        max_tokens: int = 1024,
        max_tokens_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        seed: int | None = 0,
        reply_model: str | None = None,
        price_per_million_prompt: float | None = None,
        price_per_million_completion: float | None = None,
        concurrency: int = 64,
        deadline: float = 120.0,
        max_retries: int = 8,
        max_backoff: float = 30.0,
        longest_wait: float = 600.0,
        give_up_after: int = 5,
    ) -> None:
        self._base_url = check_base_url(base_url)
        self._key = read_key(api_key_env)
        _check_numbers(
            positive={
                "max_pixels": max_pixels,
                "max_tokens": max_tokens,
                "concurrency": concurrency,
                "deadline": deadline,
                "give_up_after": give_up_after,
            },
            others={
                "temperature": temperature,
                "top_p": top_p,
                "max_retries": max_retries,
                "max_backoff": max_backoff,
                "longest_wait": longest_wait,
                "price_per_million_prompt": price_per_million_prompt,
                "price_per_million_completion": price_per_million_completion,
            },
        )
        if not model.strip():
            raise InputError("model: is empty; give the model's name at the endpoint")
        self._model = model
        self._reply_model = reply_model or model
        self._max_pixels = max_pixels
        self._seed = seed
        sampling = {"temperature": temperature, "top_p": top_p, max_tokens_name: max_tokens}
        self._sampling = {name: value for name, value in sampling.items() if value is not None}
        self._response_format = _response_format(labels) if structured == "json_schema" else None
        self._prices = _prices(price_per_million_prompt, price_per_million_completion)
        self._concurrency = concurrency
        self._transport_settings = {
            "deadline": deadline,
            "max_retries": max_retries,
            "max_backoff": max_backoff,
            "longest_wait": longest_wait,
            "give_up_after": give_up_after,
        }
        self._session: _Session | None = None
        self._stopped = False

    @property
    def name(self) -> str:
        """The model's name at the endpoint."""
        return self._model

    @cached_property
    def parameters(self) -> Mapping[str, str | int | float]:
        """The endpoint, the sampling and everything else that a reply depends on; never the key."""
        parts = urlsplit(self._base_url)
        optional = {"seed": self._seed, "max_pixels": self._max_pixels}
        return {
            "openai_teacher": _VERSION,
            "endpoint": parts.netloc + parts.path,
            "response_format": "off" if self._response_format is None else json.dumps(self._response_format),
            **self._sampling,
            **{name: value for name, value in optional.items() if value is not None},
        }

    @property
    def costs(self) -> bool:
        """True: requests may cost money, so the run shows an estimate and asks before the first."""
        return True

    @property
    def prices(self) -> Prices | None:
        """What tokens cost; None where that was not given."""
        return self._prices

    async def complete(self, request: TeacherRequest) -> TeacherReply:
        """Asks the endpoint, as often as it takes.

        Raises:
            TeacherSilentError: The endpoint refuses this question.
            TeacherUnavailableError: All retries were in vain, or it would have to be sent again after `stop`.
            TeacherStoppedError: It would have to be sent after `stop`.
            TeacherPausedError: The quota is exhausted, the endpoint asks for a very long wait or is down.
            InputError: The key, the model, the address, the parameters or the post's picture is wrong.
        """
        # A picture takes milliseconds to decode and to encode: in a thread, so that replies are read meanwhile.
        # It is encoded for each question anew: most posts are asked about once, and 1 MB a post adds up.
        body = self._body(request) if self._max_pixels is None else await asyncio.to_thread(self._body, request)
        key = request.idempotency_key or hashlib.sha256(body).hexdigest()
        if self._stopped:
            raise TeacherStoppedError("the run was stopped before this was sent")
        session = self._current_session()

        async def send() -> TeacherReply:
            return read_reply(await session.client.send(body, key), self._reply_model, self._key.redact)

        return await session.transport.ask(key, send)

    def stop(self) -> None:
        """Sends nothing any more until `close`; may be called from any thread."""
        self._stopped = True
        session = self._session
        if session is not None and not session.loop.is_closed():
            session.loop.call_soon_threadsafe(session.transport.stop)

    async def close(self) -> None:
        """Closes the connections; the next `complete` opens new ones."""
        session, self._session = self._session, None
        self._stopped = False
        if session is not None:
            await session.client.close()

    def __repr__(self) -> str:
        return f"OpenAITeacher(base_url={self._base_url!r}, model={self._model!r})"

    def _current_session(self) -> _Session:
        """What belongs to the running event loop: connections, rate and counters."""
        loop = asyncio.get_running_loop()
        if self._session is None or self._session.loop is not loop:
            self._session = _Session(self._base_url, self._key, self._concurrency, loop, self._transport_settings)
        return self._session

    def _body(self, request: TeacherRequest) -> bytes:
        """The request for a chat completion."""
        content: list[dict[str, Any]] = [{"type": "text", "text": request.prompt.text}]
        if self._max_pixels is not None:
            picture = {"url": picture_url(request.post.image, self._max_pixels)}
            content.insert(0, {"type": "image_url", "image_url": picture})
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": content}],
            **self._sampling,
        }
        if self._seed is not None:
            body["seed"] = self._seed + request.attempt + 1000 * request.sample
        if self._response_format is not None:
            body["response_format"] = self._response_format
        return json.dumps(body).encode()


class _Session:
    """One event loop's connections to the endpoint."""

    def __init__(
        self, base_url: str, key: ApiKey, concurrency: int, loop: asyncio.AbstractEventLoop, settings: dict[str, Any]
    ) -> None:
        from mulcot.teachers.endpoint_client import EndpointClient

        self.loop = loop
        self.client: EndpointClient = EndpointClient(base_url, key)
        self.transport = Transport(base_url, RateLimit(concurrency), **settings)


def picture_url(picture: Path | StoredPicture, max_pixels: int) -> str:
    """A post's picture as a data URL: JPEG, at most so many pixels.

    Raises:
        InputError: The picture cannot be read.
    """
    image = load_image(picture)
    if image.width * image.height > max_pixels:
        shrink = math.sqrt(max_pixels / (image.width * image.height))
        size = max(1, int(image.width * shrink)), max(1, int(image.height * shrink))
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    written = BytesIO()
    image.save(written, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}"


def _response_format(labels: Sequence[str]) -> dict[str, Any]:
    """The five fields as a strict schema, in the order in which they are written: reasons first, then the label."""
    fields: dict[str, Any] = {key: {"type": "string"} for key in RATIONALE_KEYS}
    fields["Prediction"] = {"type": "string", "enum": list(labels)}
    schema = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "rationale", "strict": True, "schema": schema}}


def _prices(prompt: float | None, completion: float | None) -> Prices | None:
    if prompt is None and completion is None:
        return None
    if prompt is None or completion is None:
        raise InputError("price_per_million_prompt and price_per_million_completion: give both, or neither")
    return Prices(prompt, completion)


def _check_numbers(positive: Mapping[str, float | None], others: Mapping[str, float | None]) -> None:
    for name, value in positive.items():
        if value is not None and not value > 0:
            raise InputError(f"{name}: must be more than 0, is {value}")
    for name, value in others.items():
        if value is not None and not value >= 0:
            raise InputError(f"{name}: must be 0 or more, is {value}")
