"""A teacher that replays recorded replies: rationales somebody already paid for, brought in through the same checks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mulcot.regular_files import open_regular
from mulcot.teachers.base import TeacherReply, TeacherRequest, TeacherSilentError
from mulcot.types import InputError


@dataclass(frozen=True, slots=True)
class _Recording:
    """One recorded reply and where it stands."""

    row: str
    reply: str
    label: str | None


class RecordedTeacher:
    """Answers `predict` with the reply recorded for the post's id, and is silent on everything else.

    Args:
        path: A JSON list of objects, or JSON Lines (UTF-8).
        id_field: The field with the post's id; a number counts as its digits.
        reply_field: The field with the reply as the model wrote it.
        name: The name of the model that wrote them, as it goes into the rationale records.
        label_field: The field with the gold label. A post whose gold label differs from its row's is an error: the
            recording then belongs to other posts that happen to have the same ids. Rows without a label are not
            compared; None compares no row.

    Raises:
        InputError: The file is absent, is not JSON, or a row has no usable field; says which file, row and field.
    """

    def __init__(
        self,
        path: Path,
        id_field: str = "id",
        reply_field: str = "cot",
        name: str = "recorded",
        label_field: str | None = "label",
    ) -> None:
        self.path = path
        self._name = name
        content = _read(path)
        self._recordings: dict[str, _Recording] = {}
        for where, row in _rows(path, content):
            post_id = _id(where, row, id_field)
            if post_id in self._recordings:
                first = self._recordings[post_id].row
                raise InputError(f"{where}, field {id_field!r}: {post_id!r} stands already in {first}; ids are unique")
            reply = _text(where, row, reply_field)
            label = None if label_field is None or row.get(label_field) is None else _id(where, row, label_field)
            self._recordings[post_id] = _Recording(where, reply, label)
        self._parameters = {
            "sha256": hashlib.sha256(content.encode()).hexdigest(),
            "id_field": id_field,
            "reply_field": reply_field,
        }

    @property
    def name(self) -> str:
        """The name of the model that wrote the replies."""
        return self._name

    @property
    def parameters(self) -> Mapping[str, str | int | float]:
        """The recording's hash and the fields that are read."""
        return self._parameters

    @property
    def answers_by_id(self) -> bool:
        """True: posts with equal content have recordings of their own."""
        return True

    async def complete(self, request: TeacherRequest) -> TeacherReply:
        """The recorded reply of the post.

        Raises:
            TeacherSilentError: There is no recording of this post, of an explanation or of a re-ask.
            InputError: The recording of this id was made for another gold label.
        """
        post = request.post
        recording = self._recordings.get(post.id)
        if recording is None:
            raise TeacherSilentError(f"no reply is recorded for post {post.id!r}")
        if None not in (recording.label, post.label) and recording.label != post.label:
            raise InputError(
                f"{recording.row}: the recording of post {post.id!r} was made for the label {recording.label!r}, but "
                f"the post's label is {post.label!r}: give the recording of this data set, or set label_field to null"
            )
        if request.use != "predict":
            raise TeacherSilentError("no explanations are recorded")
        if request.attempt > 0:
            raise TeacherSilentError("only one reply is recorded")
        return TeacherReply(recording.reply)


def _read(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return file.read().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot read the recorded replies: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: recorded replies must be UTF-8, byte {error.start} is not") from error


def _rows(path: Path, content: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of the file with the words that say where it stands (rows and lines count from 1)."""
    if content.lstrip().startswith("["):
        rows = ((f"{path}, row {number}", row) for number, row in enumerate(_parse(str(path), content), start=1))
    else:
        # Split at line feeds alone: other line ends that Python knows may stand inside a JSON string.
        lines = enumerate(content.split("\n"), start=1)
        rows = ((where := f"{path}, line {number}", _parse(where, line)) for number, line in lines if line.strip())
    for where, row in rows:
        if not isinstance(row, dict):
            raise InputError(f"{where}: must be a JSON object, is a {type(row).__name__}")
        yield where, row


def _parse(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        raise InputError(
            f"{where}: not JSON ({error.msg} at {line}column {error.colno}): "
            "recorded replies are a JSON list of objects, or JSON Lines"
        ) from error


def _id(where: str, row: dict[str, Any], field: str) -> str:
    """A field that names something: text, or a whole number."""
    value = row.get(field)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise InputError(f"{where}, field {field!r}: must be text or a whole number, {_found(row, field)}")
    return str(value)


def _text(where: str, row: dict[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise InputError(f"{where}, field {field!r}: must be the reply as text, {_found(row, field)}")
    return value


def _found(row: dict[str, Any], field: str) -> str:
    return f"is {row[field]!r}" if field in row else f"is missing (fields here: {', '.join(map(repr, row)) or 'none'})"
