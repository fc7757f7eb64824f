"""What a cache holds of each token, and by what a response is found in it."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor

from mulcot.losses import Sampled, TopK, ViewKind
from mulcot.losses.views import check_temperature, same_temperature
from mulcot.rows import TextRow
from mulcot.types import InputError, Task

SoftLabelKind = Literal["top_k", "sampled"]
CachedView = TopK | Sampled
Key = tuple[str, str, str, str]
"""Post id, task, digest of the response's token ids, digest of its prompt."""

_MAX_DRAWS: Final = torch.iinfo(torch.int16).max


@dataclass(frozen=True, slots=True)
class SoftLabelForm:
    """What a cache holds of each token: its k likeliest ids and a tail, or ids that were drawn.

    Raises:
        InputError: the kind is not known, or a number is not possible.
    """

    kind: SoftLabelKind
    """`top_k` or `sampled`: the view that a cache of this form gives."""
    temperature: float
    """The T that it serves; `top_k` serves T=1 as well."""
    k: int | None = None
    """Ids a token of `top_k`."""
    draws: int | None = None
    """Draws a token of `sampled`."""
    seed: int | None = None
    """Decides the draws of `sampled`, with post, task and response."""

    def __post_init__(self) -> None:
        try:
            check_temperature(self.temperature)
        except InputError as error:
            raise InputError(f"soft_label_{error}") from None
        if self.kind not in get_args(SoftLabelKind):
            raise InputError(f"soft_label_form: {self.kind!r} is not known; it is one of {get_args(SoftLabelKind)}")
        if self.kind == "top_k" and (self.k is None or self.k < 1):
            raise InputError(f"soft_label_k: {self.k} ids a token are not possible; it must be 1 or more")
        if self.kind == "sampled" and (self.draws is None or not 1 <= self.draws <= _MAX_DRAWS):
            raise InputError(f"soft_label_draws: {self.draws} draws a token; it must be between 1 and {_MAX_DRAWS}")

    @classmethod
    def top_k(cls, k: int, temperature: float) -> SoftLabelForm:
        """The k likeliest ids of each token."""
        return cls("top_k", float(temperature), k=k)

    @classmethod
    def sampled(cls, draws: int, temperature: float, seed: int = 0) -> SoftLabelForm:
        """Ids drawn from the assistant's distribution at T."""
        return cls("sampled", float(temperature), draws=draws, seed=seed)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> SoftLabelForm:
        """The form that `settings` described."""
        return cls(values["kind"], values["temperature"], values["k"], values["draws"], values["seed"])

    def settings(self) -> dict[str, Any]:
        """The form as JSON values."""
        return {
            "kind": self.kind,
            "temperature": self.temperature,
            "k": self.k,
            "draws": self.draws,
            "seed": self.seed,
        }

    def generator(self, post_id: str, task: Task, response: str, device: torch.device | str = "cpu") -> torch.Generator:
        """What decides the draws of a response: the form's seed, post, task and the response's digest alone.

        Every kind of device has random numbers of its own.
        """
        content = f"{self.seed}/{post_id}/{task}/{response}"
        seed = int.from_bytes(hashlib.sha256(content.encode()).digest()[:7])
        return torch.Generator(device).manual_seed(seed)

    def view(self, logits: Tensor, generator: torch.Generator) -> CachedView:
        """The view of the assistant's logits `[tokens, vocab]`.

        Raises:
            InputError: there are fewer ids than `k`.
        """
        if self.kind == "top_k":
            return TopK.from_logits(logits, self.k or 0, self.temperature)
        return Sampled.from_logits(logits, self.draws or 0, self.temperature, generator)


@dataclass(frozen=True, slots=True)
class SoftLabelDescription:
    """What a finished cache says of itself in its manifest."""

    folder: Path
    """Where it lies."""
    form: SoftLabelForm
    """What it holds of each token."""
    vocab_rows: int | None
    """The ids that there were to choose from, 0 to `vocab_rows` - 1."""
    fingerprint: Mapping[str, str]
    """What the soft labels depend on beside prompts and responses, each with a hash."""
    tokens: int
    """Response tokens in it."""

    @property
    def kind(self) -> SoftLabelKind:
        """The view that it gives."""
        return self.form.kind

    @property
    def temperature(self) -> float:
        """The T that it serves."""
        return self.form.temperature

    @property
    def k(self) -> int | None:
        """Ids a token; None when they were drawn."""
        return self.form.k

    def check_serves(self, loss: str, kinds: Collection[ViewKind], temperature: float) -> None:
        """Refuse a loss that this cache cannot serve, before the first step.

        Args:
            loss: its name, for the message.
            kinds: the views that it takes.
            temperature: its T.

        Raises:
            InputError: the loss takes none of the views that the cache gives, or at another T.
        """
        if self.kind not in kinds:
            raise InputError(
                f"the loss {loss} takes {' or '.join(sorted(kinds))} soft labels and the cache {self.folder} holds "
                f"{self.kind} ones: make another cache (`mulcot predict --config soft_labels.yaml --stage NAME "
                f"--model.init_args.soft_label_form=...`), or take another loss"
            )
        serves = {self.temperature, 1.0} if self.kind == "top_k" else {self.temperature}
        if not any(same_temperature(temperature, each) for each in serves):
            raise InputError(
                f"the loss {loss} has T={temperature:g} and the cache {self.folder} serves "
                f"{' and '.join(f'T={each:g}' for each in sorted(serves, reverse=True))}: set "
                f"--losses.{loss}.init_args.temperature={self.temperature:g}, or make a cache for it (`mulcot predict "
                f"--config soft_labels.yaml --stage NAME --model.init_args.soft_label_temperature={temperature:g}`)"
            )


def response_digest(response_ids: Sequence[int]) -> str:
    """A short digest of a response's token ids; it only tells apart the responses of one post and task."""
    return hashlib.sha256(struct.pack(f"<{len(response_ids)}q", *response_ids)).hexdigest()[:16]


def prompt_digest(row: TextRow) -> str:
    """A short digest of what a row's response answers: the prompt with the post's text, and the picture's bytes.

    Raises:
        OSError: the picture's file cannot be read.
    """
    content = hashlib.sha256(row.head.encode())
    content.update(struct.pack(f"<{len(row.tail_ids)}q", *row.tail_ids))
    content.update(row.post.image.read_bytes())
    return content.hexdigest()[:16]
