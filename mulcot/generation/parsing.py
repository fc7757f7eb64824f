r"""Rationales out of replies: strict where the reply is JSON, tolerant of the forms that models write instead.

A reply is first searched for JSON objects that hold a rationale's keys. Where these do not hold a whole rationale, the
reply is cut at its keys: a key starts a field at the start of a line (`"Key": "value"`, `Key: value`, `### Key`,
`**Key:** value`, numbered or not), or inside a line when it is quoted and stands where JSON has a key. A key that comes
again belongs to the text around it, except that every Prediction is read and all must agree.

Everything here is linear in the reply's length: no pattern can match the same characters in more than one way over an
unbounded stretch, and the number of attempts to decode JSON is bounded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Final

from mulcot.types import RATIONALE_KEYS, Rationale

_PREDICTION: Final = "Prediction"
_KEY_BY_LETTERS: Final = {key.replace("_", "").casefold(): key for key in RATIONALE_KEYS}
_KEY_NAMES: Final = "|".join(key.replace("_", "[ _-]?") for key in RATIONALE_KEYS)
_KEY = re.compile(f"(?:{_KEY_NAMES})", re.IGNORECASE | re.ASCII)
_QUOTES: Final = {'"': '"', "'": "'", "\u201c": "\u201d", "`": "`"}

_OBJECT_START = re.compile(rf'\{{\s*"(?:{_KEY_NAMES})"', re.IGNORECASE | re.ASCII)
_MAX_OBJECTS: Final = 8
_BEFORE_KEY = re.compile(r"[\s>#*_+•\-\"'`\u201c{,(\[]*(?:\d{1,2}[.):]+[\s#*_\"'`\u201c]*)?")
_MAX_BEFORE_KEY: Final = 40
_AFTER_KEY = re.compile(
    r"[*_\"'`\u201d]*[ \t]*[:\uff1a](?:[*_]+(?=\s))?"  # a colon (or a full-width one), before or after what closes bold
    r"|[*_\"'`\u201d#]*[ \t]*(?=\n|\Z)"  # a key alone on its line
)
_AFTER_INLINE_KEY = re.compile(r"[\"'][ \t]*:")
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}(?:\\u[0-9a-fA-F]{4})*)')
_CLOSING_LINES: Final = frozenset({"", "```", "---", "***", "___", "}", "},"})

_AROUND_LABEL: Final = " \t\r\n\"'\u201c\u201d`*_{}[]().,;:!\\"
_AFTER_LABEL = re.compile(r"\s*[\"\u201d`*.,;:!(\[{}\])\u2013\u2014\\]|\s+-\s")  # what may part a label from a note


class RationaleRefusedError(ValueError):
    """A reply is not a rationale; the message is one line that says why."""


@dataclass(slots=True)
class _Found:
    """What a reply holds, not yet judged."""

    texts: dict[str, str] = field(default_factory=dict)
    """The fields but the Prediction, by key."""
    predictions: list[str] = field(default_factory=list)
    """Every Prediction as it was written, in order."""
    problems: dict[str, str] = field(default_factory=dict)
    """Why a field that is there cannot be used, by key."""


@dataclass(frozen=True, slots=True)
class _Mark:
    """A key that starts a field."""

    key: str
    start: int
    """Where the text before it ends."""
    end: int
    """Where its own text starts."""
    quoted: bool
    """Whether the key was written in quotes, as JSON does."""


def parse_rationale(reply: str, labels: Sequence[str]) -> Rationale:
    """The rationale that a reply holds, its fields trimmed and its Prediction spelt as in the label set.

    `parse_rationale(r.to_json(), labels) == r` for every rationale of trimmed, non-empty texts and a label of the set.
    Halves of surrogate pairs, which no file can hold, become U+FFFD.

    Args:
        reply: what the model wrote.
        labels: the label set.

    Raises:
        RationaleRefusedError: a field is missing, empty or not text; the Prediction is not one of the labels; there
            are several different ones.
    """
    found = _find(reply)
    if not found.texts and not found.predictions:
        raise RationaleRefusedError(f"none of the fields {', '.join(RATIONALE_KEYS)} was found: {_beginning(reply)}")
    held = {*found.texts, *([_PREDICTION] if found.predictions else [])}
    missing = [key for key in RATIONALE_KEYS if key not in held]
    empty = [key for key in RATIONALE_KEYS if key in found.texts and not found.texts[key]]
    problems = [f"missing {_fields(missing)}"] * bool(missing) + [f"empty {_fields(empty)}"] * bool(empty)
    if problems:
        raise RationaleRefusedError("; ".join(problems))
    values = {RATIONALE_KEYS[key]: text for key, text in found.texts.items()}
    return Rationale(**values, prediction=_agreed(found.predictions, labels))


def parse_prediction(reply: str, labels: Sequence[str]) -> str:
    """The label that a reply to the classification task gives: as a Prediction, or as its first line alone.

    Args:
        reply: what the model wrote.
        labels: the label set.

    Raises:
        RationaleRefusedError: there is no Prediction, it is not one of the labels, or there are several different ones.
    """
    found = _find(reply)
    if found.predictions:
        return _agreed(found.predictions, labels)
    label = _label_of(_after_thought(reply), labels)
    if label is None:
        raise RationaleRefusedError(f"missing field Prediction: {_beginning(reply)}")
    return label


def held_fields(reply: str, labels: Sequence[str]) -> frozenset[str]:
    """The keys of the fields that a reply holds, also where it is no rationale as a whole.

    A text field is held when something is written in it, and the same wherever it is repeated in JSON; the Prediction
    when it names one label of the set.

    Args:
        reply: what the model wrote.
        labels: the label set.
    """
    found = _read(reply)
    held = {key for key, text in found.texts.items() if text}
    try:
        if found.predictions and _agreed(found.predictions, labels):
            held.add(_PREDICTION)
    except RationaleRefusedError:
        pass  # several labels, or none: the Prediction says nothing
    return frozenset(held - found.problems.keys())


def _find(reply: str) -> _Found:
    """What a reply holds; a field that is there and cannot be used refuses it."""
    found = _read(reply)
    for problem in found.problems.values():
        raise RationaleRefusedError(problem)
    return found


def _read(reply: str) -> _Found:
    reply = _after_thought(reply)
    objects, outside = _objects(reply)
    marks = list(_marks(outside))
    whole = next((found for found in objects if found.keys() >= RATIONALE_KEYS.keys()), None)
    if whole is None and (marks or not objects):
        text = _with_plain_line_ends(reply)
        return _cut(text, list(_marks(text)))
    # Without a whole one, nothing but objects was written (one for each field, say): they are read together.
    values = whole or {key: [value for found in objects for value in found.get(key, [])] for key in RATIONALE_KEYS}
    read = _Found()
    for key in RATIONALE_KEYS:
        if values[key] and key != _PREDICTION:
            _add_text(read, key, values[key])
    for value in (value for found in objects for value in found.get(_PREDICTION, [])):
        _add_prediction(read, value)
    read.predictions += _cut(outside, marks).predictions
    return read


def _with_plain_line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _after_thought(reply: str) -> str:
    """What follows a leading `<think>` block; a draft in it does not count."""
    reply = reply.strip()
    if not reply.startswith("<think>"):
        return reply
    return reply.partition("</think>")[2].strip()


# --- JSON objects


def _objects(reply: str) -> tuple[list[dict[str, list[Any]]], str]:
    """The JSON objects that hold keys of a rationale, each key with all its values, and the text around them."""
    decoder = json.JSONDecoder(strict=False, object_pairs_hook=list)
    found: list[dict[str, list[Any]]] = []
    outside: list[str] = []
    end = 0
    for start in _object_starts(reply):
        if start < end:
            continue
        try:
            pairs, stop = decoder.raw_decode(reply, start)
        except (ValueError, RecursionError):
            continue
        values: dict[str, list[Any]] = {}
        for name, value in pairs:
            if (key := _key_of(name)) is not None:
                values.setdefault(key, []).append(value)
        if values:
            found.append(values)
            outside.append(reply[end:start])
            end = stop
    return found, _with_plain_line_ends("\n".join([*outside, reply[end:]]))


def _object_starts(reply: str) -> Iterator[int]:
    """Where objects may start: at the first brace, whatever its first key, then at braces before one of the keys."""
    first = reply.find("{")
    if first < 0:
        return
    yield first
    for count, match in enumerate(_OBJECT_START.finditer(reply, first + 1), start=1):
        if count == _MAX_OBJECTS:
            return
        yield match.start()


def _key_of(name: str) -> str | None:
    return _KEY_BY_LETTERS.get(re.sub(r"[\W\d_]+", "", name).casefold())


def _add_text(found: _Found, key: str, values: list[Any]) -> None:
    """Takes the text of a field; where JSON gives its key more than once, all must be the same."""
    if not all(isinstance(value, str) for value in values):
        found.problems[key] = f"field {key} is not text"
    elif len(set(values)) > 1:
        found.problems[key] = f"field {key} is given {len(values)} times, with different texts"
    else:
        found.texts[key] = _encodable(values[0].strip())


def _add_prediction(found: _Found, value: object) -> None:
    if isinstance(value, int) and not isinstance(value, bool):
        found.predictions.append(str(value))  # the labels may be 1 ... 5
    elif isinstance(value, str):
        found.predictions.append(_encodable(value.strip()))
    else:
        found.problems[_PREDICTION] = "field Prediction is not text"


# --- Keys in free text


def _marks(text: str) -> Iterator[_Mark]:
    """Every key in the text that is written as one, in order."""
    for match in _KEY.finditer(text):
        key = _KEY_BY_LETTERS[re.sub(r"[ _-]", "", match[0]).casefold()]
        start, end = match.span()
        quoted = start > 0 and text[start - 1] in _QUOTES
        window = max(0, start - _MAX_BEFORE_KEY)
        line = text.rfind("\n", window, start) + 1
        if (line or window == 0) and _BEFORE_KEY.fullmatch(text, line, start):
            after = _AFTER_KEY.match(text, end)
        elif quoted and _follows_json(text, start - 1):
            line = start - 1
            after = _AFTER_INLINE_KEY.match(text, end)
        else:
            continue
        if after:
            yield _Mark(key, line, after.end(), quoted)


def _follows_json(text: str, quote: int) -> bool:
    """Whether the quote at this place may open a key of a JSON object that is written on one line."""
    before = text[max(0, quote - 8) : quote].rstrip()
    return before.endswith(("{", ",", '"', "'")) and not before.endswith(('\\"', "\\'"))


def _cut(text: str, marks: list[_Mark]) -> _Found:
    """The fields of a text: each from its first mark that something follows to the next field's."""
    first: dict[str, _Mark] = {}
    filled: set[str] = set()
    for mark, following in zip_longest(marks, marks[1:]):
        has_text = bool(text[mark.end : following.start if following else len(text)].strip())
        if mark.key not in first or (has_text and mark.key not in filled):
            first[mark.key] = mark
        if has_text:
            filled.add(mark.key)
    taken = [mark for mark in marks if mark.key == _PREDICTION or first[mark.key] is mark]
    found = _Found()
    for mark, following in zip_longest(taken, taken[1:]):
        written = text[mark.end : following.start if following else len(text)]
        if mark.key != _PREDICTION:
            found.texts[mark.key] = _cleaned(written, mark.quoted)
        elif written.strip() or mark is first[_PREDICTION]:
            found.predictions.append(_encodable(written.strip()))
    return found


