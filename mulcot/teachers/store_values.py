"""What the rows of a label store must hold. A store that somebody else made is data: its values are not believed."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, get_args

from mulcot.teachers.settled import Conclusion, Settled
from mulcot.types import RATIONALE_KEYS, SPLITS, InputError, Rationale, RationaleRecord, Source

SETTLED: Final = (
    "SELECT split, position, sample, post_id, gold, first_prediction, source, failure, reason, model, "
    "prompt_hash, asks, imported FROM settled ORDER BY split, position, sample"
)
"""What `settled_of` takes."""
_SOURCES: Final[tuple[str, ...]] = get_args(Source)
_FEWEST: Final = {"attempts": 1, "prompt_tokens": 0, "completion_tokens": 0}
"""The counts of a record, and the least that each can be."""
_TEXT: Final = "a text"
_COUNT: Final = "a whole number from 0 up"
_LARGEST: Final = 10**12
"""Far more than any count, and few enough for SQLite to add."""
_ATTEMPTS: Final = {
    "key": ("typeof(key) != 'text'", _TEXT),
    "attempt": (f"typeof(attempt) != 'integer' OR attempt NOT BETWEEN 0 AND {_LARGEST}", _COUNT),
    "origin": ("typeof(origin) != 'text'", _TEXT),
    "use": ("coalesce(use, '') NOT IN ('predict', 'explain')", "predict or explain"),
    "label": ("typeof(label) NOT IN ('text', 'null')", _TEXT),
    "model": ("typeof(model) != 'text'", _TEXT),
    "sent": (f"typeof(sent) != 'integer' OR sent NOT BETWEEN 1 AND {_LARGEST}", "a whole number from 1 up"),
    "reply": ("typeof(reply) NOT IN ('text', 'null')", _TEXT),
    **{
        name: (f"typeof({name}) NOT IN ('integer', 'null') OR {name} NOT BETWEEN 0 AND {_LARGEST}", _COUNT)
        for name in ("prompt_tokens", "completion_tokens")
    },
    "finish": ("typeof(finish) NOT IN ('text', 'null')", _TEXT),
    "outcome": ("outcome NOT IN ('accepted', 'refused', 'silent')", "accepted, refused or silent"),
    "reason": ("typeof(reason) NOT IN ('text', 'null')", _TEXT),
}
"""Of every column, our own SQL that says when it is wrong, and what would be right."""


class _Row:
    """A row of a store, as an error names it."""

    def __init__(self, path: Path, table: str, name: str) -> None:
        self._path, self._table, self._name = path, table, name

    def wrong(self, field: str, value: object, wanted: str) -> InputError:
        quoted = repr(value)
        quoted = quoted if len(quoted) <= 80 else f"{quoted[:80]}..."
        return InputError(
            f"{self._path}: the label store is damaged: table {self._table}, {self._name}: {field} is {quoted}, it "
            f"must be {wanted}: move the store away, or use another stage folder"
        )

    def text(self, field: str, value: object) -> str:
        """A text that can be written as UTF-8; JSON escapes can spell one that cannot."""
        if not isinstance(value, str) or any("\ud800" <= letter <= "\udfff" for letter in value):
            raise self.wrong(field, value, _TEXT)
        return value

    def text_or_none(self, field: str, value: object) -> None:
        if value is not None:
            self.text(field, value)

    def count(self, field: str, value: object, least: int = 0) -> None:
        if type(value) is not int or not least <= value <= _LARGEST:
            raise self.wrong(field, value, f"a whole number from {least} up")

    def one_of(self, field: str, value: object, known: Sequence[str]) -> None:
        if value not in known:
            raise self.wrong(field, value, f"one of {', '.join(known)}")

    def json(self, field: str, written: object) -> Any:
        try:
            return json.loads(self.text(field, written))
        except (ValueError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise self.wrong(field, written, "JSON") from error

    def asks(self, written: Any, width: int, *, needed: bool) -> tuple[tuple[Any, ...], ...]:
        """Questions: content key, attempt, and in three columns whether the run sent it."""
        form = f"a list of [content key, attempt{', true or false' if width == 3 else ''}]"
        if not isinstance(written, list) or (needed and not written):
            raise self.wrong("asks", written, f"{form}, with one at least" if needed else form)
        for ask in written:
            if not isinstance(ask, list) or len(ask) != width or (width == 3 and type(ask[2]) is not bool):
                raise self.wrong("asks", written, form)
            self.text("asks, content key", ask[0])
            self.count("asks, attempt", ask[1])
        return tuple(map(tuple, written))

    def rationale(self, field: str, values: Any) -> Rationale:
        if not isinstance(values, dict) or set(values) != set(RATIONALE_KEYS):
            raise self.wrong(field, values, f"an object with {', '.join(RATIONALE_KEYS)}")
        return Rationale(**{name: self.text(f"{field}, {key}", values[key]) for key, name in RATIONALE_KEYS.items()})

    def record(self, field: str, written: object) -> RationaleRecord:
        values = self.json(field, written)
        known = RationaleRecord.__slots__
        if not isinstance(values, dict) or not set(known) - set(_FEWEST) <= set(values) <= set(known):
            raise self.wrong(field, written, f"an object with {', '.join(known)}")
        for name in ("post_id", "model", "prompt_hash"):
            self.text(f"{field}, {name}", values[name])
        self.one_of(f"{field}, source", values["source"], _SOURCES)
        for name, least in _FEWEST.items():
            self.count(f"{field}, {name}", values.get(name, least), least)
        rationale = self.rationale(f"{field}, rationale", values["rationale"])
        return RationaleRecord(**{**values, "rationale": rationale})


def settled_of(path: Path, values: Sequence[Any]) -> Settled:
    """How a dialogue ended, from a row that `SETTLED` gives.

    Raises:
        InputError: A field holds what no stage writes; the message names store, table, row and field.
    """
    split, position, sample, post_id, gold, first, source, failure, reason, model, prompt_hash, asks, imported = values
    row = _Row(path, "settled", f"post {post_id!r}, split {str(split)!r:.40}, position {position!r:.20}")
    row.text("post_id", post_id)
    row.one_of("split", split, SPLITS)
    row.count("position", position)
    row.count("sample", sample)
    for field, value in (("gold", gold), ("first_prediction", first), ("failure", failure)):
        row.text_or_none(field, value)
    for field, value in (("reason", reason), ("model", model), ("prompt_hash", prompt_hash)):
        row.text(field, value)
    if failure is None:
        row.one_of("source", source, _SOURCES)
    elif source is not None:
        raise row.wrong("source", source, "empty where there is a failure")
    if imported is not None:
        record = row.record("imported", imported)
        if (record.post_id, record.source) != (post_id, source):
            raise row.wrong("imported", imported, "a record of this post and of this source")
        imported = record.to_json()
    found = row.asks(row.json("asks", asks), 3, needed=failure is None and imported is None)
    return Settled(
        split, position, sample, post_id, gold, first, source, failure, reason, model, prompt_hash, found, imported
    )


def rationale_of(path: Path, key: str, attempt: int, written: object, post_id: str | None = None) -> Rationale:
    """An accepted rationale.

    Args:
        path: The store.
        key: Its content key.
        attempt: Its attempt.
        written: The column `rationale`.
        post_id: The post that it explains, where that is known.

    Raises:
        InputError: It is none.
    """
    about = "" if post_id is None else f"post {post_id!r}, "
    row = _Row(path, "accepted", f"{about}key {key!r}, attempt {attempt!r}")
    return row.rationale("rationale", row.json("rationale", written))


def record_of(path: Path, post_id: object, written: object) -> RationaleRecord:
    """A record that was brought in for a post.

    Raises:
        InputError: It is none, or of another post.
    """
    row = _Row(path, "imported", f"post {post_id!r}")
    record = row.record("record", written)
    if record.post_id != post_id:
        raise row.wrong("record, post_id", record.post_id, "that of its row")
    return record


def conclusion_of(path: Path, fingerprint: object, written: object) -> Conclusion:
    """How a dialogue came to its rationale.

    Raises:
        InputError: A field holds what no stage writes.
    """
    row = _Row(path, "concluded", f"fingerprint {fingerprint!r}")
    values = row.json("conclusion", written)
    if not isinstance(values, list) or len(values) != 5:
        raise row.wrong("conclusion", values, "a list of 5 values")
    source, first, model, prompt_hash, asks = values
    row.one_of("conclusion, source", source, _SOURCES)
    row.text_or_none("conclusion, first_prediction", first)
    row.text("conclusion, model", model)
    row.text("conclusion, prompt_hash", prompt_hash)
    return Conclusion(source, first, model, prompt_hash, row.asks(asks, 2, needed=True))


def check_attempts(db: sqlite3.Connection, path: Path) -> None:
    """Refuses an attempt with a value that no store has written, which SQLite would take for 0 in a sum.

    Args:
        db: The open store.
        path: Its path, for the message.

    Raises:
        InputError: There is one.
    """
    cases = " ".join(f"WHEN {wrong} THEN '{field}'" for field, (wrong, _) in _ATTEMPTS.items())
    query = f"SELECT rowid, CASE {cases} END AS field FROM attempts WHERE field IS NOT NULL LIMIT 1"
    for row_id, field in db.execute(query).fetchall():
        query = f"SELECT key, attempt, {field} FROM attempts WHERE rowid=?"
        key, attempt, value = db.execute(query, (row_id,)).fetchone()
        raise _Row(path, "attempts", f"key {key!r}, attempt {attempt!r}").wrong(field, value, _ATTEMPTS[field][1])


def check_rows(db: sqlite3.Connection, path: Path) -> None:
    """Looks at every row of a store that is to be taken over.

    Raises:
        InputError: A value is none that a store has written.
    """
    check_attempts(db, path)
    for values in db.execute(SETTLED):
        settled_of(path, values)
    for key, attempt, written in db.execute("SELECT key, attempt, rationale FROM accepted"):
        rationale_of(path, key, attempt, written)
    for post_id, written in db.execute("SELECT post_id, record FROM imported"):
        record_of(path, post_id, written)
    for fingerprint, written in db.execute("SELECT fingerprint, conclusion FROM concluded"):
        conclusion_of(path, fingerprint, written)
