"""The label store: every question to a teacher and every reply, in one SQLite file, so that nothing is paid for twice.

An attempt is written before its request is sent and the reply as soon as it is there, each forced to disk; then the
judgement. Whatever stops a run, the store says what was asked and what came back.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self, runtime_checkable

from mulcot.teachers.base import Teacher, TeacherReply, TeacherRequest, TeacherSilentError, TeacherUse
from mulcot.types import RATIONALE_KEYS, InputError, Rationale

SCHEMA_VERSION: Final = 1
"""Part of every content key and of the file itself; a store of another version is refused by name."""

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS attempts (
    key TEXT NOT NULL,                 -- content key
    attempt INTEGER NOT NULL,          -- 0, then 1 for the first re-ask, ...
    use TEXT NOT NULL,                 -- predict | explain
    label TEXT,                        -- the label to be explained
    sent INTEGER NOT NULL DEFAULT 1,   -- how often it was sent: above 1 an earlier run ended before the reply came
    reply TEXT,                        -- NULL until it is there
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    outcome TEXT CHECK (outcome IN ('accepted', 'refused', 'silent')),
    reason TEXT,                       -- why it was refused, or why there is no reply
    PRIMARY KEY (key, attempt)
);
CREATE TABLE IF NOT EXISTS accepted (
    key TEXT NOT NULL PRIMARY KEY,
    attempt INTEGER NOT NULL,
    label TEXT NOT NULL,               -- the rationale's Prediction
    rationale TEXT NOT NULL,           -- the five keys as JSON
    FOREIGN KEY (key, attempt) REFERENCES attempts (key, attempt)
);
"""


@runtime_checkable
class AnswersById(Protocol):
    """A teacher that looks its replies up by the post's id: the id then belongs to the content key.

    Without it, two posts with the same text, aspect and picture are one question, asked and paid once.
    """

    @property
    def answers_by_id(self) -> bool:
        """Whether the reply depends on the id."""
        ...


