"""What only real processes show: labelling that is killed again and again, several processes, a second Ctrl-C."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from mulcot.teachers.content_keys import idempotency_key
from mulcot.teachers.store import LabelStore
from mulcot.teachers.store_summary import reconcile
from mulcot.types import DEFAULT_LABELS

pytestmark = pytest.mark.slow

POSTS = 500
KILLS = 20
CONCURRENCY = 12
FAULTS = (
    "408", "409", "425", "429-seconds", "500", "502", "503", "529", "reset-before", "reset-inside", "short-body",
    "truncated-json", "html", "bad-utf8", "late-duplicate", "length", "content-filter", "label-outside",
    "whitespace-loop", "fences", "wrong-label",
)  # fmt: skip
READ_AND_REFUSED = {"length", "content-filter", "label-outside", "whitespace-loop"}
"""Faults whose replies are read whole, paid for, and asked for again."""

# Imports take seconds: one process has them done and forks for every command, which then leads a process group.
FORKS = """
import json, os, sys
import mulcot.stage_process
from mulcot.cli import main
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        log = os.open(json.loads(line)[0], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for handle in (1, 2):
            os.dup2(log, handle)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        try:
            code = main(json.loads(line)[1:])
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Forks:
    """Runs `mulcot` commands one after the other."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process, self.log = process, log

    def start(self, args: Sequence[object]) -> int:
        """The process group of a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([str(self.log), *map(str, args)]) + "\n")
        self.process.stdin.flush()
        return self._number()

    def ended(self) -> int:
        """Waits for the command; its exit code."""
        return self._number()

    def _number(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


@contextmanager
def forks(folder: Path) -> Iterator[Forks]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield Forks(process, folder / "log.txt")
        finally:
            process.kill()


def write_posts(folder: Path, count: int) -> None:
    (folder / "images").mkdir()
    Image.new("RGB", (16, 16), (200, 120, 40)).save(folder / "images" / "all.jpg")
    rows = []
    for number in range(count):
        label = DEFAULT_LABELS[number % 3]
        # Of every fifth post the server guesses the label.
        hint = "" if number % 5 == 0 else f" gold={label}"
        rows.append({"id": str(number), "text": f"post {number}{hint}", "image": "all.jpg", "label": label})
    for split, part in {"train": rows[:-2], "val": rows[-2:-1], "test": rows[-1:]}.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))


