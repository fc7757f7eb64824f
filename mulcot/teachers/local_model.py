"""A vision-language model that answers teacher requests in batches; all that needs torch, apart from `LocalTeacher`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from mulcot.generation import SeededSampler, decode_ids
from mulcot.manifests import digest
from mulcot.memory import is_out_of_memory
from mulcot.models import DType, ModelSource, bases, find_model, load_model, load_processor, read_settings, row_form
from mulcot.rows import RowCollator, RowEncoder, TextRow
from mulcot.shown_text import first_line
from mulcot.teachers.base import Finish, TeacherReply, TeacherRequest
from mulcot.types import InputError


@dataclass(frozen=True, slots=True)
class LocalModelSettings:
    """What `LocalTeacher` was given; see there."""

    pretrained: str
    max_new_tokens: int
    temperature: float
    seed: int
    dtype: DType
    device: str
    max_pixels: int | None
    image_size: tuple[int, int] | None
    attention: str
    trust_remote_code: bool


class LocalModel:
    """A loaded model. One thread at a time may use it.

    Args:
        settings: Which model, where, and how it writes.

    Raises:
        InputError: The model cannot be loaded, is no vision-language model with a chat template, or does not fit.
    """

    def __init__(self, settings: LocalModelSettings) -> None:
        self._settings = settings
        self._device = _device(settings.device)
        self._encoder = _load_encoder(settings)
        self._model = _load_weights(settings, self._device, self._encoder)
        self._collator = RowCollator(self._encoder, form=row_form(self._model))

    def write(
        self, requests: Sequence[TeacherRequest], nobody_waits: Callable[[], bool]
    ) -> list[TeacherReply | Exception]:
        """Answers requests in one batch.

        A reply is a function of its request alone, up to the rounding of the model's arithmetic.

        Args:
            requests: At least one.
            nobody_waits: Asked after every token; True gives up.

        Returns:
            For each request the reply, or the error of its picture.

        Raises:
            InputError: There is too little memory; says what to lower.
        """
        opened = [self._open(request) for request in requests]
        rows = [row for row in opened if isinstance(row, TextRow)]
        seeds = [
            content_seed(self._settings.seed, request)
            for request, row in zip(requests, opened, strict=True)
            if isinstance(row, TextRow)
        ]
        replies = iter(self._generate(rows, seeds, nobody_waits) if rows else [])
        self._collator.trim_pictures()
        return [next(replies) if isinstance(row, TextRow) else row for row in opened]

    def _open(self, request: TeacherRequest) -> TextRow | InputError:
        """The request's row, its picture decoded and kept for the batch; or what is wrong with the picture."""
        row = self._encoder.question(request.post, request.prompt)
        try:
            self._collator.batch([row])
        except InputError as error:  # concerns this request alone; the others of the batch are answered
            return error
        return row

    def _generate(
        self, rows: Sequence[TextRow], seeds: Sequence[int], nobody_waits: Callable[[], bool]
    ) -> list[TeacherReply]:
        temperature = self._settings.temperature
        sampler = SeededSampler(seeds, temperature) if temperature else None
        prompts = self._collator.tasks({"reasoning": rows})["reasoning"]
        try:
            written = decode_ids(
                self._model,
                prompts.to(self._device),
                self._encoder,
                self._settings.max_new_tokens,
                sampler,
                nobody_waits,
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(
                f"{self._settings.pretrained}: out of memory while writing {len(rows)} replies at once on "
                f"{self._device}: lower teacher.init_args.batch_size, max_new_tokens or max_pixels"
            ) from error
        return [self._reply(ids, count) for ids, count in zip(written, prompts.path_lengths(), strict=True)]

    def _reply(self, ids: Sequence[int], prompt_tokens: int) -> TeacherReply:
        finish: Finish = "stop" if self._encoder.is_ended(ids) else "length"
        return TeacherReply(self._encoder.decode(ids), prompt_tokens, len(ids), finish)


def content_seed(seed: int, request: TeacherRequest) -> int:
    """The seed of a request's sampling: a hash of all that tells it from other requests, ids and order apart.

    So posts of equal content get equal replies, as the label store takes for granted.
    """
    picture = hashlib.sha256(request.post.image.read_bytes()).hexdigest()
    content = json.dumps([seed, request.prompt.text, picture, request.sample, request.attempt])
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:7])