def content_key(teacher: Teacher, request: TeacherRequest, prompt_hash: str, image_sha256: str) -> str:
    """The name under which the replies to a request are kept: SHA-256 (hex) of all that a reply depends on.

    The attempt is not part of it; the gold label is part of it only where the teacher is told it (`explain`).
    """
    by_id = isinstance(teacher, AnswersById) and teacher.answers_by_id
    content = {
        "schema": SCHEMA_VERSION,
        "teacher": teacher.name,
        "parameters": dict(teacher.parameters),
        "use": request.use,
        "prompt_hash": prompt_hash,
        "prompt": request.prompt.text,
        "image": image_sha256,
        "text": request.post.text,
        "aspect": request.post.aspect,
        "label": request.label,
        "id": request.post.id if by_id else None,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class LabelStore:
    """The label store of one run, held by one process at a time. A context manager; `close` may be called twice.

    One thread at a time may use it; it need not be the one that opened it.

    An outcome is about the content alone, like the key: `accepted` says that the reply is a rationale and, for an
    explanation, that its Prediction is the label that was given. Whether a predicted label is the gold label of a
    post is for the reader of the store to compare, since posts with equal content may carry different gold labels.

    Args:
        path: The SQLite file; made, with its folder, where there is none. The lock is the file `<path>.lock`.

    Raises:
        InputError: Another process holds the store, the file is not a label store, or it has another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock: int | None = _take_lock(path)
        try:
            self._db = _open(path)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """The store itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the store."""
        self.close()

    def close(self) -> None:
        """Closes the file, then gives the lock back."""
        if hasattr(self, "_db"):
            self._db.close()
        if self._lock is not None:
            # Unlocked by name, not only closed: a forked loader process shares the open file and would keep the lock.
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)
            self._lock = None

    def reply(self, key: str, attempt: int) -> TeacherReply | None:
        """The stored reply, or None when it has to be asked for.

        Raises:
            TeacherSilentError: It was asked for, and the teacher said that it has no reply.
        """
        row = self._db.execute(
            "SELECT reply, prompt_tokens, completion_tokens, outcome, reason FROM attempts WHERE key=? AND attempt=?",
            (key, attempt),
        ).fetchone()
        if row is None:
            return None
        text, prompt_tokens, completion_tokens, outcome, reason = row
        if outcome == "silent":
            raise TeacherSilentError(reason)
        return None if text is None else TeacherReply(text, prompt_tokens, completion_tokens)

    def begin(self, key: str, attempt: int, use: TeacherUse, label: str | None) -> None:
        """Writes that a request is about to be sent; to be called before sending it."""
        with self._db:
            self._db.execute(
                "INSERT INTO attempts (key, attempt, use, label) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (key, attempt) DO UPDATE SET sent = sent + 1",
                (key, attempt, use, label),
            )

    def record_reply(self, key: str, attempt: int, reply: TeacherReply) -> None:
        """Writes what came back, before anybody judges it."""
        values = (reply.text, reply.prompt_tokens, reply.completion_tokens)
        with self._db:
            self._set(key, attempt, "reply=?, prompt_tokens=?, completion_tokens=?", values)

    def record_silence(self, key: str, attempt: int, reason: str) -> None:
        """Writes that the teacher has no reply, now or later, and why."""
        with self._db:
            self._set(key, attempt, "outcome='silent', reason=?", (reason,))

    def refuse(self, key: str, attempt: int, reason: str) -> None:
        """Writes why a stored reply cannot be used. What was already judged so is left untouched."""
        if self._judgement(key, attempt) == ("refused", reason):
            return
        with self._deduced():
            # A stricter parser than the one that accepted this reply takes its label back.
            self._db.execute("DELETE FROM accepted WHERE key=? AND attempt=?", (key, attempt))
            self._set(key, attempt, "outcome='refused', reason=?", (reason,))

    def accept(self, key: str, attempt: int, rationale: Rationale) -> None:
        """Keeps the rationale that a stored reply holds under its content key."""
        if self._judgement(key, attempt) == ("accepted", None) and self.accepted(key) == rationale:
            return
        with self._deduced():
            self._set(key, attempt, "outcome='accepted', reason=NULL", ())
            self._db.execute(
                "INSERT OR REPLACE INTO accepted (key, attempt, label, rationale) VALUES (?, ?, ?, ?)",
                (key, attempt, rationale.prediction, rationale.to_json()),
            )

    def accepted(self, key: str) -> Rationale | None:
        """The rationale that was accepted under a content key, None where there is none."""
        row = self._db.execute("SELECT rationale FROM accepted WHERE key=?", (key,)).fetchone()
        if row is None:
            return None
        written = json.loads(row[0])
        return Rationale(**{name: written[spelt] for spelt, name in RATIONALE_KEYS.items()})

    @contextmanager
    def _deduced(self) -> Iterator[None]:
        """A transaction that reaches the disk with the next durable one: what follows from a reply can be redone."""
        self._db.execute("PRAGMA synchronous=NORMAL")
        try:
            with self._db:
                yield
        finally:
            self._db.execute("PRAGMA synchronous=FULL")

    def _judgement(self, key: str, attempt: int) -> tuple[str | None, str | None] | None:
        query = "SELECT outcome, reason FROM attempts WHERE key=? AND attempt=?"
        row: tuple[str | None, str | None] | None = self._db.execute(query, (key, attempt)).fetchone()
        return row

    def _set(self, key: str, attempt: int, assignments: str, values: tuple[str | int, ...]) -> None:
        """Changes an attempt's row inside the caller's transaction; `assignments` is our own SQL, never input."""
        changed = self._db.execute(
            f"UPDATE attempts SET {assignments} WHERE key=? AND attempt=?", (*values, key, attempt)
        )
        if changed.rowcount != 1:
            raise LookupError(f"{self.path}: attempt {attempt} of {key} was never begun")


def _open(path: Path) -> sqlite3.Connection:
    """The file, its tables made where it is new, every commit forced to disk."""
    db = sqlite3.connect(path, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA foreign_keys=ON")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, SCHEMA_VERSION):
            raise InputError(
                f"{path}: the label store has version {version}, this mulcot reads version {SCHEMA_VERSION}: "
                "use the mulcot that wrote it, or another stage folder"
            )
        db.executescript(f"BEGIN;{_TABLES}PRAGMA user_version={SCHEMA_VERSION};COMMIT;")
    except sqlite3.DatabaseError as error:
        db.close()
        raise InputError(
            f"{path}: no usable label store ({error}): move it away, or use another stage folder"
        ) from error
    except BaseException:
        db.close()
        raise
    return db


def _take_lock(path: Path) -> int:
    """The locked file beside `path`; it names its holder for whoever finds it taken."""
    beside = path.with_name(path.name + ".lock")
    handle = os.open(beside, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
    except BlockingIOError as error:
        holder = os.read(handle, 500).decode(errors="replace") or "another process"
        os.close(handle)
        raise InputError(
            f"{path}: the label store is in use by {holder}: wait until it has finished or stop it, then start again"
        ) from error
    return handle
