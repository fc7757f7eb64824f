"""Group commits: everything reaches the disk, in order, and a failure reaches whoever waits for it."""

from __future__ import annotations

import asyncio
import sqlite3
from functools import partial
from pathlib import Path

import pytest

from mulcot.teachers.store import LabelStore
from mulcot.teachers.store_writer import GroupCommit
from mulcot.types import InputError


def test_writes_share_commits_and_are_there_when_awaited(tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    commits = []

    async def write(store: LabelStore) -> None:
        writes = GroupCommit(store)

        async def one(number: int) -> None:
            await writes.commit(partial(store.begin, f"{number}", 0, "predict", None))
            with sqlite3.connect(path) as other:
                found = other.execute("SELECT count(*) FROM attempts WHERE key=?", (f"{number}",)).fetchone()
            other.close()
            assert found == (1,)

        await asyncio.gather(*(one(number) for number in range(50)))
        await writes.close()

    with LabelStore(path) as store:
        plain = store.write_all
        store.write_all = lambda writes: commits.append(1) or plain(writes)  # type: ignore[method-assign, func-returns-value]
        asyncio.run(write(store))
        assert store.read("SELECT count(*) FROM attempts") == [(50,)]
    assert len(commits) < 25


def test_notes_come_before_what_is_written_after_them_and_last_of_all_on_close(tmp_path: Path) -> None:
    done: list[str] = []

    async def write(store: LabelStore) -> None:
        writes = GroupCommit(store)
        writes.note(partial(done.append, "note"))
        assert done == []
        await writes.commit(partial(done.append, "commit"))
        assert done == ["note", "commit"]
        writes.note(partial(done.append, "late"))
        await writes.close()

    with LabelStore(tmp_path / "labels.sqlite") as store:
        asyncio.run(write(store))
    assert done == ["note", "commit", "late"]


def test_a_full_disk_reaches_the_writer(tmp_path: Path) -> None:
    async def begin_many(store: LabelStore, writes: GroupCommit) -> None:
        for number in range(1000):
            await writes.commit(partial(store.begin, f"{number}", 0, "predict", None))

    async def write(store: LabelStore) -> None:
        writes = GroupCommit(store)
        store._db.execute(f"PRAGMA max_page_count={store._db.execute('PRAGMA page_count').fetchone()[0]}")
        with pytest.raises(InputError, match="cannot be written"):
            await begin_many(store, writes)
        await writes.close()

    with LabelStore(tmp_path / "labels.sqlite") as store:
        asyncio.run(write(store))


def test_notes_that_were_lost_are_told_of_on_close(tmp_path: Path) -> None:
    async def write(store: LabelStore) -> None:
        writes = GroupCommit(store)
        writes.note(partial(store.refuse, "never begun", 0, "why"))
        with pytest.raises(LookupError, match="never begun"):
            await writes.close()

    with LabelStore(tmp_path / "labels.sqlite") as store:
        asyncio.run(write(store))
