"""The values that pass between the parts of mulcot: posts, rationales and answers.

Everything here is a frozen dataclass without behaviour of its own beyond serialisation. This module imports nothing
else of the project, so every layer may use it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal, Protocol, runtime_checkable

Task = Literal["reasoning", "classification"]
Setting = Literal["msc", "masc"]
Split = Literal["train", "val", "test"]
Source = Literal["teacher-predicted", "teacher-explained", "assistant"]

TASKS: Final[tuple[Task, ...]] = ("reasoning", "classification")
SPLITS: Final[tuple[Split, ...]] = ("train", "val", "test")
DEFAULT_LABELS: Final[tuple[str, ...]] = ("positive", "neutral", "negative")
_encoded: Final = json.JSONEncoder(ensure_ascii=False).encode  # `json.dumps` would make an encoder for each value


class InputError(ValueError):
    """Something a user gave is wrong: the message is one line that says what, where, and what would be right.

    The command line prints it without a traceback and leaves with `exit_code`.
    """

    exit_code = 1


class MissingInputError(InputError):
    """A stage lacks what an earlier stage makes: the message names the path and the command that makes it."""

    exit_code = 2


@runtime_checkable
class StoredPicture(Protocol):
    """A picture that lies in a table instead of a file of its own; `str()` of it names the place."""

    def read_bytes(self) -> bytes:
        """The encoded picture (JPEG, PNG, ...)."""
        ...


@dataclass(frozen=True, slots=True)
class Post:
    """One post of a data set, seen from one aspect where the data set has aspects."""

    id: str
    """Unique within the data set; rationales and soft labels refer to it."""
    text: str
    """What the author wrote, unchanged (placeholders such as `$T$` already filled in)."""
    image: Path | StoredPicture
    """The picture's file, or where its bytes are. It is decoded when it is needed, not when the post is read."""
    aspect: str | None = None
    """The target of the sentiment (MASC); None when the whole post is judged (MSC)."""
    label: str | None = None
    """The gold label, one of the data set's labels; None when it is not known."""
    slices: tuple[tuple[str, str], ...] = ()
    """Groups that the post belongs to, each as what it is a group of and which one (`("conflict", "yes")`). Results
    are told by them; no model sees them."""

    @property
    def setting(self) -> Setting:
        """`masc` for a post with an aspect, else `msc`."""
        return "msc" if self.aspect is None else "masc"


@dataclass(frozen=True, slots=True)
class Rationale:
    """The five fields of a chain of thought, in the order in which a model writes them."""

    text_analysis: str
    """What the text alone says of the sentiment."""
    image_analysis: str
    """What the picture alone says of it."""
    conflict_resolution: str
    """Whether the two disagree and which of them counts."""
    final_conclusion: str
    """The reasons put together."""
    prediction: str
    """The label that follows."""

    def to_json(self) -> str:
        """The rationale as the target text of the reasoning task: one JSON object with the five keys in fixed order."""
        return _encoded({key: getattr(self, name) for key, name in RATIONALE_KEYS.items()})


RATIONALE_KEYS: Final[dict[str, str]] = {
    field.name[0].upper() + field.name[1:]: field.name for field in fields(Rationale)
}
"""The keys of a written rationale (`Text_analysis`, ...) and the attribute that each one fills, in fixed order."""


def prediction_json(label: str) -> str:
    """The target text of the classification task: a JSON object that holds the Prediction alone."""
    return _encoded({"Prediction": label})


@dataclass(frozen=True, slots=True)
class RationaleRecord:
    """One accepted rationale and where it came from: a line of a rationale file."""

    post_id: str
    """The post that it explains."""
    rationale: Rationale
    """The five fields."""
    source: Source
    """Whether the teacher found the label itself, explained a given one, or the assistant wrote it."""
    model: str
    """The name of the model that wrote it."""
    prompt_hash: str
    """The hash of the prompt that it answers."""
    attempts: int = 1
    """How many replies were asked for until this one was accepted."""
    prompt_tokens: int = 0
    """Tokens read, over all attempts; 0 where the source does not count."""
    completion_tokens: int = 0
    """Tokens written, over all attempts; 0 where the source does not count."""

    def to_json(self) -> str:
        """The record as one line of JSON, the rationale's five keys spelt as a model writes them."""
        values = {name: getattr(self, name) for name in self.__slots__}
        values["rationale"] = {key: getattr(self.rationale, name) for key, name in RATIONALE_KEYS.items()}
        return _encoded(values)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RationaleRecord:
        """The record that `to_json` wrote, parsed.

        Raises:
            KeyError: a key is missing.
            TypeError: a key is unknown.
        """
        written = values["rationale"]
        rationale = Rationale(**{name: written[key] for key, name in RATIONALE_KEYS.items()})
        return cls(**{**values, "rationale": rationale})


@dataclass(frozen=True, slots=True)
class Answer:
    """What a trained model says of one post."""

    post_id: str
    """The post that was asked about."""
    label: str
    """The classification branch's answer: the most probable label."""
    probabilities: dict[str, float]
    """The probability of every label; they sum to 1."""
    rationale: Rationale | None
    """The reasoning branch's answer, None when it could not be parsed or was not asked for."""
    reply: str
    """The reasoning branch's reply as it was written, whatever it was."""
    refusal: str
    """Why the reply is not a rationale; empty when it is one."""
