"""Bringing label stores together: nothing is lost, nothing counts twice, in whatever order and how often it is done."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from mulcot.locks import give_lock_back
from mulcot.teachers.store import LabelStore
from mulcot.teachers.store_files import SCHEMA_VERSION, check_schema, explained, lock_store, whole_values
from mulcot.teachers.store_values import check_rows
from mulcot.types import InputError, MissingInputError

_ATTEMPTS: Final = """
INSERT INTO attempts SELECT * FROM other.attempts WHERE true
ON CONFLICT (key, attempt, origin) DO UPDATE SET
    sent = excluded.sent, reply = excluded.reply, prompt_tokens = excluded.prompt_tokens,
    completion_tokens = excluded.completion_tokens, finish = excluded.finish, outcome = excluded.outcome,
    reason = excluded.reason
-- One origin's row only ever grows: it is sent again, then answered, then judged. The further one is the newer one.
WHERE (excluded.sent, excluded.reply IS NOT NULL, excluded.outcome IS NOT NULL)
    > (attempts.sent, attempts.reply IS NOT NULL, attempts.outcome IS NOT NULL)
"""
_REST: Final = (
    # Only what the row that counts still says: another store may have judged the same attempt.
    "INSERT OR IGNORE INTO accepted SELECT * FROM other.accepted",
    "INSERT OR IGNORE INTO concluded SELECT * FROM other.concluded",
    "INSERT OR IGNORE INTO imported SELECT post_id, record FROM other.imported ORDER BY rowid",
    "INSERT OR IGNORE INTO notes SELECT name, value FROM other.notes WHERE name != 'origin' AND name != 'ended'",
)
_ALIKE: Final = """
SELECT o.name, m.value, o.value FROM other.notes o JOIN main.notes m USING (name)
WHERE o.name LIKE 'expect/%' AND o.value != m.value
"""
# A post that ended well somewhere counts as that; else what this store says stands.
_REPLACED: Final = """
DELETE FROM settled WHERE failure IS NOT NULL AND EXISTS (
    SELECT 1 FROM other.settled o
    WHERE o.split = settled.split AND o.post_id = settled.post_id AND o.sample = settled.sample AND o.failure IS NULL)
"""
_SETTLED: Final = """
INSERT INTO settled
SELECT split, position + coalesce((SELECT max(position) + 1 FROM settled m WHERE m.split = o.split), 0) * :append,
    sample, post_id, gold, first_prediction, source, failure, reason, model, prompt_hash, imported, asks
FROM other.settled o
WHERE NOT EXISTS (
    SELECT 1 FROM settled m WHERE m.split = o.split AND m.post_id = o.post_id AND m.sample = o.sample)
ORDER BY split, position, sample
"""


def merge_store(store: LabelStore, other: Path, *, append: bool = True) -> None:
    """Adds what another store holds.

    Args:
        store: takes it in.
        other: the other store's file; it is read alone.
        append: whether its posts come after those of `store`; else they stand at the positions that they have, as the
            shards of one run do.

    Raises:
        MissingInputError: there is no such file.
        InUseError: another process works on it.
        InputError: it is no label store of this version, or answers other prompts.
    """
    if not other.is_file():
        raise MissingInputError(f"{other}: there is no such label store")
    if other.samefile(store.path):
        raise InputError(f"{other}: a label store cannot be merged into itself")
    lock = lock_store(other)
    try:
        _check(other)
        db = store._db
        with explained(other):
            db.execute("ATTACH DATABASE ? AS other", (str(other),))
        try:
            _refuse_other_prompts(db, store.path, other)
            with store.transaction():
                db.execute(_ATTEMPTS)
                for statement in _REST:
                    db.execute(statement)
                db.execute(_REPLACED)
                db.execute(_SETTLED, {"append": int(append)})
        finally:
            db.execute("DETACH DATABASE other")
    finally:
        give_lock_back(lock)


def remove_store(path: Path) -> None:
    """Removes a store that was merged into another one, with the files that belong to it."""
    for suffix in ("", "-wal", "-shm", ".lock"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _check(path: Path) -> None:
    try:
        db = sqlite3.connect(path)
        try:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            check_schema(db, path)
            if version != SCHEMA_VERSION:
                raise InputError(
                    f"{path}: the label store has version {version}, this mulcot reads version {SCHEMA_VERSION}: use "
                    "the mulcot that wrote it"
                )
            # Before anything of it is taken over: what is wrong then is wrong in both.
            with whole_values(path):
                check_rows(db, path)
        finally:
            db.close()
    except sqlite3.DatabaseError as error:
        raise InputError(f"{path}: no usable label store ({error})") from error


def _refuse_other_prompts(db: sqlite3.Connection, path: Path, other: Path) -> None:
    unlike = db.execute(_ALIKE).fetchone()
    if unlike is not None:
        name, mine, theirs = unlike
        raise InputError(
            f"{other}: it was made with {name.removeprefix('expect/')} {theirs}, {path} with {mine}: stores of "
            "different versions cannot be merged"
        )