def _cleaned(written: str, quoted_key: bool) -> str:
    """A field's own text, without the quotes, commas, braces, fences and rules that belong to the form."""
    lines = written.split("\n")
    while lines and lines[-1].strip() in _CLOSING_LINES:
        lines.pop()
    text = "\n".join(lines).strip()
    if quoted_key:
        text = text.rstrip(" \t\n,`}")
    return _encodable(_unquoted(text, quoted_key).strip())


def _unquoted(text: str, quoted_key: bool) -> str:
    """The text without quotes around it; quotes inside it, escaped or not, are its own."""
    if not text:
        return text
    opening, closing = text[0], _QUOTES.get(text[0])
    closed = len(text) > 1 and text[-1] == closing and not _is_escaped(text, len(text) - 1)
    if closed and (quoted_key or text.count(opening) + text.count(text[-1]) * (opening != text[-1]) == 2):
        return _unescaped(text[1:-1])
    if quoted_key and len(re.findall(r'(?<!\\)"', text)) % 2:  # one of the two quotes around it was forgotten
        if opening == '"':
            return _unescaped(text[1:])
        return _unescaped(text.removesuffix('"'))
    return text


def _is_escaped(text: str, place: int) -> bool:
    backslashes = place - len(text[:place].rstrip("\\"))
    return backslashes % 2 == 1


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda match: str(json.loads(f'"{match[0]}"')), text)


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


