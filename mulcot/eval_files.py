"""The files that `mulcot eval` takes: what kind each is, and what it says of every post.

A file is JSON Lines or one JSON list. Its first row tells its kind, by the first line of this table that fits:

| kind | its rows have | as predictions | as references |
|---|---|---|---|
| stage predictions | `probabilities` and `reply` | label, probabilities, reply, gold label | gold label |
| rationale file | `rationale` and `source` | Prediction | rationale |
| replies with gold labels | `cot` | Prediction of the reply | gold label (`label`), rationale of the reply |
| replies | `reply` | Prediction of the reply, or `label` where it is there | gold label (`gold`) |
| labels | `label` or `gold` | label (`label`) | gold label (`gold`, else `label`) |

A row names its post by `post_id` or `id`. Other keys are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from data_modules.rationales import read_record
from data_modules.readers.base import read_lines, read_text
from data_modules.readers.json_files import as_object, json_line, json_list
from data_modules.readers.row_log import Row, one_line, shown
from mulcot.predictions import Prediction, read_predictions
from mulcot.types import Answer, InputError, MissingInputError, Rationale

Kind = Literal["stage predictions", "rationale file", "replies with gold labels", "replies", "labels"]
_KEYS: Final[dict[Kind, tuple[str, ...]]] = {
    "stage predictions": ("probabilities", "reply"),
    "rationale file": ("rationale", "source"),
    "replies with gold labels": ("cot",),
    "replies": ("reply",),
}
RECORDED: Final = "recorded"
"""The source of a reference that does not say whether its writer knew the gold label."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A reference of a file that says nothing of where it came from."""

    post_id: str
    rationale: Rationale
    source: str = RECORDED


@dataclass(frozen=True, slots=True)
class Said:
    """What a prediction file says of a post."""

    row: Row
    label: str | None
    """The predicted label; None where none could be read."""
    answer: Answer
    """Its reply, rationale and refusal; its label is empty where the file has no classification answer of its own."""
    gold: str | None = None
    prediction: Prediction | None = None
    """The whole prediction, of a stage's file."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a reference file says of a post."""

    row: Row
    gold: str | None
    reference: Any = None
    """The rationale to compare with (see `mulcot.metrics.reasoning.Reference`); None where there is none."""