def weights_digest(pretrained: str, trust_remote_code: bool) -> str:
    """A name for the weights themselves, wherever they lie: a model that was trained again is another teacher.

    It covers the files of a folder (and of an adapter's base), a checkpoint, and the revision of a model on the hub.

    Raises:
        MissingInputError: There is no model.
        InputError: The hub's model is not in the cache and cannot be fetched.
    """
    parts = [_digest_of(source, trust_remote_code) for source in bases(find_model(pretrained))]
    return parts[0] if len(parts) == 1 else hashlib.sha256("/".join(parts).encode()).hexdigest()


def _digest_of(source: ModelSource, trust_remote_code: bool) -> str:
    if source.checkpoint is not None:
        return digest(source.checkpoint)
    if not source.on_hub:
        return digest(Path(source.name))
    try:
        config = AutoConfig.from_pretrained(source.name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise InputError(f"{source.name}: no model could be loaded ({first_line(error)})") from error
    return f"{source.name}@{config._commit_hash}"


def _load_encoder(settings: LocalModelSettings) -> RowEncoder:
    given = settings.pretrained
    try:
        processor = load_processor(given, trust_remote_code=settings.trust_remote_code)
        if getattr(processor, "image_processor", None) is None:
            raise InputError(f"{given}: the model takes no pictures; give a vision-language model")
        if settings.max_pixels is not None:
            _limit_pixels(processor, settings)
        image_size = settings.image_size
        if image_size is None and settings.max_pixels is None:
            image_size = read_settings(find_model(given)).image_size  # that which it was trained with
        return RowEncoder(processor, (), image_size)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(
            f"{given}: it has no usable processor ({first_line(error)}); give a vision-language model with a chat "
            "template"
        ) from error


def _limit_pixels(processor: Any, settings: LocalModelSettings) -> None:
    """Gives the processor another pixel budget."""
    size = processor.image_processor.size
    if not size or not size.get("shortest_edge") or not size.get("longest_edge"):
        raise InputError(
            f"{settings.pretrained}: its image processor has no pixel budget, so teacher.init_args.max_pixels has no "
            "meaning: leave it out, or give image_size"
        )
    least = min(int(size["shortest_edge"]), settings.max_pixels or 0)
    processor.image_processor.size = type(size)(shortest_edge=least, longest_edge=settings.max_pixels)


def _load_weights(settings: LocalModelSettings, device: torch.device, encoder: RowEncoder) -> nn.Module:
    given = settings.pretrained
    try:
        model = load_model(
            given,
            dtype=settings.dtype,
            attention=settings.attention,
            trust_remote_code=settings.trust_remote_code,
            processor=encoder.processor,
        )
        return model.eval().to(device)
    except InputError:
        raise
    except (RuntimeError, AssertionError, MemoryError) as error:
        if is_out_of_memory(error):
            raise InputError(
                f"{given}: the model in {settings.dtype} does not fit into the memory of {device}: take a smaller one "
                "or dtype bfloat16, or let a server hold it and ask that one"
            ) from error
        raise InputError(f"{given}: the model cannot be put on {device} ({first_line(error)})") from error
    except (ValueError, ImportError) as error:
        raise InputError(f"{given}: no vision-language model could be loaded ({first_line(error)})") from error


def _device(given: str) -> torch.device:
    """The device; under several processes of one machine, `auto` gives each its own."""
    if given != "auto":
        wrong = f"teacher.init_args.device: {given!r} is no device; give auto, cpu, cuda or cuda:1"
        try:
            device = torch.device(given)
        except RuntimeError as error:
            raise InputError(wrong) from error
        if str(device) != given:  # a number that is too large for torch becomes another one
            raise InputError(wrong)
        return device
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
