"""Merging label stores: nothing lost, nothing doubled, in whatever order."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from mulcot.locks import InUseError
from mulcot.teachers.base import TeacherReply, TeacherSilentError
from mulcot.teachers.settled import Settled
from mulcot.teachers.store import LabelStore
from mulcot.teachers.store_merge import merge_store, remove_store
from mulcot.teachers.store_summary import reconcile
from mulcot.types import InputError, MissingInputError, Rationale, RationaleRecord

GOOD = Rationale("t", "i", "c", "f", "positive")
Fill = Callable[[LabelStore], None]


def make(path: Path, *fill: Fill) -> Path:
    with LabelStore(path) as store:
        for one in fill:
            one(store)
    return path


def answered(key: str, text: str = "reply", tokens: int = 10) -> Fill:
    def fill(store: LabelStore) -> None:
        store.begin(key, 0, "predict", None, "big")
        store.record_reply(key, 0, TeacherReply(text, tokens, 1))
        store.accept(key, 0, GOOD)

    return fill


def asked(key: str) -> Fill:
    return lambda store: store.begin(key, 0, "predict", None, "big")


def settled(post: str, position: int, failure: str | None = None) -> Fill:
    source = None if failure else "teacher-predicted"
    return lambda store: store.settle(
        [Settled("train", position, 0, post, "positive", None, source, failure, "", "big", "", ((post, 0, True),))]
    )


def content(path: Path) -> list[list[tuple]]:
    with LabelStore(path) as store:
        return [
            store.read("SELECT key, attempt, sent, reply, outcome FROM attempts ORDER BY key, attempt, origin"),
            store.read("SELECT key, attempt, rationale FROM accepted ORDER BY key"),
            store.read("SELECT post_id, record FROM imported ORDER BY post_id"),
        ]


def test_merging_is_the_same_in_every_order_and_when_repeated(tmp_path: Path) -> None:
    record = RationaleRecord("p", GOOD, "teacher-predicted", "big", "hash")
    parts = [
        make(tmp_path / "a", answered("1"), answered("both", "of a"), asked("open")),
        make(tmp_path / "b", answered("2"), answered("both", "of b"), lambda store: store.bring_in([record])),
        make(tmp_path / "c", answered("open", "there after all"), answered("3")),
    ]
    results = []
    for number, order in enumerate(itertools.permutations(parts)):
        whole = make(tmp_path / f"whole{number}")
        with LabelStore(whole) as store:
            for part in [*order, *order]:
                merge_store(store, part)
            chosen = store.reply("both", 0)
            found = reconcile(store)
        results.append((content(whole), chosen))
        assert (found.requests, found.replies, found.prompt_tokens) == (7, 6, 60), "each was sent, and paid, by its own"
        assert (found.unknown_outcome, found.open_attempts) == (1, 1)
    assert all(result == results[0] for result in results)
    with LabelStore(tmp_path / "whole0") as store:
        assert store.reply("open", 0) == TeacherReply("there after all", 10, 1), "a reply counts before an open attempt"


def test_a_copy_is_told_apart_and_its_newer_rows_count(tmp_path: Path) -> None:
    whole, copy = tmp_path / "whole", tmp_path / "copy"
    with LabelStore(whole) as store:
        asked("k")(store)
        store.copy_to(copy)
        with LabelStore(copy) as other:
            assert other.origin != store.origin
            answered("k")(other)
            answered("new")(other)
        merge_store(store, copy, append=False)
        assert store.reply("k", 0) is not None
        found = reconcile(store)
        assert (found.requests, found.replies, found.unknown_outcome) == (3, 2, 1)
    remove_store(copy)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole", "whole.lock"]


def test_what_ended_well_somewhere_counts(tmp_path: Path) -> None:
    one = make(tmp_path / "one", settled("a", 0), settled("b", 1, "malformed"), settled("c", 2))
    two = make(tmp_path / "two", settled("b", 0), settled("c", 1, "silent"), settled("d", 2))
    with LabelStore(one) as store:
        for _ in range(2):
            merge_store(store, two)
            rows = [(row.post_id, row.failure) for row in store.settled()]
            assert rows == [("a", None), ("c", None), ("b", None), ("d", None)]


def test_shards_keep_their_positions(tmp_path: Path) -> None:
    one = make(tmp_path / "one", settled("a", 0), settled("c", 2))
    two = make(tmp_path / "two", settled("b", 1), settled("d", 3))
    with LabelStore(one) as store:
        merge_store(store, two, append=False)
        assert [row.post_id for row in store.settled()] == ["a", "b", "c", "d"]


def test_a_silent_reply_is_merged(tmp_path: Path) -> None:
    def silent(store: LabelStore) -> None:
        asked("k")(store)
        store.record_silence("k", 0, "content filter")

    with LabelStore(tmp_path / "one") as store:
        asked("k")(store)
        merge_store(store, make(tmp_path / "two", silent))
        with pytest.raises(TeacherSilentError, match="content filter"):
            store.reply("k", 0)


def test_what_cannot_be_merged_is_named(tmp_path: Path) -> None:
    other = make(tmp_path / "other", lambda store: store.set_expected("the prompt", "abc"))
    junk = tmp_path / "junk"
    junk.write_text("no data base " * 100)
    with LabelStore(tmp_path / "one") as store:
        store.set_expected("the prompt", "def")
        with pytest.raises(InputError, match=r"other: it was made with the prompt abc, .*one with def"):
            merge_store(store, other)
        with pytest.raises(MissingInputError, match="gone: there is no such label store"):
            merge_store(store, tmp_path / "gone")
        with pytest.raises(InputError, match="junk: no usable label store"):
            merge_store(store, junk)
        with pytest.raises(InputError, match="cannot be merged into itself"):
            merge_store(store, tmp_path / "one")
        with LabelStore(other), pytest.raises(InUseError, match="the label store is in use: "):
            merge_store(store, other)
        assert store.read("SELECT count(*) FROM attempts") == [(0,)]
