"""The files of a label store: the tables, the lock beside them, and where they may lie."""

from __future__ import annotations

import os
import re
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mulcot.files import refuse_link
from mulcot.locks import take_lock
from mulcot.types import InputError

SCHEMA_VERSION: Final = 2
"""Part of every content key and of the file itself; a store of another version is refused by name."""

TABLES: Final = """
CREATE TABLE IF NOT EXISTS attempts (
    key TEXT NOT NULL,                 -- content key
    attempt INTEGER NOT NULL,          -- 0, then 1 for the first re-ask, ...
    origin TEXT NOT NULL,              -- the store that sent it; stores that are merged keep theirs apart
    use TEXT NOT NULL,                 -- predict | explain
    label TEXT,                        -- the label to be explained
    model TEXT NOT NULL,               -- who was asked
    sent INTEGER NOT NULL DEFAULT 1,   -- how often it was sent: above 1 an earlier run ended before the reply came
    reply TEXT,                        -- NULL until it is there
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    finish TEXT,                       -- why the reply ends
    outcome TEXT CHECK (outcome IN ('accepted', 'refused', 'silent')),
    reason TEXT,                       -- why it was refused, or why there is no reply
    PRIMARY KEY (key, attempt, origin)
);
CREATE TABLE IF NOT EXISTS accepted (
    key TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    label TEXT NOT NULL,               -- the rationale's Prediction
    rationale TEXT NOT NULL,           -- the five keys as JSON
    PRIMARY KEY (key, attempt)
);
CREATE TABLE IF NOT EXISTS concluded ( -- dialogues that ended in a rationale, so that they need not be led again
    fingerprint TEXT NOT NULL PRIMARY KEY,  -- of all that the dialogue depends on
    key TEXT NOT NULL,                 -- of the accepted rationale
    attempt INTEGER NOT NULL,
    conclusion TEXT NOT NULL           -- JSON
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS imported (  -- rationale records that were brought in, by post
    post_id TEXT NOT NULL,
    record TEXT NOT NULL,              -- the line of the rationale file
    PRIMARY KEY (post_id, record)
);
CREATE TABLE IF NOT EXISTS settled (   -- how the dialogues of the last run ended
    split TEXT NOT NULL,
    position INTEGER NOT NULL,         -- orders the posts of a split
    sample INTEGER NOT NULL,           -- which of several rationales of the post
    post_id TEXT NOT NULL,
    gold TEXT,                         -- the gold label
    first_prediction TEXT,             -- the label that the teacher found by itself
    source TEXT,                       -- NULL where there is no rationale
    failure TEXT,                      -- NULL where there is one
    reason TEXT NOT NULL,
    model TEXT NOT NULL,
    prompt_hash TEXT NOT NULL,
    imported TEXT,                     -- the record, where it was brought in
    asks TEXT NOT NULL,                -- JSON list of [content key, attempt, whether this run sent it]
    PRIMARY KEY (split, position, sample)
);
CREATE TABLE IF NOT EXISTS notes (name TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL);
"""

_NAMES: Final = frozenset(re.findall(r"CREATE TABLE IF NOT EXISTS (\w+)", TABLES))
LARGEST_VALUE: Final = 16 << 20
"""Bytes of a row: a reply is cut off long before."""

_NETWORK_FILE_SYSTEMS: Final = frozenset(
    {"afs", "beegfs", "ceph", "cifs", "gfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2"}
    | {"pvfs2", "smb2", "smb3", "smbfs", "fuse.ceph", "fuse.cifs", "fuse.glusterfs", "fuse.gcsfuse", "fuse.rclone"}
    | {"fuse.s3fs", "fuse.sshfs"}
)
"""Where several machines see one file: SQLite's write-ahead log needs memory that its users share."""


