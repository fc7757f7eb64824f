"""`mulcot run`: a chain of stages, each a process of its own; what is finished and unchanged is not run again."""

import argparse
import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from mulcot.chain_display import Display
from mulcot.chain_plan import Chain, Labelling, Step, nearest, read_chain
from mulcot.chain_processes import KEY_NAME, Decision, Runner, Steering
from mulcot.config_files import find_config
from mulcot.files import sweep, write_atomic
from mulcot.interruptions import same_command
from mulcot.launches import note_begin, was_begun_before
from mulcot.locks import locked
from mulcot.manifests import MANIFEST_NAME, command_key, read_manifest, staleness
from mulcot.terminal_tables import words
from mulcot.types import InputError, MissingInputError

PROGRAM = [sys.executable, "-m", "mulcot"]
"""What runs a step; the step's arguments follow."""
_LOCK_NAME: Final = ".chain.lock"


def run(
    config: Path,
    run_dir: Path | None = None,
    data_root: Path | None = None,
    jobs: int | None = None,
    from_: str | None = None,
    only: str | Sequence[str] | None = None,
    dry_run: bool = False,
    force: bool = False,
    teacher: str | None = None,
    yes: bool = False,
) -> None:
    """Run a chain of stages; finished stages with unchanged inputs are skipped.

    Args:
        config: The chain's YAML file, a path or a bare name.
        run_dir: The run's folder, instead of the file's `run_dir`.
        data_root: Where the data lies, instead of the file's `data_root`.
        jobs: How many steps run at the same time, instead of the file's `jobs`.
        from_: Run this step and all that depends on it again.
        only: Run only these steps (names, or one text with commas); one that is finished is still skipped.
        dry_run: Show what would run and why, and run nothing.
        force: Run every (selected) step anew.
        teacher: Another teacher for the steps of `teacher.yaml`: `openai`, `local`, or an overlay of your own.
        yes: Send requests that cost money without asking.

    Raises:
        InputError: The chain file or an option is wrong.
        MissingInputError: A step that is needed and not selected has not finished.
        SystemExit: A step failed (its exit code) or the run was interrupted (130 or 143; not after SIGUSR1).
    """
    code = _run(config, run_dir, data_root, jobs, from_, only, dry_run, force, Labelling(teacher, yes))
    if code:
        raise SystemExit(code)


