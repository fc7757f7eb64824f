"""What a running chain shows: a live line on a terminal, and a log's end that cannot rewrite the terminal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mulcot.chain_display import clock, tail

CHAIN = """
run_dir: run
steps:
  a: {verb: make}
  b: {verb: make, after: [a], inherit: true}
"""
DRIVER = """
import sys
from mulcot import chain
chain.PROGRAM = [sys.executable, "fake.py"]
sys.exit(chain.main_run(["--config", "chain.yaml"]))
"""
FAKE = """
import json, sys, time
if sys.stdout.isatty():
    print("for the reader")
else:
    with open("run/a/progress.json", "w") as file:
        json.dump({"phase": "train", "done": 12, "total": 188, "unit": "steps"}, file)
    time.sleep(3)
"""


def test_a_terminal_shows_progress_while_a_step_runs_and_keeps_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {"chain.yaml": CHAIN, "fake.py": FAKE}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    leader, follower = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdout=follower, env=os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    )
    os.close(follower)
    parts = []
    while True:
        try:
            parts.append(os.read(leader, 65536))
        except OSError:  # the other side is closed
            break
    os.close(leader)
    assert process.wait(timeout=30) == 0
    shown = b"".join(parts).decode()
    assert "a train" in shown
    assert "12/188 steps" in shown
    after = shown[shown.index("a: finished in 0:0") :]
    assert "12/188" not in after
    assert after.index("b: started") < after.index("for the reader") < after.index("b: finished in 0:0")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (62.4, "1:02"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_tail_is_the_last_25_lines_without_control_characters(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_bytes(b"".join(b"line %d\n" % number for number in range(100_000)) + b"half\rwhole \x1b[2J\xff\ttab\n")
    assert tail(log) == [f"line {number}" for number in range(99_977, 100_000)] + ["half", "whole [2J\ufffd\ttab"]
    log.write_bytes(b"")
    assert tail(log) == []