def file_system_of(path: Path) -> str | None:
    """The type of the file system that a path lies on, as Linux names it; None where the system does not say."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    place = os.path.realpath(path)
    best = ("", "")
    for line in mounts.splitlines():
        mounted, _, described = line.partition(" - ")
        point = mounted.split(" ")[4].encode().decode("unicode_escape")  # blanks are written as octal escapes
        # The last of several mounts on one point is the one that is seen.
        if (place == point or place.startswith(point.rstrip("/") + "/")) and len(point) >= len(best[0]):
            best = (point, described.split(" ")[0])
    return best[1] or None


def refuse_network(path: Path, type_of: Callable[[Path], str | None] = file_system_of) -> None:
    """Refuses a place where a label store could be damaged.

    Args:
        path: the store's file, which need not be there yet.
        type_of: says the type of the file system.

    Raises:
        InputError: it is a network file system.
    """
    found = type_of(path.parent)
    if found in _NETWORK_FILE_SYSTEMS:
        raise InputError(
            f"{path}: a label store cannot lie on a network file system ({found}), where it could be damaged: take a "
            "stage folder on a local disk"
        )


def open_tables(path: Path) -> sqlite3.Connection:
    """The file, its tables made where it is new, every commit forced to disk.

    Raises:
        InputError: it is no label store, it has another version, it is a link, or it cannot be written.
    """
    db: sqlite3.Connection | None = None
    try:
        db = sqlite3.connect(refuse_link(path), check_same_thread=False, isolation_level=None)
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, SCHEMA_VERSION):
            raise InputError(
                f"{path}: the label store has version {version}, this mulcot reads version {SCHEMA_VERSION}: "
                "use the mulcot that wrote it, or another stage folder"
            )
        check_schema(db, path)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        if version == 0:
            db.executescript(f"BEGIN;{TABLES}PRAGMA user_version={SCHEMA_VERSION};COMMIT;")
        # Which store sent a request; made once, so that a store that is copied must be given another one.
        db.execute("INSERT OR IGNORE INTO notes VALUES ('origin', ?)", (new_origin(),))
    except sqlite3.OperationalError as error:
        _close(db)
        raise cannot_write(path, str(error)) from error
    except sqlite3.DatabaseError as error:
        _close(db)
        raise InputError(
            f"{path}: no usable label store ({error}): move it away, or use another stage folder"
        ) from error
    except BaseException:
        _close(db)
        raise
    return db


def check_schema(db: sqlite3.Connection, path: Path) -> None:
    """Refuses a store with anything that would run when it is used, and bounds what is read of it at a time.

    Args:
        db: The open file.
        path: Its path, for the message.

    Raises:
        InputError: It has a trigger, a view, or a table that no store has.
    """
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_VALUE)
    db.execute("PRAGMA trusted_schema=OFF")
    db.execute("PRAGMA cell_size_check=ON")
    for kind, name in db.execute("SELECT type, name FROM sqlite_master"):
        ours = name in _NAMES if kind == "table" else kind == "index" and name.startswith("sqlite_autoindex_")
        if not ours:
            raise InputError(f"{path}: it has the {kind} {name!r}, which no label store has: do not use it")


def new_origin() -> str:
    """A name that no other store has."""
    return secrets.token_hex(8)


def cannot_write(path: Path, why: str) -> InputError:
    """The error of a full disk, a read-only folder and the like."""
    return InputError(
        f"{path}: the label store cannot be written ({why}): make room or allow writing there, then give the same "
        "command again; it goes on from what is stored"
    )


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns what SQLite and the system say of a disk into the user's error.

    Raises:
        InputError: the disk is full, the folder read-only, ...
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        raise cannot_write(path, str(error)) from error
    except OSError as error:
        raise cannot_write(path, error.strerror or str(error)) from error


@contextmanager
def whole_values(path: Path) -> Iterator[None]:
    """Turns what a value raises that no store has written into the user's error.

    Raises:
        InputError: a value is of another kind, or too long.
    """
    try:
        yield
    except InputError:
        raise
    except (sqlite3.DatabaseError, ValueError, TypeError, LookupError, RecursionError) as error:
        reason = " ".join((str(error) or type(error).__name__).split())
        raise InputError(
            f"{path}: the label store is damaged ({reason}): move it away, or use another stage folder"
        ) from error


def lock_store(path: Path) -> int:
    """The lock of a store, which lies beside it; see `take_lock`.

    Raises:
        InUseError: another process holds it.
        InputError: the folder cannot be written.
    """
    refusal = f"{path}: the label store is in use: wait until its process has finished or stop it, then start again"
    with explained(path):
        return take_lock(path.with_name(path.name + ".lock"), refusal, is_needed=True)


def _close(db: sqlite3.Connection | None) -> None:
    if db is not None:
        db.close()
