"""The label store: what it keeps, what it gives back, and who may hold it."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from mulcot.locks import InUseError
from mulcot.prompts import RenderedPrompt, Segment
from mulcot.teachers.base import TeacherReply, TeacherRequest, TeacherSilentError
from mulcot.teachers.content_keys import content_key, idempotency_key
from mulcot.teachers.store import LabelStore
from mulcot.teachers.store_files import file_system_of
from mulcot.types import InputError, Post, Rationale, RationaleRecord

RATIONALE = Rationale("t", "i", "none — é", "so", "positive")
REPLY = TeacherReply("ünchanged\r\n\x00 reply", 11, 7)


class Named:
    def __init__(self, name: str = "big", **parameters: str | float) -> None:
        self.name = name
        self.parameters: Mapping[str, str | int | float] = parameters

    async def complete(self, request: TeacherRequest) -> TeacherReply:
        raise NotImplementedError


class ById(Named):
    answers_by_id = True


POST = Post("1", "text", Path("a.jpg"), "aspect", "positive")
REQUEST = TeacherRequest(POST, RenderedPrompt((Segment("prompt", False),)), "explain", "positive")


def test_reply_comes_back_unchanged_after_reopening(tmp_path: Path) -> None:
    with LabelStore(tmp_path / "new" / "labels.sqlite") as store:
        assert store.reply("k", 0) is None
        store.begin("k", 0, "predict", None)
        assert store.reply("k", 0) is None
        store.record_reply("k", 0, REPLY)
    with LabelStore(tmp_path / "new" / "labels.sqlite") as store:
        assert store.reply("k", 0) == REPLY
        assert store.reply("k", 1) is None
        assert store.reply("other", 0) is None


def test_attempt_is_on_disk_before_anything_else(tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    with LabelStore(path) as store:
        store.begin("k", 2, "explain", "neutral")
        rows = sqlite3.connect(path).execute("SELECT key, attempt, use, label, sent, reply, outcome FROM attempts")
        assert rows.fetchall() == [("k", 2, "explain", "neutral", 1, None, None)]
        store.begin("k", 2, "explain", "neutral")
        assert sqlite3.connect(path).execute("SELECT sent FROM attempts").fetchall() == [(2,)]


def test_attempts_and_replies_are_forced_to_disk(tmp_path: Path) -> None:
    full = (2,)
    with LabelStore(tmp_path / "labels.sqlite") as store:
        assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert store._db.execute("PRAGMA synchronous").fetchone() == full
        store.begin("k", 0, "predict", None)
        store.accept("k", 0, RATIONALE)
        assert store._db.execute("PRAGMA synchronous").fetchone() == full
        with pytest.raises(LookupError):
            store.refuse("k", 1, "never begun")
        assert store._db.execute("PRAGMA synchronous").fetchone() == full


def test_silence_is_remembered(tmp_path: Path) -> None:
    with LabelStore(tmp_path / "labels.sqlite") as store:
        store.begin("k", 0, "predict", None)
        store.record_silence("k", 0, "content filter")
        with pytest.raises(TeacherSilentError, match=r"^content filter$"):
            store.reply("k", 0)


def test_judgements(tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    with LabelStore(path) as store:
        for attempt in (0, 1):
            store.begin("k", attempt, "predict", None)
            store.record_reply("k", attempt, REPLY)
        both = [("k", 0), ("k", 1)]
        store.refuse("k", 0, "no Prediction")
        assert store.accepted(both) == {}
        store.accept("k", 1, RATIONALE)
        assert store.accepted(both) == {("k", 1): RATIONALE}
        outcomes = store._db.execute("SELECT outcome, reason FROM attempts ORDER BY attempt").fetchall()
        assert outcomes == [("refused", "no Prediction"), ("accepted", None)]
        store.refuse("k", 1, "a stricter parser")
        assert store.accepted(both) == {}
        assert store.reply("k", 1) == REPLY, "a refused reply is kept"


def test_a_repeated_judgement_writes_nothing(tmp_path: Path) -> None:
    with LabelStore(tmp_path / "labels.sqlite") as store:
        store.begin("k", 0, "predict", None)
        store.accept("k", 0, RATIONALE)
        before = store._db.total_changes
        store.accept("k", 0, RATIONALE)
        assert store._db.total_changes == before
        store.accept("k", 0, replace(RATIONALE, text_analysis="parsed better"))
        assert store.accepted([("k", 0)]) == {("k", 0): replace(RATIONALE, text_analysis="parsed better")}


def test_an_attempt_that_was_never_begun_cannot_be_answered(tmp_path: Path) -> None:
    with LabelStore(tmp_path / "labels.sqlite") as store:
        with pytest.raises(LookupError, match="never begun"):
            store.record_reply("k", 0, REPLY)
        with pytest.raises(LookupError, match="never begun"):
            store.accept("k", 0, RATIONALE)
        assert store.accepted([("k", 0)]) == {}


def test_any_number_of_attempts_is_looked_up_at_once(tmp_path: Path) -> None:
    asks = [(f"key {number}", number % 3) for number in range(1001)]
    with LabelStore(tmp_path / "labels.sqlite") as store, store.transaction():
        for number, (key, attempt) in enumerate(asks):
            store.begin(key, attempt, "predict", None)
            store.record_reply(key, attempt, TeacherReply("reply", number, 2 * number))
            store.accept(key, attempt, replace(RATIONALE, text_analysis=key))
    with LabelStore(tmp_path / "labels.sqlite") as store:
        assert store.tokens(asks) == {ask: (number, 2 * number) for number, ask in enumerate(asks)}
        assert {ask: found.text_analysis for ask, found in store.accepted(asks).items()} == {
            ask: ask[0] for ask in asks
        }
        assert (store.tokens([]), store.accepted([])) == ({}, {})


def test_the_tokens_of_an_attempt_are_those_of_the_reply_that_counts(tmp_path: Path) -> None:
    with LabelStore(tmp_path / "labels.sqlite") as store:
        for store.origin, reply in (
            ("a", None),
            ("b", TeacherReply("reply", 5, 7)),
            ("c", TeacherReply("reply", 1, 2)),
        ):
            store.begin("k", 0, "predict", None)
            if reply is not None:
                store.record_reply("k", 0, reply)
        store.begin("k", 1, "predict", None)
        asks = [("k", 0), ("k", 1), ("never asked", 0)]
        assert store.tokens(asks) == {("k", 0): (5, 7), ("k", 1): (0, 0), ("never asked", 0): (0, 0)}


def test_key_depends_on_everything_that_a_reply_depends_on() -> None:
    def key(
        teacher: Named | None = None, request: TeacherRequest = REQUEST, prompt: str = "p", image: str = "i"
    ) -> str:
        return content_key(teacher or Named(seed=1), request, prompt, image)

    keys = [
        key(),
        key(Named("bigger", seed=1)),
        key(Named(seed=2)),
        key(Named(seed=1, temperature=0.7)),
        key(prompt="q"),
        key(image="j"),
        key(request=replace(REQUEST, prompt=RenderedPrompt((Segment("other", False),)))),
        key(request=replace(REQUEST, post=replace(POST, text="other"))),
        key(request=replace(REQUEST, post=replace(POST, aspect="other"))),
        key(request=replace(REQUEST, post=replace(POST, aspect=None))),
        key(request=replace(REQUEST, label="neutral")),
        key(request=replace(REQUEST, use="predict", label=None)),
        key(request=replace(REQUEST, sample=1)),
    ]
    assert len(set(keys)) == len(keys)
    assert all(len(name) == 64 for name in keys)


def test_key_leaves_out_what_a_reply_does_not_depend_on() -> None:
    other = replace(POST, id="2", label="negative", image=Path("elsewhere.jpg"))
    requests = [REQUEST, replace(REQUEST, post=other), replace(REQUEST, attempt=3)]
    assert len({content_key(Named(seed=1, top_p=0.9), request, "p", "i") for request in requests}) == 1
    assert content_key(Named(a=1, b=2), REQUEST, "p", "i") == content_key(Named(b=2, a=1), REQUEST, "p", "i")


def test_key_holds_the_id_for_a_teacher_that_answers_by_id() -> None:
    other = replace(REQUEST, post=replace(POST, id="2"))
    assert content_key(ById(), REQUEST, "p", "i") != content_key(ById(), other, "p", "i")


def test_second_holder_is_told_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    code = (
        "import sys\nfrom pathlib import Path\nfrom mulcot.teachers.store import LabelStore\n"
        "store = LabelStore(Path(sys.argv[1]))\nprint('held', flush=True)\nsys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InUseError) as refused:
            LabelStore(path)
        assert refused.value.exit_code == 75
        message = str(refused.value)
        assert f"{path}: the label store is in use: " in message
        assert message.endswith(f"(process {holder.pid} on {socket.gethostname()})")
        assert "\n" not in message
        os.kill(holder.pid, signal.SIGKILL)
    LabelStore(path).close()


def test_lock_is_given_back_on_close_and_on_failure(tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    store = LabelStore(path)
    with pytest.raises(InputError, match=f"process {os.getpid()} on "):
        LabelStore(path)
    store.close()
    store.close()
    path.write_text("this is no data base, " * 100)
    for _ in range(2):
        with pytest.raises(InputError, match="no usable label store"):
            LabelStore(path)


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_of_somebody_elses_run_is_not_written_through(tmp_path: Path, exists: bool) -> None:
    victim = tmp_path / "victim.sqlite"
    if exists:
        LabelStore(victim).close()
    before = victim.read_bytes() if exists else None
    (tmp_path / "labels.sqlite").symlink_to(victim)
    with pytest.raises(InputError, match=r"labels\.sqlite: is a symbolic link, through which nothing is written"):
        LabelStore(tmp_path / "labels.sqlite")
    assert (victim.read_bytes() if victim.exists() else None) == before


def test_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    LabelStore(path).close()
    db = sqlite3.connect(path)
    for version in (99, 1):
        db.execute(f"PRAGMA user_version={version}")
        with pytest.raises(InputError, match=rf"labels\.sqlite: the label store has version {version}, .* version 2"):
            LabelStore(path)
    db.close()


def test_idempotency_key_belongs_to_key_and_attempt() -> None:
    keys = [idempotency_key(key, attempt) for key in ("a", "b") for attempt in (0, 1)]
    assert len(set(keys)) == 4
    assert keys[0] == idempotency_key("a", 0)
    assert all(len(key) == 32 for key in keys)


def test_a_reply_keeps_why_it_ends(tmp_path: Path) -> None:
    with LabelStore(tmp_path / "labels.sqlite") as store:
        store.begin("k", 0, "predict", None)
        store.record_reply("k", 0, replace(REPLY, finish="length"))
        assert store.reply("k", 0) == replace(REPLY, finish="length")


def test_an_absent_reply_leaves_the_attempt_open(tmp_path: Path) -> None:
    with LabelStore(tmp_path / "labels.sqlite") as store:
        store.begin("k", 0, "predict", None)
        store.record_absence("k", 0, "503 eight times")
        assert store.reply("k", 0) is None
        assert not store.is_answered("k", 0)
        assert store.read("SELECT sent, outcome, reason FROM attempts") == [(1, None, "503 eight times")]
        store.begin("k", 0, "predict", None)
        store.record_reply("k", 0, REPLY)
        assert store.read("SELECT sent, outcome, reason FROM attempts") == [(2, None, None)]
        assert store.is_answered("k", 0)


def test_a_request_that_was_not_sent_after_all_is_withdrawn(tmp_path: Path) -> None:
    with LabelStore(tmp_path / "labels.sqlite") as store:
        store.begin("k", 0, "predict", None)
        store.begin("k", 0, "predict", None)
        store.withdraw("k", 0)
        assert store.read("SELECT sent FROM attempts") == [(1,)]
        store.withdraw("k", 0)
        assert store.read("SELECT sent FROM attempts") == []


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "lustre"])
def test_network_file_systems_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "labels.sqlite"
    with pytest.raises(InputError, match=rf"labels\.sqlite: a label store cannot lie on a network .*\({kind}\)"):
        LabelStore(path, file_system=lambda _: kind)
    assert list(tmp_path.iterdir()) == []
    LabelStore(path, file_system=lambda _: None).close()


def test_file_systems_are_told_by_their_mounts(tmp_path: Path) -> None:
    known = {line.split(" - ")[1].split()[0] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    assert file_system_of(tmp_path / "not" / "there") in known
    assert file_system_of(Path("/proc/self")) == "proc"


def begin_many(store: LabelStore) -> None:
    for number in range(1000):
        store.begin(f"{number}", 0, "predict", None)


def test_full_disk_is_the_users_to_mend(tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    with LabelStore(path) as store:
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises(InputError, match=r"labels\.sqlite: the label store cannot be written \(.*full\).* goes on"):
            begin_many(store)
        kept = store.read("SELECT count(*) FROM attempts")
        store._db.execute(f"PRAGMA max_page_count={pages + 1000}")
        store.begin("after", 0, "predict", None)
        assert store.read("SELECT count(*) FROM attempts") == [(kept[0][0] + 1,)]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/labels\.sqlite: the label store cannot be written"):
        LabelStore(tmp_path / "file" / "labels.sqlite")
    with pytest.raises(InputError, match=r"the label store cannot be written"):
        LabelStore(Path("/proc/self/labels.sqlite"))


def test_records_are_brought_in_once(tmp_path: Path) -> None:
    records = [RationaleRecord(post, RATIONALE, "teacher-predicted", "big", "hash") for post in ("1", "2")]
    with LabelStore(tmp_path / "labels.sqlite") as store:
        assert store.bring_in(records) == 2
        assert store.bring_in([*records, replace(records[0], attempts=2)]) == 1
        assert store.brought_in("1") == [records[0], replace(records[0], attempts=2)]
        assert store.brought_in("3") == []


def test_what_all_runs_share_is_compared(tmp_path: Path) -> None:
    with LabelStore(tmp_path / "labels.sqlite") as store:
        store.expect("the prompt", "abc", "all would be asked anew")
        store.set_expected("the prompt", "abc")
        store.expect("the prompt", "abc", "all would be asked anew")
        with pytest.raises(InputError, match="made with the prompt abc, now it is def: all would be asked anew"):
            store.expect("the prompt", "def", "all would be asked anew")
