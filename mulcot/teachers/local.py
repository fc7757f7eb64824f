"""A Hugging Face vision-language model in this process as a teacher."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mulcot.teachers.base import TeacherReply, TeacherRequest, TeacherSilentError
from mulcot.teachers.gathering import Gatherer
from mulcot.types import InputError

if TYPE_CHECKING:
    from mulcot.teachers.local_model import LocalModel


class LocalTeacher:
    """Asks a model on this machine; requests that come at the same time are answered in one batch.

    A reply depends on the request alone, not on its batch (up to the rounding of the model's arithmetic). The model is
    loaded for the first request, so a run that finds all replies in its store never loads it.

    Args:
        pretrained: A Hugging Face folder, a finished stage of a run, a Lightning checkpoint, or a name on the hub.
        name: As it goes into the rationale records; None takes the hub's name, or the folder's.
        max_new_tokens: Where a reply is cut off at the latest; one that was cut off is refused by the stage.
        temperature: Above 0, replies are sampled. 0 takes the likeliest token each time, which is the same reply
            every time: then there is none to a re-ask or to a further sample of a post.
        seed: Of the sampling.
        batch_size: The most requests that are answered at once; model.init_args.concurrency should be at least twice
            as large, so that a next batch waits when one is done.
        batch_wait_ms: How long the first request of a batch waits for others, in milliseconds.
        dtype: Of the weights.
        device: `cpu`, `cuda`, ..., or `auto`.
        max_pixels: The most pixels (width times height) of a picture; larger ones are shrunk. None leaves it to the
            model's own limit.
        image_size: Width and height that every picture is squeezed to. None keeps its shape, or takes the size that
            a model of mulcot's was trained with.
        attention: Transformers' attention implementation (`sdpa`, `eager`, `flash_attention_2`).
        trust_remote_code: Runs code that comes with the model; only for a model that you have read.

    Raises:
        MissingInputError: There is no such model.
        InputError: A number is out of its range, or the hub's model cannot be fetched.
    """

    def __init__(
        self,
        pretrained: str,
        name: str | None = None,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        seed: int = 0,
        batch_size: int = 8,
        batch_wait_ms: float = 50.0,
        dtype: Literal["float32", "bfloat16"] = "float32",
        device: str = "auto",
        max_pixels: int | None = None,
        image_size: tuple[int, int] | None = None,
        attention: str = "sdpa",
        trust_remote_code: bool = False,
    ) -> None:
        _check_at_least(1, max_new_tokens=max_new_tokens, batch_size=batch_size, max_pixels=max_pixels)
        _check_at_least(0, temperature=temperature, batch_wait_ms=batch_wait_ms)
        if max_pixels is not None and image_size is not None:
            raise InputError("teacher.init_args: max_pixels and image_size both set the picture's size; give only one")
        # Imported here: torch and transformers take seconds, which a run with another teacher need not spend.
        from mulcot.teachers.local_model import LocalModelSettings, weights_digest

        self._settings = LocalModelSettings(
            pretrained,
            max_new_tokens,
            temperature,
            seed,
            dtype,
            device,
            max_pixels,
            image_size,
            attention,
            trust_remote_code,
        )
        self._name = name or _readable_name(pretrained)
        self._weights = weights_digest(pretrained, trust_remote_code)
        self._model: LocalModel | None = None
        self._gatherer = Gatherer(self._write, batch_size, batch_wait_ms / 1000)

    @property
    def name(self) -> str:
        """The model's name."""
        return self._name

    @property
    def parameters(self) -> Mapping[str, str | int | float]:
        """The weights and how they are used; batches, device and attention only change the rounding."""
        given = self._settings
        size = "x".join(map(str, given.image_size or ()))
        return {
            "weights": self._weights,
            "dtype": given.dtype,
            "max_new_tokens": given.max_new_tokens,
            "temperature": given.temperature,
            "seed": given.seed if given.temperature else 0,
            "max_pixels": given.max_pixels or 0,
            "image_size": size,
        }

    async def complete(self, request: TeacherRequest) -> TeacherReply:
        """Answers one request, in a batch with others that are waiting.

        Raises:
            TeacherSilentError: The same reply would come again: temperature is 0 and this was asked before.
            InputError: The picture cannot be read, the model cannot be loaded, or there is too little memory.
        """
        if not self._settings.temperature and (request.attempt or request.sample):
            raise TeacherSilentError("at temperature 0 the model writes the same reply every time")
        return await asyncio.wrap_future(self._gatherer.ask(request))

    async def close(self) -> None:
        """Ends the thread, at the next token where it is writing, and gives the model's memory back."""
        await asyncio.to_thread(self._gatherer.close)
        self._model = None

    def _write(
        self, requests: Sequence[TeacherRequest], nobody_waits: Callable[[], bool]
    ) -> Sequence[TeacherReply | Exception]:
        """Answers a batch, in the gatherer's thread."""
        from mulcot.teachers.local_model import LocalModel

        if self._model is None:
            self._model = LocalModel(self._settings)
        return self._model.write(requests, nobody_waits)


def _check_at_least(least: int, **given: float | None) -> None:
    for key, value in given.items():
        if value is not None and not least <= value < math.inf:
            raise InputError(f"teacher.init_args.{key}: must be {least} or more, is {value}")


def _readable_name(pretrained: str) -> str:
    """The hub's name as it is; of a path the last part that says something."""
    path = Path(pretrained)
    if not path.exists():
        return pretrained
    path = path.resolve()
    return path.parent.name if path.name == "model" else path.name