def command(folder: Path, url: str, **settings: object) -> list[object]:
    teacher = {
        "class_path": "mulcot.teachers.OpenAITeacher",
        "init_args": {
            "base_url": url, "model": "fault-model", "api_key_env": None, "max_pixels": None, "deadline": 20.0,
            "max_backoff": 0.2, "give_up_after": 1000,
        },
    }  # fmt: skip
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "val", "test")}
    posts = {"class_path": "Table", "init_args": {"files": files, "image_root": str(folder / "images")}}
    options: dict[str, object] = {
        "model.init_args.teacher": json.dumps(teacher),
        "model.init_args.concurrency": CONCURRENCY,
        "data.init_args.posts": json.dumps(posts),
        "trainer.enable_progress_bar": "false",
        **settings,
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    return ["predict", "--config", "teacher.yaml", "--run_dir", folder / "run", "--yes", *flags]


def wait_for(condition: Callable[[], bool], group: int, seconds: float = 120) -> None:
    """Waits for something that the process group does, as long as it is there."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        assert Path(f"/proc/{group}").exists(), "it ended before"
        time.sleep(0.005)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def of_all_splits(path: Path) -> list[dict[str, Any]]:
    return [line for split in ("train", "val", "test") for line in lines(Path(str(path).format(split)))]


def committed(path: Path) -> tuple[set[str], int]:
    """The idempotency keys of all stored replies, and the sendings of unknown outcome."""
    with LabelStore(path) as store:
        rows = store.read("SELECT key, attempt FROM attempts WHERE reply IS NOT NULL")
        return {idempotency_key(key, attempt) for key, attempt in rows}, reconcile(store).unknown_outcome


def test_twenty_kills_lose_double_and_pay_nothing(fault_server: ModuleType, tmp_path: Path) -> None:
    write_posts(tmp_path, POSTS)
    rng = random.Random(20)
    stage = tmp_path / "run" / "teacher"
    store_path = stage / "labels.sqlite"
    faults = dict.fromkeys(FAULTS, 0.15 / len(FAULTS))
    options = ("--faults", json.dumps(faults), "--by", "question", "--delay", "0.1", "--retry-after", "0.2")
    stored_at: list[tuple[int, set[str]]] = []
    unknown = [0]
    with fault_server.in_process(tmp_path, *options) as server, forks(tmp_path) as program:
        for kill in range(KILLS):
            before = len(server.log)
            group = program.start(command(tmp_path, server.url))
            rest = POSTS - (len(stored_at[-1][1]) if stored_at else 0)
            enough = rng.randint(1, CONCURRENCY + rest // (KILLS + 1 - kill))
            wait_for(lambda: len(server.log) >= before + enough, group)  # noqa: B023
            time.sleep(rng.random() * 0.1)
            os.killpg(group, signal.SIGKILL)
            assert program.ended() == -signal.SIGKILL, (tmp_path / "log.txt").read_text()[-3000:]
            assert not (stage / "manifest.json").exists()
            keys, unknown_now = committed(store_path)
            stored_at.append((len(server.log), keys))
            assert 0 <= unknown_now - unknown[-1] <= CONCURRENCY, "no more than was under way is unknown"
            unknown.append(unknown_now)
        program.start(command(tmp_path, server.url))
        assert program.ended() == 0, (tmp_path / "log.txt").read_text()[-3000:]
        log, bill = server.log, server.bill

    accepted = of_all_splits(stage / "rationales-{}.jsonl")
    counts = json.loads((stage / "metrics.json").read_text())["splits"].values()
    gold = {row["id"]: row["label"] for row in of_all_splits(tmp_path / "{}.jsonl")}
    lost = gold.keys() - {line["post_id"] for line in accepted}
    doubled = [post for post, count in Counter(line["post_id"] for line in accepted).items() if count > 1]
    malformed = [
        line for line in accepted
        if line["rationale"]["Prediction"] != gold[line["post_id"]] or not all(line["rationale"].values())
    ]  # fmt: skip
    paid_again = [sending for number, keys in stored_at for sending in log[number:] if sending.idempotency_key in keys]
    with LabelStore(store_path) as store:
        found = reconcile(store)
        ((explained,),) = store.read("SELECT count(*) FROM attempts WHERE use='explain' AND attempt=0")
        ((asked_again,),) = store.read("SELECT count(*) FROM attempts WHERE attempt > 0")
        ((refused,),) = store.read("SELECT count(*) FROM attempts WHERE outcome='refused'")
    met = Counter(sending.fault for sending in log if sending.fault)
    print(
        f"\n{POSTS} posts, {KILLS} kills, {sum(met.values())} faults: {len(lost)} lost, {len(doubled)} doubled, "
        f"{len(malformed)} malformed accepted, {len(paid_again)} committed replies asked for again; "
        f"bill {bill} = {POSTS} predictions + {explained} explanations + {asked_again} re-asks; "
        f"{len(log)} sendings, {found.unknown_outcome} of unknown outcome at the kills"
    )
    assert (lost, doubled, malformed, paid_again) == (set(), [], [], [])
    assert POSTS == len(gold) == sum(split["posts"] for split in counts)
    assert sum(split["accepted_predicted"] + split["accepted_explained"] for split in counts) == POSTS
    assert bill == POSTS + explained + asked_again
    # A reply that was under way at a kill is sent again under its key, with the same fault.
    read = {sending.idempotency_key for sending in log if sending.fault in READ_AND_REFUSED}
    assert asked_again == refused == len(read)
    assert (found.unknown_outcome, found.open_attempts) == (unknown[-1], 0)
    assert sum(met.values()) > 0.1 * POSTS


def test_a_second_process_leaves_at_once(fault_server: ModuleType, tmp_path: Path) -> None:
    write_posts(tmp_path, 600)  # so many that the first is at work until it is killed
    with fault_server.in_process(tmp_path, "--delay", "5") as server, forks(tmp_path) as first:
        group = first.start(command(tmp_path, server.url))
        wait_for(lambda: len(server.log) == CONCURRENCY, group)
        second = subprocess.run(
            [sys.executable, "-m", "mulcot", *map(str, command(tmp_path, server.url))],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert second.returncode == 75, second.stderr
        (line,) = [line for line in second.stderr.splitlines() if line.startswith("mulcot: error:")]
        assert f"works on this stage; wait for it or end it (process {group} on {os.uname().nodename})" in line
        os.killpg(group, signal.SIGKILL)
        first.ended()
        assert {sending.sending for sending in server.log} == {1}, "the second one sent nothing"


def test_ctrl_c_drains_and_leaves_with_130(fault_server: ModuleType, tmp_path: Path) -> None:
    write_posts(tmp_path, 60)
    with fault_server.in_process(tmp_path, "--delay", "0.5") as server, forks(tmp_path) as program:
        group = program.start(command(tmp_path, server.url))
        wait_for(lambda: len(server.log) >= CONCURRENCY, group)
        os.killpg(group, signal.SIGINT)
        assert program.ended() == 130
        assert not (tmp_path / "run" / "teacher" / "manifest.json").exists()
        keys, unknown = committed(tmp_path / "run" / "teacher" / "labels.sqlite")
        assert len(keys) == len(server.log) < 60
        assert unknown == 0
        program.start(command(tmp_path, server.url))
        assert program.ended() == 0
        assert server.bill == len({sending.idempotency_key for sending in server.log}) == len(server.log)
    shown = (tmp_path / "log.txt").read_text()
    assert "stopping: replies under way are awaited" in shown
    assert "Traceback" not in shown


def test_two_processes_label_their_shards(fault_server: ModuleType, tmp_path: Path) -> None:
    """The files are those of one process, nothing is asked twice, and a killed run is taken over by a single one."""
    write_posts(tmp_path, 90)
    two = {"trainer.devices": 2, "trainer.strategy": "ddp", "data.init_args.eval_batch_size": 8}
    stage = tmp_path / "run" / "teacher"

    def run(url: str, code: int = 0, **settings: object) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "mulcot", *map(str, command(tmp_path, url, **settings))],
            capture_output=True, text=True, timeout=300, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    with fault_server.in_process(tmp_path) as server:
        shown = run(server.url, 75, **two, **{"model.init_args.max_requests": 40})
        assert "limit of" in shown
        assert 30 <= len(server.log) <= 40
        assert not (stage / "rationales-train.jsonl").exists()
        run(server.url, **two)
        by_two = (stage / "rationales-train.jsonl").read_bytes()
        assert [line["post_id"] for line in of_all_splits(stage / "rationales-{}.jsonl")] == [str(n) for n in range(90)]
        assert not list(stage.glob("labels.rank*"))
        asked = len(server.log)
        assert server.bill == asked == len({sending.idempotency_key for sending in server.log})
        (stage / "manifest.json").unlink()
        run(server.url)
        assert len(server.log) == asked
        assert (stage / "rationales-train.jsonl").read_bytes() == by_two


@pytest.mark.parametrize("told", ["first", "second"])
def test_a_signal_to_one_process_ends_the_labelling_of_all(fault_server: ModuleType, tmp_path: Path, told: str) -> None:
    """A scheduler may tell one process alone: the others would go on asking, at the user's cost."""
    write_posts(tmp_path, 400)
    two = {"trainer.devices": 2, "trainer.strategy": "ddp", "data.init_args.eval_batch_size": 8}
    stage = tmp_path / "run" / "teacher"
    with fault_server.in_process(tmp_path, "--delay", "0.5") as server, (tmp_path / "log.txt").open("w+") as log:
        with subprocess.Popen(
            [sys.executable, "-m", "mulcot", *map(str, command(tmp_path, server.url, **two))],
            stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
        ) as first:  # fmt: skip
            wait_for(lambda: len(server.log) >= 2 * CONCURRENCY, first.pid)
            second = int(Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()[-1])
            os.kill(first.pid if told == "first" else second, signal.SIGTERM)
            began = time.monotonic()
            assert first.wait(120) == 143, (tmp_path / "log.txt").read_text()[-3000:]
            assert time.monotonic() - began < 20
        sent = len(server.log)
        assert sent < 200, "the other process went on"
        time.sleep(2)
        assert len(server.log) == sent, "the other process goes on"
        stores = [stage / "labels.sqlite", stage / "labels.rank1.sqlite"]
        found = [committed(store) for store in stores]
        assert sum(len(keys) for keys, _ in found) == sent
        assert [unknown for _, unknown in found] == [0, 0], "replies that were paid for are lost"
