"""What a run's `metrics.json` holds: stages, systems, paired differences, costs, and what to know before reading."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from mulcot.manifests import MANIFEST_NAME
from mulcot.metrics.stage_files import Trained, gold_counts
from mulcot.predictions import FIT_PREDICTIONS
from mulcot.report.costs import costs_of
from mulcot.report.pairs import differences_from_baseline
from mulcot.report.run import BASELINE, Run, read_run
from mulcot.report.systems import systems_of
from mulcot.types import InputError


def collect(run_dir: Path) -> dict[str, Any]:
    """Reads every stage of a run and compares its systems.

    Returns:
        What `report` returns.

    Raises:
        MissingInputError: no stage of the run has written its metrics.
        InputError: a file of the run is damaged.
    """
    return numbers_of(read_run(run_dir))


def numbers_of(run: Run, baseline: str | None = None) -> dict[str, Any]:
    """The same of a run that was read.

    Args:
        run: the run.
        baseline: the title of the system that the others are compared with; without it the student that learnt from
            labels alone, where there is one.

    Raises:
        InputError: a file of the run is damaged, or the run has no system of that title.
    """
    titles = dict.fromkeys(model.title for model in run.tested)
    if baseline is not None and baseline not in titles:
        told = ", ".join(map(repr, titles)) or "none"
        raise InputError(f"--baseline {baseline!r}: {run.folder} has no such tested system; it has {told}")
    costs, cost_notes = costs_of(run)
    return {
        "command": f"mulcot report --run_dir {shlex.quote(str(run.folder))}"
        + (f" --baseline {shlex.quote(baseline)}" if baseline else ""),
        "stages": [
            {"stage": s.name, "kind": s.metrics.kind, "wall_seconds": s.wall_seconds, "made": s.metrics.made()}
            for s in run.stages
        ],
        "not_run": run.not_run(),
        "systems": systems_of(run),
        "differences": differences_from_baseline(run, baseline or BASELINE),
        "costs": costs,
        "notes": [*_notes(run), *cost_notes],
    }


def _notes(run: Run) -> list[str]:
    """What a reader must know before comparing the rows."""
    notes = [f"{s.name} has not finished (no {MANIFEST_NAME})" for s in run.stages if s.wall_seconds is None]
    left_out: dict[str, list[str]] = {}
    for stage in run.stages:
        for reason, count in stage.metrics.left_out.items():
            left_out.setdefault(f"{count:,} {reason}", []).append(stage.name)
    notes += [f"left out of the data: {what} (by {', '.join(names)})" for what, names in left_out.items()]
    notes += [
        f"{s.name} has not been tested" for s in run.stages if isinstance(s.metrics, Trained) and s.metrics.test is None
    ]
    tested = [(model.stage, gold_counts(model.test.confusion)) for model in run.tested]
    trained = [(m.stage, m.metrics.train_label_counts) for m in run.tested if m.metrics.train_label_counts is not None]
    for what, counted in (("tested", tested), ("trained", trained)):
        others = [name for name, counts in counted if counts != counted[0][1]]
        if others:
            notes.append(f"not {what} on the same posts as {counted[0][0]}: {', '.join(others)}")
    return notes + _contradictions(run)


def _contradictions(run: Run) -> list[str]:
    """Stages whose predictions do not give the accuracy that their metrics name: one of the files is older."""
    notes = []
    for model in run.tested:
        predictions = run.predictions(model)
        if predictions is None:
            continue
        right = sum(p.answer.label == p.gold for p in predictions if p.gold is not None)
        counted = sum(model.test.confusion[label][label] for label in model.test.confusion)
        if right != counted:
            notes.append(
                f"{model.stage}/{FIT_PREDICTIONS} has {right:,} right answers and its metrics.json {counted:,}: one of "
                "them is older; test the stage again"
            )
    return notes