def main_run(argv: list[str]) -> int:
    """`mulcot run` with these arguments.

    Args:
        argv: What follows `mulcot run`.

    Returns:
        The exit code: 0, that of the step that failed first, or 128 + n after signal n (0 after SIGUSR1).

    Raises:
        InputError: As in `run`.
        SystemExit: `--help` was asked for, or an option is unknown.
    """
    options = _parser().parse_args(argv)
    return _run(
        options.config,
        options.run_dir,
        options.data_root,
        options.jobs,
        options.from_,
        options.only,
        options.dry_run,
        options.force,
        Labelling(options.teacher, options.yes),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mulcot run",
        description="Run a chain of stages; finished stages with unchanged inputs are skipped.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, required=True, help="the chain's YAML file, a path or a bare name")
    parser.add_argument("--run_dir", type=Path, help="the run's folder, instead of the file's")
    parser.add_argument("--data_root", type=Path, help="where the data lies, instead of what the file says")
    parser.add_argument("--jobs", type=int, help="how many steps run at the same time, instead of what the file says")
    parser.add_argument("--from", dest="from_", metavar="STEP", help="run STEP and all that depends on it again")
    parser.add_argument("--only", metavar="STEP[,STEP...]", help="run only these steps; a finished one is skipped")
    parser.add_argument("--dry-run", action="store_true", help="show what would run and why, and run nothing")
    parser.add_argument("--force", action="store_true", help="run every selected step anew")
    parser.add_argument("--teacher", help="another teacher: openai, local, or an overlay of your own (mine.yaml)")
    parser.add_argument("--yes", action="store_true", help="send requests that cost money without asking")
    return parser


def _run(
    config: Path,
    run_dir: Path | None,
    data_root: Path | None,
    jobs: int | None,
    from_: str | None,
    only: str | Sequence[str] | None,
    dry_run: bool,
    force: bool,
    labelling: Labelling,
) -> int:
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs: must be 1 or more, not {jobs}")
    chain = read_chain(find_config(str(config)), run_dir, data_root, jobs, labelling)
    plan = _plan(chain, from_, only, force, is_begun=was_begun_before(chain.run_dir))
    console = Console()
    if dry_run:
        _show(plan, Console(width=None if console.is_terminal else 10_000))
        return 0
    with _working_in(chain.run_dir) as lock:
        _write_chain(chain)
        note_begin(chain.run_dir)
        runner = Runner(
            Steering(plan.decide, plan.command, plan.check),
            Display(console),
            jobs=chain.jobs,
            threads=chain.threads,
            lock=lock,
            again=same_command({"--force": force, "--from": from_}),
        )
        return runner.run(plan.selected)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a run may touch, and which of it runs whatever its state is."""

    chain: Chain
    selected: list[Step]
    """The steps that are looked at, in the order of the file."""
    again: dict[str, str]
    """Steps that run although they may be finished, and the option that says so."""
    force: bool
    """Whether they start anew even when they could be resumed."""

    def decide(self, step: Step) -> Decision:
        key = _key(self.chain, step)
        # A damaged manifest stops a run, but not one that is told to run the step again.
        why = self.again.get(step.name) or ("always" if step.always else staleness(step.folder, key))
        return Decision(why, fresh=step.resumes and (self.force or _holds_other(step, key)), key=key)

    def command(self, step: Step, decision: Decision) -> list[str]:
        return [*PROGRAM, *_arguments(step, decision)]

    def check(self, step: Step) -> str | None:
        why = None if step.always else staleness(step.folder, _key(self.chain, step))
        return f"it will run again next time: {why} by {step.folder / MANIFEST_NAME}" if why else None


def _plan(chain: Chain, from_: str | None, only: str | Sequence[str] | None, force: bool, *, is_begun: bool) -> _Plan:
    """Choose the steps, look at every one of them, and see to it that what they need is there.

    Where this job has begun the run before and is started again, nothing is made anew once more.

    Raises:
        InputError: An option names no step, or a step's configuration or manifest cannot be read.
        MissingInputError: A step that is needed and not selected has not finished.
    """
    if from_ is not None and only is not None:
        raise InputError("--from and --only exclude each other; give one of them")
    if from_ is not None:
        first = _named(chain, "--from", [from_])
        chosen = {name for name in chain.steps if name in first or first & _ancestors(chain, [name])}
    elif only is not None:
        chosen = _named(chain, "--only", only.split(",") if isinstance(only, str) else only)
    else:
        chosen = set(chain.steps)
    again = dict.fromkeys(chosen, "--force") if force else dict.fromkeys(chosen, f"--from {from_}") if from_ else {}
    if is_begun:
        again, force = {}, False
    plan = _Plan(chain, [step for step in chain.steps.values() if step.name in chosen], again, force)
    needed = _ancestors(chain, chosen) - chosen
    _require(plan, [step for step in chain.steps.values() if step.name in needed and not step.always])
    for step in plan.selected:  # what would stop the run in its middle stops it here
        _key(chain, step)
        if step.name not in again and not step.always:
            read_manifest(step.folder)
    return plan


def _named(chain: Chain, option: str, names: Iterable[str]) -> set[str]:
    """The steps that an option's names mean; the name of a step with seeds means all of them."""
    found: set[str] = set()
    for name in (name.strip() for name in names):
        if name not in chain.groups and name not in chain.steps:
            raise InputError(
                f"{option}: {chain.file} has no step `{name}`; {nearest(name, [*chain.groups, *chain.steps])}"
            )
        found.update(chain.groups.get(name, (name,)))
    return found


def _ancestors(chain: Chain, names: Iterable[str]) -> set[str]:
    found: set[str] = set()
    open_ends = list(names)
    while open_ends:
        before = set(chain.steps[open_ends.pop()].after) - found
        found |= before
        open_ends += before
    return found


def _require(plan: _Plan, steps: Sequence[Step]) -> None:
    lacking = {step.name: why for step in steps if (why := plan.decide(step).why)}
    if lacking:
        name, why = next(iter(lacking.items()))
        chain = plan.chain
        command = ["mulcot", "run", "--config", str(chain.file), "--run_dir", str(chain.run_dir)]
        if chain.data_root is not None:
            command += ["--data_root", str(chain.data_root)]
        command += ["--only", ",".join(lacking)]
        raise MissingInputError(f"{chain.steps[name].folder}: the step {name} is needed: {why}; {shlex.join(command)}")


def _key(chain: Chain, step: Step) -> str:
    try:
        return command_key(step.arguments)
    except InputError as error:
        raise InputError(f"{chain.file}: steps.{step.name}: {error}") from error


def _holds_other(step: Step, key: str) -> bool:
    """Whether the step's folder holds what a resume must not go on from."""
    if (step.folder / MANIFEST_NAME).exists():
        return True
    left = step.folder / KEY_NAME
    return left.exists() and left.read_text(encoding="utf-8").strip() != key


def _arguments(step: Step, decision: Decision) -> list[str]:
    return [*step.arguments, *(["--fresh"] if decision.fresh else [])]


def _show(plan: _Plan, console: Console) -> None:
    """The table of `--dry-run`. A step may turn out finished when those before it give the same results again."""
    table = Table("step", "command", "state")
    running: set[str] = set()
    for step in _ordered(plan.selected):
        decision = plan.decide(step)
        before = [name for name in step.after if name in running]
        why = decision.why or (f"unless {before[0]} gives the same result again" if before else None)
        if why:
            running.add(step.name)
        command = shlex.join(["mulcot", *_arguments(step, decision)])
        table.add_row(step.name, words(command), words(f"to run: {why}" if why else "finished"))
    console.print(table)


def _ordered(steps: Sequence[Step]) -> Iterator[Step]:
    """The steps, each after those that it comes after."""
    waiting = list(steps)
    while waiting:
        names = {step.name for step in waiting}
        ready = next(step for step in waiting if not names.intersection(step.after))
        waiting.remove(ready)
        yield ready


def _write_chain(chain: Chain) -> None:
    """Leave in the run's folder what is run: every step with its command."""
    content = {
        "config": str(chain.file),
        "run_dir": str(chain.run_dir),
        "data_root": None if chain.data_root is None else str(chain.data_root),
        "jobs": chain.jobs,
        "threads": chain.threads,
        "steps": [
            {"name": step.name, "verb": step.verb, "after": step.after, "command": [*PROGRAM, *step.arguments]}
            for step in chain.steps.values()
        ],
    }
    write_atomic(chain.run_dir / "chain.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def _working_in(run_dir: Path) -> Iterator[int]:
    """Keeps other runs out of the folder, and removes what a killed one was just writing.

    The steps inherit the lock, so it outlives a killed `mulcot run`.

    Raises:
        InputError: Another run holds it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    refusal = f"{run_dir}: another `mulcot run` (or a step that it left) works here; end it first"
    with locked(run_dir / _LOCK_NAME, refusal) as lock:
        sweep(run_dir.glob("*"))
        yield lock
