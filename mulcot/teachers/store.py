"""The label store: every question to a teacher and every reply, in one SQLite file, so that nothing is paid for twice.

An attempt is written before its request is sent and the reply as soon as it is there, each forced to disk; then the
judgement. Whatever stops a run, the store says what was asked and what came back.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from mulcot.locks import give_lock_back
from mulcot.teachers.base import TeacherReply, TeacherSilentError, TeacherUse
from mulcot.teachers.settled import Conclusion, Settled
from mulcot.teachers.store_files import (
    LARGEST_VALUE,
    explained,
    file_system_of,
    lock_store,
    new_origin,
    open_tables,
    refuse_network,
    whole_values,
)
from mulcot.teachers.store_values import SETTLED, check_attempts, conclusion_of, rationale_of, record_of, settled_of
from mulcot.types import InputError, Rationale, RationaleRecord

# Of several stores that were merged, more than one may have sent an attempt: a reply comes before a refusal to reply,
# and that before an open attempt; the origin makes the choice the same in whatever order they were merged.
THE_ROW: Final = (
    "(SELECT rowid FROM attempts WHERE key=? AND attempt=? ORDER BY reply IS NULL, outcome IS NULL, origin LIMIT 1)"
)
_EXPECTED: Final = "expect/"
_LOOK_UP: Final = 400
"""Attempts that one query looks for; some builds of SQLite take fewer than a thousand values."""


class LabelStore:
    """The label store of one run, held by one process at a time. A context manager; `close` may be called twice.

    One thread at a time may write, and one may read meanwhile; neither need be the one that opened it.

    An outcome is about the content alone, like the key: `accepted` says that the reply is a rationale and, for an
    explanation, that its Prediction is the label that was given. Whether a predicted label is the gold label of a
    post is for the reader of the store to compare, since posts with equal content may carry different gold labels.

    Args:
        path: The SQLite file; made, with its folder, where there is none. The lock is the file `<path>.lock`.
        lock: Whether to take the lock; without it the caller vouches that nobody else uses the file.
        file_system: Says the type of the file system of a path.

    Raises:
        InUseError: Another process holds the store.
        InputError: The file is not a label store, has another version, cannot be written, or lies on a network.
    """

    def __init__(
        self, path: Path, *, lock: bool = True, file_system: Callable[[Path], str | None] = file_system_of
    ) -> None:
        self.path = path
        self._lock: int | None = None
        self._open: list[sqlite3.Connection] = []
        self._writing = False
        refuse_network(path, file_system)
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = lock_store(path) if lock else None
        try:
            self._db = open_tables(path)
            self._open.append(self._db)
            # Reading has a connection of its own: it never waits for a commit and never sees half of one.
            self._reads = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._open.append(self._reads)
            self._reads.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_VALUE)
            self._reads.execute("PRAGMA query_only=ON")
            self.origin = self.note("origin") or ""
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
        while self._open:
            self._open.pop().close()
        if self._lock is not None:
            give_lock_back(self._lock)
            self._lock = None

    # -- questions and replies --------------------------------------------------------------------------------------

    def reply(self, key: str, attempt: int) -> TeacherReply | None:
        """The stored reply, or None when it has to be asked for.

        Raises:
            TeacherSilentError: It was asked for, and the teacher said that it has no reply.
        """
        row = self._reads.execute(
            "SELECT reply, prompt_tokens, completion_tokens, finish, outcome, reason FROM attempts "
            f"WHERE rowid = {THE_ROW}",
            (key, attempt),
        ).fetchone()
        if row is None:
            return None
        text, prompt_tokens, completion_tokens, finish, outcome, reason = row
        if outcome == "silent":
            raise TeacherSilentError(reason)
        return None if text is None else TeacherReply(text, prompt_tokens, completion_tokens, finish)

    def is_answered(self, key: str, attempt: int) -> bool:
        """Whether it needs no request any more."""
        query = "SELECT 1 FROM attempts WHERE key=? AND attempt=? AND (reply IS NOT NULL OR outcome IS NOT NULL)"
        return self._reads.execute(query, (key, attempt)).fetchone() is not None

    def begin(self, key: str, attempt: int, use: TeacherUse, label: str | None, model: str = "") -> None:
        """Writes that a request is about to be sent; to be called before sending it."""
        with self.transaction() as db:
            db.execute(
                "INSERT INTO attempts (key, attempt, origin, use, label, model) VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (key, attempt, origin) DO UPDATE SET sent = sent + 1",
                (key, attempt, self.origin, use, label, model),
            )

    def withdraw(self, key: str, attempt: int) -> None:
        """Writes that a request that was about to be sent was not."""
        with self.transaction() as db:
            own = (key, attempt, self.origin)
            db.execute("UPDATE attempts SET sent = sent - 1 WHERE key=? AND attempt=? AND origin=?", own)
            db.execute("DELETE FROM attempts WHERE key=? AND attempt=? AND origin=? AND sent=0", own)

    def record_reply(self, key: str, attempt: int, reply: TeacherReply) -> None:
        """Writes what came back, before anybody judges it."""
        values = (reply.text, reply.prompt_tokens, reply.completion_tokens, reply.finish)
        with self.transaction():
            self._set_own(key, attempt, "reply=?, prompt_tokens=?, completion_tokens=?, finish=?, reason=NULL", values)

    def record_silence(self, key: str, attempt: int, reason: str) -> None:
        """Writes that the teacher has no reply, now or later, and why."""
        with self.transaction():
            self._set_own(key, attempt, "outcome='silent', reason=?", (reason,))

    def record_absence(self, key: str, attempt: int, reason: str) -> None:
        """Writes why there was no reply this time; the attempt stays open."""
        with self.transaction():
            self._set_own(key, attempt, "reason=?", (reason,))

    # -- judgements -------------------------------------------------------------------------------------------------

    def refuse(self, key: str, attempt: int, reason: str) -> None:
        """Writes why a stored reply cannot be used. What was already judged so is left untouched."""
        if self._judgement(key, attempt) == ("refused", reason):
            return
        with self.transaction() as db:
            # A stricter parser than the one that accepted this reply takes its label back.
            db.execute("DELETE FROM accepted WHERE key=? AND attempt=?", (key, attempt))
            self._set(key, attempt, "outcome='refused', reason=?", (reason,))

    def accept(self, key: str, attempt: int, rationale: Rationale) -> None:
        """Keeps the rationale that a stored reply holds under its content key."""
        query = "SELECT rationale FROM accepted WHERE key=? AND attempt=?"
        kept = self._db.execute(query, (key, attempt)).fetchone()
        if kept == (rationale.to_json(),) and self._judgement(key, attempt) == ("accepted", None):
            return
        with self.transaction() as db:
            self._set(key, attempt, "outcome='accepted', reason=NULL", ())
            db.execute(
                "INSERT OR REPLACE INTO accepted (key, attempt, label, rationale) VALUES (?, ?, ?, ?)",
                (key, attempt, rationale.prediction, rationale.to_json()),
            )

    def accepted(self, asks: Collection[tuple[str, int]]) -> dict[tuple[str, int], Rationale]:
        """The accepted rationales of content keys and attempts; of a mapping to ids, an error names the post."""
        found = self._of("SELECT key, attempt, rationale FROM asked JOIN accepted USING (key, attempt)", asks)
        posts = asks if isinstance(asks, Mapping) else {}
        with whole_values(self.path):
            return {
                (key, attempt): rationale_of(self.path, key, attempt, written, posts.get((key, attempt)))
                for key, attempt, written in found
            }

    def all_accepted(self) -> Iterator[tuple[str, Rationale]]:
        """Every accepted rationale with its content key."""
        query = "SELECT key, attempt, rationale FROM accepted ORDER BY key, attempt"
        with whole_values(self.path):
            for key, attempt, written in self._reads.execute(query):
                yield key, rationale_of(self.path, key, attempt, written)

    # -- what was brought in, and how the last run ended ------------------------------------------------------------

    def bring_in(self, records: Iterable[RationaleRecord]) -> int:
        """Keeps rationale records for posts of their ids; how many of them are new."""
        with self.transaction() as db:
            before = db.total_changes
            rows = ((record.post_id, record.to_json()) for record in records)
            db.executemany("INSERT OR IGNORE INTO imported VALUES (?, ?)", rows)
            return db.total_changes - before

    def brought_in(self, post_id: str) -> list[RationaleRecord]:
        """The records that were brought in for a post, in the order in which they were."""
        query = "SELECT record FROM imported WHERE post_id=? ORDER BY rowid"
        with whole_values(self.path):
            return [record_of(self.path, post_id, line) for (line,) in self._reads.execute(query, (post_id,))]

    def has_imported(self) -> bool:
        """Whether any record was brought in."""
        return self._reads.execute("SELECT 1 FROM imported LIMIT 1").fetchone() is not None

    def conclude(self, rows: Iterable[tuple[str, Conclusion]]) -> None:
        """Keeps how dialogues came to their rationales, by fingerprints of all that they depend on."""
        values = ((name, *found.asks[-1], json.dumps(astuple(found))) for name, found in rows)
        with self.transaction() as db:
            db.executemany("INSERT OR REPLACE INTO concluded VALUES (?, ?, ?, ?)", values)

    def concluded(self, fingerprints: Sequence[str]) -> dict[str, Conclusion]:
        """How dialogues came to their rationales, for those that did and whose rationale was not refused since.

        Args:
            fingerprints: some hundreds at most; one query finds them all.
        """
        query = (
            "SELECT fingerprint, conclusion FROM concluded JOIN accepted USING (key, attempt) "
            f"WHERE fingerprint IN ({', '.join('?' * len(fingerprints))})"
        )
        with whole_values(self.path):
            found = self._reads.execute(query, tuple(fingerprints)).fetchall()
            return {name: conclusion_of(self.path, name, written) for name, written in found}

    def forget_settled(self) -> None:
        """Begins a new run: how the last one ended no longer counts."""
        with self.transaction() as db:
            db.execute("DELETE FROM settled")
            db.execute("DELETE FROM notes WHERE name='ended'")

    def settle(self, rows: Sequence[Settled]) -> None:
        """Writes how dialogues ended."""
        values = [
            (row.split, row.position, row.sample, row.post_id, row.gold, row.first_prediction, row.source, row.failure,
             row.reason, row.model, row.prompt_hash, row.imported, json.dumps(row.asks))
            for row in rows
        ]  # fmt: skip
        with self.transaction() as db:
            db.executemany(f"INSERT OR REPLACE INTO settled VALUES ({', '.join('?' * 13)})", values)

    def settled(self) -> Iterator[Settled]:
        """How the dialogues of the last run ended, by split and position."""
        with whole_values(self.path):
            for values in self._reads.execute(SETTLED):
                yield settled_of(self.path, values)

    def tokens(self, asks: Collection[tuple[str, int]]) -> dict[tuple[str, int], tuple[int, int]]:
        """What the replies to attempts read and wrote; zeros where there is none."""
        the_row = THE_ROW.replace("?", "asked.key", 1).replace("?", "asked.attempt", 1)
        columns = "asked.key, asked.attempt, prompt_tokens, completion_tokens"
        query = f"SELECT {columns} FROM asked LEFT JOIN attempts ON rowid = {the_row}"
        return {(key, attempt): (read or 0, written or 0) for key, attempt, read, written in self._of(query, asks)}

    def written(self, key: str, attempt: int) -> str | None:
        """The stored reply to an attempt as it was written, None where there is none."""
        row = self._reads.execute(f"SELECT reply FROM attempts WHERE rowid = {THE_ROW}", (key, attempt)).fetchone()
        return None if row is None else row[0]

    def _of(self, query: str, asks: Collection[tuple[str, int]]) -> Iterator[tuple[Any, ...]]:
        """The rows of a query of our own about `asked`, a table of content keys and attempts."""
        left = iter(asks)
        while some := list(islice(left, _LOOK_UP)):
            table = f"WITH asked (key, attempt) AS (VALUES {', '.join(['(?, ?)'] * len(some))}) "
            # All of them: a generator that is left in the middle of a cursor would close it after its connection.
            yield from self._reads.execute(table + query, tuple(chain.from_iterable(some))).fetchall()

    def check_attempts(self) -> None:
        """Refuses an attempt that no store has written; what is summed over all of them counts on it.

        Raises:
            InputError: There is one.
        """
        with whole_values(self.path):
            check_attempts(self._reads, self.path)

    def read(self, query: str, *values: str | int) -> list[tuple[Any, ...]]:
        """The rows of a query of our own; it cannot write."""
        return self._reads.execute(query, values).fetchall()

    # -- notes ------------------------------------------------------------------------------------------------------

    def note(self, name: str) -> str | None:
        """A value kept under a name, None where there is none."""
        row = self._reads.execute("SELECT value FROM notes WHERE name=?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_note(self, name: str, value: str) -> None:
        """Keeps a value under a name."""
        if self.note(name) != value:
            with self.transaction() as db:
                db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))

    def expect(self, name: str, value: str, explain: str) -> None:
        """Compares a value that all runs over this store must share with what an earlier one left by `set_expected`.

        Args:
            name: what it is, as a person would call it.
            value: what it is now.
            explain: what would follow from another value, and what to do.

        Raises:
            InputError: the store was made with another value; both are named.
        """
        before = self.note(_EXPECTED + name)
        if before not in (None, value):
            raise InputError(f"{self.path}: it was made with {name} {before}, now it is {value}: {explain}")

    def set_expected(self, name: str, value: str) -> None:
        """Keeps a value for later runs to compare theirs with."""
        self.set_note(_EXPECTED + name, value)

    # -- writing ----------------------------------------------------------------------------------------------------

    def write_all(self, writes: Iterable[Callable[[], None]]) -> None:
        """Writes several things in one commit.

        Raises:
            InputError: The disk is full or the folder read-only; nothing of it is written.
        """
        with self.transaction():
            for write in writes:
                write()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One commit, forced to disk; inside another one it is part of that.

        Raises:
            InputError: The disk is full or the folder read-only.
        """
        if self._writing:
            yield self._db
            return
        self._writing = True
        try:
            with explained(self.path):
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:  # some errors of the disk have ended it already
                        self._db.execute("ROLLBACK")
                    raise
        finally:
            self._writing = False

    def copy_to(self, path: Path) -> None:
        """Writes a copy that counts as a store of its own: what it sends will be told apart."""
        with explained(path):
            copy = sqlite3.connect(path)
            try:
                self._reads.backup(copy)
                with copy:
                    copy.execute("UPDATE notes SET value=? WHERE name='origin'", (new_origin(),))
            finally:
                copy.close()

    def _judgement(self, key: str, attempt: int) -> tuple[str | None, str | None] | None:
        query = f"SELECT outcome, reason FROM attempts WHERE rowid = {THE_ROW}"
        row: tuple[str | None, str | None] | None = self._db.execute(query, (key, attempt)).fetchone()
        return row

    def _set_own(self, key: str, attempt: int, assignments: str, values: tuple[str | int, ...]) -> None:
        """Changes the row of an attempt that this store sent; `assignments` is our own SQL, never input."""
        place = "key=? AND attempt=? AND origin=?"
        self._update(
            key, attempt, f"UPDATE attempts SET {assignments} WHERE {place}", (*values, key, attempt, self.origin)
        )

    def _set(self, key: str, attempt: int, assignments: str, values: tuple[str | int, ...]) -> None:
        """Changes the row of an attempt that counts, whoever sent it."""
        self._update(
            key, attempt, f"UPDATE attempts SET {assignments} WHERE rowid = {THE_ROW}", (*values, key, attempt)
        )

    def _update(self, key: str, attempt: int, statement: str, values: tuple[str | int, ...]) -> None:
        if self._db.execute(statement, values).rowcount != 1:
            raise LookupError(f"{self.path}: attempt {attempt} of {key} was never begun")
