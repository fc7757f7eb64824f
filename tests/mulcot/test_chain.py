"""The chain: order, skipping, staleness, options, several at once, failure and interruption.

The steps run a small program in place of `mulcot`: it reads `--reads`, writes its stage's `out.txt` and a manifest.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mulcot import chain
from mulcot.chain import main_run
from mulcot.types import InputError, MissingInputError

FAKE = """
import json, os, sys, time
from datetime import UTC, datetime
from pathlib import Path
from mulcot.manifests import input_digests, make_manifest, output_digests, write_manifest

argv, started = sys.argv[1:], datetime.now(UTC)
options = dict(zip(argv[1::2], argv[2::2]))
folder = Path(options["--out"]) if "--out" in options else Path(options["--run_dir"], options["--stage"])
events = folder.parent / "events.jsonl"

def note(what):
    with events.open("a") as file:
        file.write(json.dumps({"step": folder.name, "what": what, "at": time.monotonic(), "argv": argv,
                               "threads": os.environ["OMP_NUM_THREADS"], "chain": os.environ["MULCOT_CHAIN"],
                               "nice": os.getpriority(os.PRIO_PROCESS, 0)}) + "\\n")

note("start")
print("I am", folder.name, flush=True)
inputs = input_digests(folder, [Path(part) for part in json.loads(options.get("--reads", "[]"))])
time.sleep(float(options.get("--sleep", 0)))
while options.get("--await", "") not in events.read_text():
    time.sleep(0.01)
text = "".join((folder.parent / name).read_text() for name in inputs if not os.path.isabs(name))
if Path(f"fail-{folder.name}").exists():
    print("\\n".join(f"line {number}" for number in range(40)), "\\x1b[2Jbad thing")
    sys.exit(7)
folder.mkdir(parents=True, exist_ok=True)
(folder / "out.txt").write_text(text if "--copy" in options else text + folder.name + options.get("--say", ""))
if "--silent" not in options:
    outputs = output_digests(folder, [folder / "out.txt"])
    write_manifest(folder, make_manifest(argv, inputs=inputs, outputs=outputs, seed=None, started=started))
note("end")
"""

Write = Callable[..., None]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the fake program and three configurations."""
    (tmp_path / "fake.py").write_text(FAKE)
    for name in ("fit", "over", "extra"):
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chain, "PROGRAM", [sys.executable, str(tmp_path / "fake.py")])
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def write_chain(steps: dict[str, Any], **settings: Any) -> None:
    Path("chain.yaml").write_text(yaml.safe_dump({"run_dir": "runs/demo", "steps": steps, **settings}, sort_keys=False))


def plain(*after: str, reads: list[str] | None = None, **more: Any) -> dict[str, Any]:
    """A step of a verb that is not Lightning's; it reads the outputs of the steps that it comes after."""
    read = [f"${{run_dir}}/{name}/out.txt" for name in after] if reads is None else reads
    return {"verb": "make", "after": list(after), "set": {"out": "${run_dir}/${stage}", "reads": read, **more}}


def fit(*after: str, **more: Any) -> dict[str, Any]:
    """A step of Lightning's verb."""
    return {"verb": "fit", "config": "fit.yaml", "after": list(after), **more}


def go(*options: str) -> int:
    return main_run(["--config", "chain.yaml", *options])


