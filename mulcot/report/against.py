"""Two runs beside each other: paired differences of systems of equal title, configurations, costs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from mulcot.report.configs import read_config
from mulcot.report.costs import costs_of
from mulcot.report.pairs import over_seeds, paired_models
from mulcot.report.provenance import read_chain_file
from mulcot.report.run import Run, read_run
from mulcot.report.systems import systems_of
from mulcot.types import InputError

_ABSENT: Final = "(absent)"
_LONGEST: Final = 1000
"""Characters of a setting's name, which is written once for every value below it; nobody's has so many."""


def compare(first_dir: Path, second_dir: Path) -> dict[str, Any]:
    """Compares a run with another one; differences are first minus second, as `--run_dir A --against B` reads.

    Returns:
        `command`; `runs` (of both: `run_dir`, `systems` as in `collect`, and `costs`); `differences` (for every title
        that both have: `system`, `seeds` with what `paired` returns, `seed`, `stage` and `against_stage`, and `mean`);
        `unpaired` (systems and seeds that one run has alone, or that left no predictions, in words); `settings` (what
        differs between the resolved configurations of stages of equal name: `setting`, `stages`, `first`, `second`)
        and `notes`.

    Raises:
        MissingInputError: no stage of one of the runs has written its metrics.
        InputError: a file of one of the runs is damaged.
    """
    first, second = read_run(first_dir), read_run(second_dir)
    sides, notes = [], []
    for run in (first, second):
        costs, told = costs_of(run)
        sides.append({"run_dir": str(run.folder), "systems": systems_of(run), "costs": costs})
        notes += told
    differences, unpaired = _differences(first, second)
    return {
        "command": f"mulcot report --run_dir {shlex.quote(str(first_dir))} --against {shlex.quote(str(second_dir))}",
        "runs": sides,
        "differences": differences,
        "unpaired": unpaired,
        "settings": _settings(first, second),
        "notes": notes,
    }


def _differences(first: Run, second: Run) -> tuple[list[dict[str, Any]], list[str]]:
    """The systems of equal title, seed by seed, and what has no counterpart."""
    mine = {(model.title, model.seed): model for model in first.tested}
    theirs = {(model.title, model.seed): model for model in second.tested}
    unpaired = [
        f"{title}, seed {seed}: in {run.folder} alone"
        for run, some, others in ((first, mine, theirs), (second, theirs, mine))
        for title, seed in some
        if (title, seed) not in others
    ]
    seeds: dict[str, list[dict[str, Any]]] = {}
    answers: dict[str, list[Any]] = {}
    for key, model in mine.items():
        other = theirs.get(key)
        if other is None:
            continue
        pair = paired_models(second, other, first, model)
        if pair is None:
            unpaired.append(f"{key[0]}, seed {key[1]}: without predictions in one of the runs")
        else:
            known = {"seed": model.seed, "stage": model.stage, "against_stage": other.stage}
            seeds.setdefault(model.title, []).append(known | pair)
            answers.setdefault(model.title, []).append(
                (second.predictions(other) or [], first.predictions(model) or [])
            )
    found = [
        {"system": title, "seeds": some, "mean": over_seeds(some, answers[title])} for title, some in seeds.items()
    ]
    return found, unpaired


def _settings(first: Run, second: Run) -> list[dict[str, Any]]:
    """What differs between the resolved configurations; a path inside a run counts as relative to it."""
    found: dict[tuple[str, str, str], list[str]] = {}
    names = dict.fromkeys(path.parent.name for run in (first, second) for path in sorted(_configs(run)))
    for stage in names:
        sides = [_flat_configs(run, stage) for run in (first, second)]
        if not all(sides):
            continue
        for setting in dict.fromkeys([*sides[0], *sides[1]]):
            ours, theirs = (side.get(setting, _ABSENT) for side in sides)
            if ours != theirs:
                found.setdefault((setting, ours, theirs), []).append(stage)
    return [
        {"setting": setting, "stages": stages, "first": mine, "second": theirs}
        for (setting, mine, theirs), stages in found.items()
    ]


def _configs(run: Run) -> Iterator[Path]:
    yield from run.folder.glob("*/config-*.yaml")


def _flat_configs(run: Run, stage: str) -> dict[str, str]:
    """The settings of a stage, by the verb and the path of keys."""
    named = read_chain_file(run.folder).run_dir
    homes = {str(run.folder), *([named] if named else [])}
    flat: dict[str, str] = {}
    for path in sorted((run.folder / stage).glob("config-*.yaml")):
        verb = path.stem.removeprefix("config-")
        for key, value in _flattened(read_config(path), verb, path):
            flat[key] = _homeless(value, homes)
    return flat


def _flattened(value: Any, name: str, file: Path) -> Iterator[tuple[str, str]]:
    """The settings below one of this name, as the file has them."""
    if len(name) > _LONGEST:
        raise InputError(f"{file}: {name[:40]}...: the name of this setting has more than {_LONGEST} characters")
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flattened(item, f"{name}.{key}", file)
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        for at, item in enumerate(value):
            yield from _flattened(item, f"{name}[{at}]", file)
    else:
        yield name, str(value)


def _homeless(value: str, homes: set[str]) -> str:
    """The value with the run's folder replaced by a placeholder."""
    for home in sorted(homes, key=len, reverse=True):
        value = value.replace(f"{home}/", "${run_dir}/")
        if value == home:
            value = "${run_dir}"
    return value