@dataclass(slots=True)
class EvalFile:
    """A file, its kind, and its rows with their posts' ids, each id once."""

    path: Path
    kind: Kind
    rows: dict[str, tuple[Row, dict[str, Any]]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The path as messages name it."""
        return one_line(self.path)


def read_eval_file(path: Path) -> EvalFile:
    """A file's rows, by post.

    Raises:
        MissingInputError: there is no such file.
        InputError: it holds no rows or none of a known kind, or a row names no post or one that was there already.
    """
    if not path.is_file():
        raise MissingInputError(f"{one_line(path)}: there is no such file")
    file: EvalFile | None = None
    for row, values in _objects(path):
        file = file or EvalFile(path, _kind(row, values))
        post_id = _post_id(row, values)
        if post_id in file.rows:
            raise row.error(
                _id_key(values), f"post {shown(post_id)} stands at {file.rows[post_id][0]}", "keep one of them"
            )
        file.rows[post_id] = (row, values)
    if file is None:
        raise InputError(f"{one_line(path)}: it holds no rows; write one JSON object a post")
    return file


def label_set(given: Sequence[str] | None, predictions: EvalFile, fallback: Sequence[str]) -> tuple[str, ...]:
    """The label set: the given one, else the labels that a stage's file has probabilities of, else the fallback."""
    if given:
        return tuple(given)
    if predictions.kind == "stage predictions":
        _, values = next(iter(predictions.rows.values()))
        if isinstance(values["probabilities"], dict) and len(values["probabilities"]) > 1:
            return tuple(values["probabilities"])
    return tuple(fallback)


def read_said(file: EvalFile, labels: Sequence[str]) -> dict[str, Said]:
    """What a file says of its posts, as predictions.

    Raises:
        InputError: a row lacks what its kind needs, or holds a label that is not of the set.
    """
    if file.kind == "stage predictions":
        made = {prediction.answer.post_id: prediction for prediction in read_predictions(file.path)}
        return {post_id: _stage(row, made[post_id], labels) for post_id, (row, _) in file.rows.items()}
    return {post_id: _said(file.kind, post_id, row, values, labels) for post_id, (row, values) in file.rows.items()}


def read_known(file: EvalFile, labels: Sequence[str]) -> dict[str, Known]:
    """What a file says of its posts, as references.

    Raises:
        InputError: a row lacks what its kind needs, or holds a label that is not of the set.
    """
    return {post_id: _known(file.kind, post_id, row, values, labels) for post_id, (row, values) in file.rows.items()}


def _objects(path: Path) -> Iterator[tuple[Row, dict[str, Any]]]:
    # Two readers, because a list is one value over many lines and a line says by itself where it is wrong.
    if read_text(path).lstrip().startswith("["):
        for row, entry in json_list(path):
            yield row, as_object(row, entry)
    else:
        for row, line in read_lines(path):
            yield row, json_line(row, line)


def _kind(row: Row, values: dict[str, Any]) -> Kind:
    for kind, keys in _KEYS.items():
        if all(key in values for key in keys):
            return kind
    if "label" in values or "gold" in values:
        return "labels"
    raise row.error(
        "label",
        f"there is none (keys here: {', '.join(map(shown, values)) or 'none'})",
        "give a prediction file of a stage, a rationale file, replies (`id` and `cot` or `reply`), or labels (`id` and "
        "`label`)",
    )


def _id_key(values: dict[str, Any]) -> str:
    return "post_id" if "post_id" in values else "id"


def _post_id(row: Row, values: dict[str, Any]) -> str:
    key = _id_key(values)
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        found = shown(value) if key in values else "missing"
        raise row.error(key, f"it is {found}", "name the post by a text or a whole number")
    return str(value)


def _stage(row: Row, prediction: Prediction, labels: Sequence[str]) -> Said:
    answer = prediction.answer
    for name, value in (("label", answer.label), ("gold", prediction.gold)):
        if value is not None:
            _check_label(row, name, value, labels)
    if answer.label not in answer.probabilities:
        raise row.error("probabilities", f"they name no {answer.label!r}", "give one for every label")
    return Said(row, answer.label, answer, prediction.gold, prediction)


def _said(kind: Kind, post_id: str, row: Row, values: dict[str, Any], labels: Sequence[str]) -> Said:
    if kind == "rationale file":
        told = read_record(row, values).rationale
        _check_label(row, "Prediction", told.prediction, labels)
        return Said(row, told.prediction, Answer(post_id, "", {}, told, told.to_json(), ""))
    if kind == "labels":
        return Said(row, _label(row, values, "label", labels, needed=True), Answer(post_id, "", {}, None, "", ""))
    reply = _text(row, values, "reply" if kind == "replies" else "cot")
    rationale, refusal = _rationale(reply, labels)
    own = _label(row, values, "label", labels) if kind == "replies" else None
    answer = Answer(post_id, own or "", {}, rationale, reply, refusal)
    gold = _label(row, values, "gold" if kind == "replies" else "label", labels)
    return Said(row, own or _prediction(reply, labels), answer, gold)


def _known(kind: Kind, post_id: str, row: Row, values: dict[str, Any], labels: Sequence[str]) -> Known:
    if kind == "rationale file":
        record = read_record(row, values)
        _check_label(row, "Prediction", record.rationale.prediction, labels)
        return Known(row, None, record)
    if kind == "replies with gold labels":
        written, _ = _rationale(_text(row, values, "cot"), labels)
        reference = None if written is None else Recorded(post_id, written)
        return Known(row, _label(row, values, "label", labels), reference)
    if kind == "labels" and "gold" not in values:
        return Known(row, _label(row, values, "label", labels, needed=True))
    return Known(row, _label(row, values, "gold", labels, needed=True))


def _rationale(reply: str, labels: Sequence[str]) -> tuple[Rationale | None, str]:
    from mulcot.generation.parsing import RationaleRefusedError, parse_rationale  # with generation comes torch

    try:
        return parse_rationale(reply, labels), ""
    except RationaleRefusedError as refused:
        return None, str(refused)


def _prediction(reply: str, labels: Sequence[str]) -> str | None:
    from mulcot.generation.parsing import RationaleRefusedError, parse_prediction

    try:
        return parse_prediction(reply, labels)
    except RationaleRefusedError:
        return None


def _text(row: Row, values: dict[str, Any], key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str):
        raise row.error(key, f"it is {shown(value) if key in values else 'missing'}", "give the reply as a text")
    return value


def _label(row: Row, values: dict[str, Any], key: str, labels: Sequence[str], *, needed: bool = False) -> str | None:
    """A label, None where it is null, which says that there is none."""
    if needed and key not in values:
        raise row.error(key, "it is missing", f"write one of {', '.join(labels)}, or null where there is none")
    value = values.get(key)
    if value is None:
        return None
    name = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    _check_label(row, key, name, labels)
    return str(name)


def _check_label(row: Row, key: str, value: Any, labels: Sequence[str]) -> None:
    if value not in labels:
        raise row.error(
            key, f"{shown(value)} is no label of the set", f"write one of {', '.join(labels)}, or give --labels"
        )