def events(run: str = "runs/demo") -> list[dict[str, Any]]:
    path = Path(run, "events.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ran(*options: str, code: int = 0) -> list[str]:
    """Run the chain; the steps that started, in their order."""
    before = len(events())
    assert go(*options) == code
    return [event["step"] for event in events()[before:] if event["what"] == "start"]


@pytest.mark.usefixtures("work")
def test_order_skipping_and_what_a_change_makes_stale(capfd: pytest.CaptureFixture[str]) -> None:
    steps = {"last": plain("middle"), "middle": plain("first"), "first": plain(), "aside": plain()}
    write_chain(steps)
    assert ran("--jobs", "1") == ["first", "middle", "last", "aside"]
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "first: started"
    assert lines[1].startswith("first: finished in 0:0")
    assert Path("runs/demo/first/log.txt").read_text() == "I am first\n"

    assert ran() == []
    assert "middle: finished before, skipped" in capfd.readouterr().out

    steps["middle"]["set"]["say"] = "!"  # its own command changes, `last` has another input then
    write_chain(steps)
    assert ran() == ["middle", "last"]
    out = capfd.readouterr().out
    assert "middle: started (its configuration changed)" in out
    assert "last: started (input middle/out.txt changed)" in out
    assert Path("runs/demo/last/out.txt").read_text() == "firstmiddle!last"

    Path("runs/demo/aside/out.txt").unlink()
    assert ran() == ["aside"]


@pytest.mark.usefixtures("work")
def test_the_same_result_again_leaves_what_follows_finished() -> None:
    steps = {"first": plain(), "last": plain("first", reads=["${run_dir}/first/out.txt"])}
    write_chain(steps)
    assert ran() == ["first", "last"]
    steps["first"]["set"]["note"] = "other key, same result"
    write_chain(steps)
    assert ran() == ["first"]


@pytest.mark.usefixtures("work")
def test_command_of_a_lightning_step() -> None:
    write_chain(
        {
            "assistant": fit(
                overlays=["extra.yaml"],
                set={
                    "trainer.max_epochs": 3,
                    "trainer.devices": [0, 1],
                    "flag": True,
                    "none": None,
                    "shift": -1.5,
                    "path": "${data_root}/x",
                },
            ),
        },
        overlays=["over.yaml"], data_root="${run_dir}/data", threads=3,
    )  # fmt: skip
    assert ran() == ["assistant"]
    (event, _) = events()
    assert event["argv"] == [
        "fit", "--config", "fit.yaml", "--config", "over.yaml", "--config", "extra.yaml",
        "--run_dir", "runs/demo", "--stage", "assistant", "--data_root", "runs/demo/data",
        "--trainer.max_epochs", "3", "--trainer.devices", "[0, 1]", "--flag", "true", "--none", "null",
        "--shift=-1.5", "--path", "runs/demo/data/x",
    ]  # fmt: skip
    assert (event["threads"], event["chain"]) == ("3", "1")
    written = json.loads(Path("runs/demo/chain.json").read_text())
    assert written["steps"][0]["command"] == [*chain.PROGRAM, *event["argv"]]


@pytest.mark.usefixtures("work")
def test_the_command_line_goes_before_the_file() -> None:
    write_chain({"a": fit()}, data_root="here", jobs=2)
    assert go("--run_dir", "other", "--data_root", "there", "--jobs", "1") == 0
    argv = events("other")[0]["argv"]
    assert argv[argv.index("--data_root") + 1] == "there"
    assert json.loads(Path("other/chain.json").read_text())["jobs"] == 1


@pytest.mark.usefixtures("work")
def test_fresh_only_where_something_else_lies_there() -> None:
    def fresh() -> bool:
        assert ran() == ["a"]
        return "--fresh" in events()[-1]["argv"]

    write_chain({"a": fit()})
    Path("fail-a").touch()
    assert go() == 7
    Path("fail-a").unlink()
    assert not fresh()  # unfinished, the same configuration: it resumes
    Path("over.yaml").write_text("lr: 2")
    write_chain({"a": fit(overlays=["over.yaml"])})
    assert fresh()  # finished, but stale
    assert ran() == []
    Path("runs/demo/a/manifest.json").unlink()
    Path("fit.yaml").write_text("name: other")
    assert fresh()  # unfinished, with another configuration's leftovers
    assert ran() == []


@pytest.mark.usefixtures("work")
def test_from_only_and_force(capfd: pytest.CaptureFixture[str]) -> None:
    write_chain({"a": fit(), "b": plain("a"), "c": plain("b"), "side": plain("a")})
    with pytest.raises(
        MissingInputError, match=r"runs/demo/a: the step a is needed: never finished; mulcot run .*a,b$"
    ):
        go("--from", "c")
    with pytest.raises(MissingInputError, match=r"--only a$"):
        go("--only", "b")
    assert ran("--only", "a") == ["a"]
    assert ran("--only", "a,b") == ["b"]
    assert set(ran()) == {"c", "side"}
    assert ran("--from", "b") == ["b", "c"]
    assert ran("--only", "side") == []
    assert ran("--only", "side", "--force") == ["side"]
    capfd.readouterr()
    assert set(ran("--force")) == {"a", "b", "c", "side"}
    assert "--fresh" in next(event["argv"] for event in reversed(events()) if event["step"] == "a")
    assert "a: started (--force)" in capfd.readouterr().out
    with pytest.raises(InputError, match=r"--from: chain\.yaml has no step `sid`; did you mean `side`"):
        go("--from", "sid")
    with pytest.raises(InputError, match="exclude each other"):
        go("--from", "a", "--only", "a")


@pytest.mark.usefixtures("work")
def test_dry_run_shows_and_touches_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    steps = {"a": plain(), "b": plain("a"), "c": plain("b")}
    write_chain(steps)
    assert go("--only", "a") == 0
    files = sorted(Path("runs").rglob("*"))
    capfd.readouterr()
    assert go("--dry-run") == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capfd.readouterr().out.splitlines()]
    reads = "'[\"runs/demo/a/out.txt\"]'"
    assert [row for row in rows if row] == [
        ["a", "mulcot make --out runs/demo/a --reads '[]'", "finished"],
        ["b", f"mulcot make --out runs/demo/b --reads {reads}", "to run: never finished"],
        ["c", f"mulcot make --out runs/demo/c --reads {reads.replace('/a/', '/b/')}", "to run: never finished"],
    ]
    assert sorted(Path("runs").rglob("*")) == files
    assert go() == 0
    steps["b"]["set"]["say"] = "!"
    write_chain(steps)
    capfd.readouterr()
    assert go("--dry-run") == 0
    out = capfd.readouterr().out
    assert "to run: its configuration changed" in out
    assert "to run: unless b gives the same result again" in out