# --- Predictions


def _agreed(written: Sequence[str], labels: Sequence[str]) -> str:
    """The label that all Predictions name; later ones that name none are notes."""
    first = _label_of(written[0], labels)
    if first is None:
        if not _plain(_first_line(written[0])):
            raise RationaleRefusedError("empty field Prediction")
        raise RationaleRefusedError(f"Prediction {_first_line(written[0])[:60]!r} is not one of {', '.join(labels)}")
    others = [_label_of(text, labels) for text in written[1:]]
    named = list(dict.fromkeys([first, *(label for label in others if label is not None)]))
    if len(named) > 1:
        raise RationaleRefusedError(f"several different Predictions: {', '.join(named)}")
    return first


def _label_of(written: str, labels: Sequence[str]) -> str | None:
    """The label that a text names in its first line, alone or before a note that names no other label."""
    line = _first_line(written)
    for exact in (written, line, line.strip(_AROUND_LABEL)):
        if exact in labels:
            return exact
    spelt: dict[str, list[str]] = {}
    for label in labels:
        spelt.setdefault(_plain(label), []).append(label)
    plain = _plain(line)
    leading = [name for name in spelt if name and (plain == name or _starts_note(plain, name))]
    if not leading:
        return None
    name = max(leading, key=len)
    rest = plain[len(name) :]
    others = [other for other in spelt if other and other != name]
    if len(spelt[name]) > 1 or any(re.search(rf"(?<!\w){re.escape(other)}(?!\w)", rest) for other in others):
        return None
    return spelt[name][0]


def _starts_note(plain: str, name: str) -> bool:
    return plain.startswith(name) and _AFTER_LABEL.match(plain, len(name)) is not None


def _plain(text: str) -> str:
    text = re.sub(r"[\s_]+", " ", text.strip(_AROUND_LABEL))
    return re.sub(r"^[-•]\s+", "", text).strip(_AROUND_LABEL).casefold()


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].strip()


# --- Messages


def _fields(keys: Sequence[str]) -> str:
    return f"field{'s' * (len(keys) > 1)} {', '.join(keys)}"


def _beginning(reply: str) -> str:
    reply = reply.strip()
    return f"the reply begins {reply[:60]!r}" if reply else "the reply is empty"
