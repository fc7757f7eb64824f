"""Prediction files: what a trained model answered to the posts of a split, one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mulcot.files import write_atomic
from mulcot.regular_files import open_regular
from mulcot.types import RATIONALE_KEYS, Answer, InputError, MissingInputError, Post, Rationale

FIT_PREDICTIONS: Final = "predictions.jsonl"
"""What a fit's best epoch answers to the test posts, beside its `metrics.json`."""
MAX_LINE: Final = 4 << 20
"""Bytes of a prediction; a post and a reply of the longest take a tenth of it."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model answered to a post, with what a reader needs to judge it."""

    answer: Answer
    """The label, its probabilities, the rationale and the reply."""
    gold: str | None
    """The gold label; None where it is not known."""
    text: str
    """The post's text."""
    aspect: str | None
    """Its aspect; None when the whole post is judged."""
    image: str
    """Its picture's file, or the place in a table where the picture lies."""
    slices: dict[str, str] = field(default_factory=dict)
    """Groups that the post belongs to, by what they are groups of, such as `conflict` → `yes`."""

    @classmethod
    def of(cls, post: Post, answer: Answer) -> Prediction:
        """What was answered to a post."""
        return cls(answer, post.label, post.text, post.aspect, str(post.image), dict(post.slices))

    def to_json(self) -> str:
        """One line of a prediction file, the rationale's five keys spelt as a model writes them."""
        answer = self.answer
        written = answer.rationale and {key: getattr(answer.rationale, name) for key, name in RATIONALE_KEYS.items()}
        values = {
            "post_id": answer.post_id,
            "gold": self.gold,
            "label": answer.label,
            "probabilities": answer.probabilities,
            "rationale": written,
            "reply": answer.reply,
            "refusal": answer.refusal,
            "text": self.text,
            "aspect": self.aspect,
            "image": self.image,
            "slices": self.slices,
        }
        return json.dumps(values, ensure_ascii=False)


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """Writes a prediction file, whole or not at all."""
    write_atomic(path, "".join(prediction.to_json() + "\n" for prediction in predictions))


def read_predictions(path: Path) -> list[Prediction]:
    """The predictions of a file, in its order.

    Raises:
        MissingInputError: there is no such file.
        InputError: a line is not a prediction, or a post occurs twice; the message names file, line and field.
    """
    found: dict[str, int] = {}
    predictions = []
    for number, line in _lines(path):
        if not line.strip():
            continue
        prediction = _parsed(path, number, line)
        post_id = prediction.answer.post_id
        if post_id in found:
            raise InputError(f"{path}, line {number}: post_id {post_id!r} stands in line {found[post_id]} already")
        found[post_id] = number
        predictions.append(prediction)
    return predictions


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers; one after the other, so that no file takes more than what it holds."""
    try:
        with open_regular(path) as file:
            # Only line feeds end a line: a text may hold other characters that `splitlines` knows.
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), start=1):
                if len(line) > MAX_LINE:
                    raise InputError(
                        f"{path}, line {number}: it has more than {MAX_LINE} bytes, which no prediction has"
                    )
                yield number, line.decode("utf-8").removesuffix("\n")
    except FileNotFoundError as error:
        raise MissingInputError(f"{path}: there is no such file; `mulcot test` writes predictions") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: it cannot be read ({error}); give a prediction file in UTF-8") from error
    except OSError as error:
        raise InputError(f"{path}: it cannot be read ({error.strerror}); give a prediction file in UTF-8") from error


Share = Annotated[float, Field(ge=0, le=1)]


class _Line(BaseModel):
    """A line as it is written."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    post_id: str
    gold: str | None
    label: str
    probabilities: dict[str, Share]
    rationale: dict[str, str] | None
    reply: str
    refusal: str
    text: str
    aspect: str | None
    image: str
    slices: dict[str, str] = Field(default_factory=dict)


_KEYS: Final = frozenset(RATIONALE_KEYS)


def _parsed(path: Path, number: int, line: str) -> Prediction:
    try:
        values = _Line.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"]) or "the line"
        raise InputError(f"{path}, line {number}: {name}: {' '.join(first['msg'].split())}") from error
    rationale = None
    if values.rationale is not None:
        if values.rationale.keys() != _KEYS:
            raise InputError(f"{path}, line {number}: rationale: its keys must be {', '.join(RATIONALE_KEYS)}")
        rationale = Rationale(**{name: values.rationale[key] for key, name in RATIONALE_KEYS.items()})
    answer = Answer(values.post_id, values.label, values.probabilities, rationale, values.reply, values.refusal)
    return Prediction(answer, values.gold, values.text, values.aspect, values.image, values.slices)