@pytest.mark.usefixtures("work")
def test_dry_run_spells_out_what_would_act_on_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    write_chain({"a": plain(**{"x": "\x1b[32m[bold]b[/bold][/]"})})
    assert go("--dry-run") == 0
    assert "[U+001B][32m[bold]b[/bold][/]" in capfd.readouterr().out


@pytest.mark.usefixtures("work")
def test_a_run_folder_below_a_file_is_refused_in_one_line() -> None:
    write_chain({"a": plain()})
    Path("file").touch()
    with pytest.raises(InputError, match="file/x/a: cannot be a folder"):
        go("--run_dir", "file/x")


@pytest.mark.usefixtures("work")
def test_seeds_make_one_step_each_and_after_means_all_of_them() -> None:
    write_chain({"end": plain("student", reads=[]), "student": fit(seeds=True)}, seeds=[0, 5])
    assert ran("--jobs", "1") == ["student-seed0", "student-seed5", "end"]
    argvs = [event["argv"] for event in events() if event["what"] == "end"][:2]
    assert [argv[argv.index("--seed_everything") + 1] for argv in argvs] == ["0", "5"]
    assert [argv[argv.index("--stage") + 1] for argv in argvs] == ["student-seed0", "student-seed5"]
    assert ran("--from", "student", "--jobs", "1") == ["student-seed0", "student-seed5", "end"]
    assert ran("--only", "student-seed5", "--force") == ["student-seed5"]


@pytest.mark.usefixtures("work")
def test_independent_steps_overlap() -> None:
    write_chain({"a": plain(sleep="1"), "b": plain(sleep="1"), "c": plain("a", "b")}, jobs=2)
    assert go() == 0
    times = {(event["step"], event["what"]): event["at"] for event in events()}
    assert max(times["a", "start"], times["b", "start"]) < min(times["a", "end"], times["b", "end"])
    assert times["c", "start"] > max(times["a", "end"], times["b", "end"])


@pytest.mark.usefixtures("work")
def test_always_and_inherit(capfd: pytest.CaptureFixture[str]) -> None:
    write_chain({"a": plain(), "report": plain("a", silent="1") | {"always": True, "inherit": True}})
    assert ran() == ["a", "report"]
    assert ran() == ["report"]
    out = capfd.readouterr().out
    assert out.count("I am report\n") == 2
    assert "I am a\n" not in out
    assert not Path("runs/demo/report/log.txt").exists()


@pytest.mark.usefixtures("work")
def test_a_step_without_a_manifest_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    write_chain({"a": plain(silent="1")})
    assert ran() == ["a"]
    assert "but it will run again next time: never finished by runs/demo/a/manifest.json" in capfd.readouterr().out
    assert ran() == ["a"]


@pytest.mark.usefixtures("work")
def test_a_failure_lets_the_others_finish_and_shows_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    # Each waits for the other to be where the test wants it: a loaded machine may take its time over either.
    bad, slow = plain(**{"await": '"slow", "what": "start"'}), plain(sleep="1")
    steps = {"bad": bad, "slow": slow, "next": plain("slow"), "after": plain("bad")}
    write_chain(steps, jobs=2)
    Path("fail-bad").touch()
    assert set(ran(code=7)) == {"bad", "slow"}
    assert Path("runs/demo/slow/manifest.json").exists()
    lines = capfd.readouterr().out.splitlines()
    assert any(line.startswith("bad: failed with exit code 7 after 0:0") for line in lines)
    end = lines.index("The end of runs/demo/bad/log.txt:")
    assert lines[end + 1 :] == [f"  line {number}" for number in range(15, 39)] + ["  line 39 [2Jbad thing"]
    Path("fail-bad").unlink()
    assert set(ran()) == {"bad", "next", "after"}


DRIVER = """
import signal, sys
from mulcot import chain
signal.signal(signal.SIGINT, signal.default_int_handler)
chain.PROGRAM = [sys.executable, "fake.py"]
sys.exit(chain.main_run(["--config", "chain.yaml", *sys.argv[1:]]))
"""


def driver(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", DRIVER, *options], stdout=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in 30 seconds"
        time.sleep(0.02)


def started(name: str) -> bool:
    return any(event["step"] == name for event in events())


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_an_interrupt_ends_the_steps_and_keeps_what_is_finished(number: signal.Signals) -> None:
    write_chain({"a": plain(), "b": plain("a", sleep="60"), "c": plain("b")})
    process = driver()
    wait_for(lambda: started("b"))
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == (0 if number == signal.SIGUSR1 else 128 + number)
    assert "b: interrupted after" in out
    assert [event["step"] for event in events() if event["what"] == "end"] == ["a"]
    write_chain({"a": plain(), "b": plain("a"), "c": plain("b")})
    assert ran() == ["b", "c"]


@pytest.mark.usefixtures("work")
def test_a_second_interrupt_kills_what_ignores_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("fake.py").write_text("import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n" + FAKE)
    write_chain({"a": plain(sleep="60")})
    process = driver()
    wait_for(lambda: started("a"))
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130


@pytest.mark.usefixtures("work")
def test_one_ctrl_c_that_arrives_twice_lets_the_steps_save() -> None:
    saves = "import signal, sys, time, pathlib\n"
    saves += "def save(*_):\n    time.sleep(0.6)\n    pathlib.Path('saved').touch()\n    sys.exit(130)\n"
    Path("fake.py").write_text(saves + "signal.signal(signal.SIGINT, save)\n" + FAKE)
    write_chain({"a": plain(sleep="60")})
    process = driver()
    wait_for(lambda: started("a"))
    process.send_signal(signal.SIGINT)
    time.sleep(0.06)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert Path("saved").exists()


@pytest.mark.usefixtures("work")
def test_what_is_forced_is_not_forced_again_by_a_job_that_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    write_chain({"a": plain(), "b": plain("a", sleep="60")})
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    process = driver("--force")
    wait_for(lambda: started("b"))
    process.send_signal(signal.SIGUSR1)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "finished steps are kept, the same command without --force goes on from here" in out
    write_chain({"a": plain(), "b": plain("a")})
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert ran("--force") == ["b"]
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert ran("--force") == ["a", "b"]


def free() -> bool:
    """Whether no run and no step holds the lock; the chain ran then."""
    try:
        return go() == 0
    except InputError:
        return False


@pytest.mark.usefixtures("work")
def test_two_runs_do_not_work_in_one_folder_even_when_the_first_was_killed() -> None:
    write_chain({"a": plain(sleep="6")})
    process = driver()
    wait_for(lambda: started("a"))
    with pytest.raises(InputError, match="runs/demo: another `mulcot run`"):
        go()
    process.kill()  # its step lives on and holds the lock
    process.communicate(timeout=30)
    with pytest.raises(InputError, match="or a step that it left"):
        go()
    wait_for(free)
    assert ran() == []


@pytest.mark.usefixtures("work")
def test_a_damaged_manifest_stops_before_anything_runs() -> None:
    write_chain({"a": plain(), "b": plain("a")})
    assert go() == 0
    Path("runs/demo/b/manifest.json").write_text("{")
    Path("runs/demo/a/out.txt").unlink()
    with pytest.raises(InputError, match=r"runs/demo/b/manifest\.json: the manifest is damaged"):
        go()
    assert ran("--force") == ["a", "b"]


def test_start_up_is_light() -> None:
    heavy = "[name for name in ('torch', 'lightning', 'transformers', 'numpy', 'jsonargparse') if name in sys.modules]"
    found = subprocess.run(
        [sys.executable, "-c", f"import sys, mulcot.chain; print({heavy})"], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_a_step_that_nothing_waits_for_gives_way_to_the_others(work: Path) -> None:
    write_chain({"first": plain(), "last": plain("first"), "report": {**plain("last"), "always": True}})
    assert go() == 0
    here = os.getpriority(os.PRIO_PROCESS, 0)
    niceness = {event["step"]: min(event["nice"] - here, 10) for event in events() if event["what"] == "end"}
    most = min(10, 19 - here)  # a process that is nice already cannot become nicer than 19
    assert niceness == {"first": 0, "last": most, "report": most}
