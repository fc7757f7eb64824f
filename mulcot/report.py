"""`mulcot report`: what a run's stages made and how its systems compare, as tables and as one JSON file."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mulcot.files import write_atomic
from mulcot.manifests import MANIFEST_NAME
from mulcot.metrics.functional.classification import majority_scores
from mulcot.metrics.stage_files import (
    METRICS_NAME,
    Classification,
    Confusion,
    Stage,
    Teacher,
    Trained,
    gold_counts,
    read_chain,
    read_stages,
)
from mulcot.terminal import plain
from mulcot.types import InputError

COLUMNS: Final = {
    "accuracy": "accuracy",
    "weighted_f1": "weighted\nF1",
    "macro_f1": "macro\nF1",
    "bleu": "BLEU",
    "rouge_l": "ROUGE-L",
    "parse_rate": "parse\nrate",
    "agreement_with_gold": "agrees\nwith\ngold",
    "agreement_with_answer": "agrees\nwith own\nanswer",
}
"""The measures of the comparison and their headings."""
DISTILLED: Final = "student, distilled"
_TITLES: Final = ("student, labels alone", DISTILLED)
_DASH: Final = "—"
_WIDTH: Final = 100
"""Columns that the comparison needs in one piece."""


@dataclass(frozen=True, slots=True)
class _Run:
    """A trained stage that was tested: one seed of one system."""

    folder: Path
    metrics: Trained
    test: Classification


def report(run_dir: Path, out: Path | None = None) -> dict[str, Any]:
    """Compares the systems of a run on the test split, prints the tables and writes their numbers.

    Args:
        run_dir: the run, `runs/<name>`, with a folder for every stage.
        out: where the numbers are written; without it `metrics.json` in the run's folder.

    Returns:
        What is written: `command`, `stages`, `not_run`, `systems` (mean, standard deviation and every seed's values,
        in [0, 1], and the confusion matrix summed over seeds) and `notes`.

    Raises:
        MissingInputError: no stage of the run has written its metrics.
        InputError: a file of the run is damaged, or the numbers cannot be written.
    """
    result = collect(run_dir)
    target = out or run_dir / METRICS_NAME
    if out is None and not target.resolve().is_relative_to(run_dir.resolve()):
        raise InputError(f"{target}: it is a link that leads out of the run; remove it, or name a file with --out")
    try:
        write_atomic(target, json.dumps(result, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise InputError(f"{target}: the numbers cannot be written there ({error.strerror})") from error
    # Into a file or a pipe rich would assume 80 columns, too few for the comparison.
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    render(result, Console(width=_WIDTH) if piped else Console())
    return result


def main_report(argv: Sequence[str]) -> int:
    """`mulcot report` with these arguments.

    Args:
        argv: what follows `mulcot report`.

    Returns:
        The exit code 0.

    Raises:
        InputError: as in `report`.
        SystemExit: `--help` was asked for, or an option is missing or unknown.
    """
    parser = argparse.ArgumentParser(
        prog="mulcot report", description="Compare the systems of a run on the test split.", allow_abbrev=False
    )
    parser.add_argument("--run_dir", type=Path, required=True, help="the run's folder, such as runs/demo")
    parser.add_argument("--out", type=Path, help=f"where the numbers go, instead of RUN_DIR/{METRICS_NAME}")
    options = parser.parse_args(argv)
    report(options.run_dir, options.out)
    return 0


def collect(run_dir: Path) -> dict[str, Any]:
    """Reads every stage of a run and compares its systems.

    Returns:
        What `report` returns.

    Raises:
        MissingInputError: no stage of the run has written its metrics.
        InputError: a file of the run is damaged.
    """
    chain = read_chain(run_dir)
    stages = read_stages(run_dir, chain)
    runs = _runs(stages)
    done = {path.parent.name for name in (METRICS_NAME, MANIFEST_NAME) for path in run_dir.glob(f"*/{name}")}
    return {
        "command": f"mulcot report --run_dir {shlex.quote(str(run_dir))}",
        "stages": [
            {"stage": s.name, "kind": s.metrics.kind, "wall_seconds": s.wall_seconds, "made": s.metrics.made()}
            for s in stages
        ],
        "not_run": [name for name in chain if name not in done],
        "systems": [*_majority(runs), *_teachers(stages), *_trained(runs)],
        "notes": _notes(stages, runs),
    }


def _runs(stages: Sequence[Stage]) -> list[_Run]:
    """The tested models, by system (assistants first, then the known students) and seed."""
    runs: dict[tuple[str, int], _Run] = {}
    for stage in stages:
        if not isinstance(stage.metrics, Trained) or stage.metrics.test is None:
            continue
        metrics = stage.metrics
        if (metrics.title, metrics.seed) in runs:
            # A stage that was trained again under another name: a system of its own, never a fourth seed.
            metrics = metrics.model_copy(update={"title": f"{metrics.title} ({stage.name})"})
        runs[metrics.title, metrics.seed] = _Run(stage.folder, metrics, stage.metrics.test.classification)
    return sorted(runs.values(), key=lambda run: (_rank(run.metrics), run.metrics.title, run.metrics.seed))


def _rank(trained: Trained) -> int:
    if trained.kind == "assistant":
        return 0
    return 1 + (_TITLES.index(trained.title) if trained.title in _TITLES else len(_TITLES))


def _majority(runs: Sequence[_Run]) -> list[dict[str, Any]]:
    """The system that always answers the most frequent training label, the first of them where several are."""
    for run in runs:
        counts = run.metrics.train_label_counts
        if not counts or not run.test.posts:
            continue
        label = max(counts, key=counts.__getitem__)
        if label not in run.test.confusion:
            raise InputError(
                f"{run.folder / METRICS_NAME}: train_label_counts holds {label!r}, which is no label of the confusion "
                f"matrix; it must be one of {', '.join(run.test.confusion)}"
            )
        scores = majority_scores(gold_counts(run.test.confusion), label)
        confusion = {
            gold: {name: count if name == label else 0 for name in run.test.confusion}
            for gold, count in gold_counts(run.test.confusion).items()
        }
        return [
            _system("majority class", "majority", run.test.posts, [{"scores": scores}], confusion) | {"label": label}
        ]
    return []


def _teachers(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    systems = []
    for stage in stages:
        test = stage.metrics.splits.get("test") if isinstance(stage.metrics, Teacher) else None
        if test is None:
            continue
        rate = (test.accepted_predicted + test.accepted_explained) / test.posts if test.posts else None
        values = {"stage": stage.name, "scores": {"accuracy": test.teacher_accuracy, "parse_rate": rate}}
        systems.append(_system("teacher (as labelled)", "teacher", test.posts, [values], None))
    return systems


def _trained(runs: Sequence[_Run]) -> list[dict[str, Any]]:
    systems = []
    for title in dict.fromkeys(run.metrics.title for run in runs):
        seeds = [run for run in runs if run.metrics.title == title]
        labels = list(dict.fromkeys(label for run in seeds for label in run.test.confusion))
        confusion = {
            gold: {name: sum(run.test.confusion.get(gold, {}).get(name, 0) for run in seeds) for name in labels}
            for gold in labels
        }
        values = [{"stage": run.folder.name, "seed": run.metrics.seed, "scores": _scores(run)} for run in seeds]
        systems.append(_system(title, seeds[0].metrics.kind, seeds[0].test.posts, values, confusion))
    return systems


def _scores(run: _Run) -> dict[str, float | None]:
    reasoning = run.metrics.test.reasoning if run.metrics.test else None
    values = run.test.model_dump() | (reasoning.model_dump() if reasoning else {})
    return {column: values.get(column) for column in COLUMNS}


def _system(
    name: str, kind: str, posts: int, runs: list[dict[str, Any]], confusion: Confusion | None
) -> dict[str, Any]:
    measured = {column: [run["scores"].get(column) for run in runs] for column in COLUMNS}
    scores = {column: _spread([value for value in values if value is not None]) for column, values in measured.items()}
    return {"system": name, "kind": kind, "posts": posts, "scores": scores, "runs": runs, "confusion": confusion}


def _spread(values: Sequence[float]) -> dict[str, Any] | None:
    """Mean and standard deviation of a sample (n - 1), the latter of two values or more."""
    if not values:
        return None
    return {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else None, "n": len(values)}


def _notes(stages: Sequence[Stage], runs: Sequence[_Run]) -> list[str]:
    """What a reader must know before comparing the rows."""
    notes = [f"{s.name} has not finished (no {MANIFEST_NAME})" for s in stages if s.wall_seconds is None]
    left_out: dict[str, list[str]] = {}
    for stage in stages:
        for reason, count in stage.metrics.left_out.items():
            left_out.setdefault(f"{count:,} {reason}", []).append(stage.name)
    notes += [f"left out of the data: {what} (by {', '.join(names)})" for what, names in left_out.items()]
    notes += [
        f"{s.name} has not been tested" for s in stages if isinstance(s.metrics, Trained) and s.metrics.test is None
    ]
    tested = [(run.folder.name, gold_counts(run.test.confusion)) for run in runs]
    trained = [(r.folder.name, r.metrics.train_label_counts) for r in runs if r.metrics.train_label_counts is not None]
    for what, counted in (("tested", tested), ("trained", trained)):
        others = [name for name, counts in counted if counts != counted[0][1]]
        if others:
            notes.append(f"not {what} on the same posts as {counted[0][0]}: {', '.join(others)}")
    return notes


def render(result: Mapping[str, Any], console: Console) -> None:
    """Prints what `collect` returned; a terminal of fewer than 100 columns gets the comparison in two parts."""
    _print(console, "stages", _stage_table(result["stages"]))
    if result["not_run"]:
        console.print(Text(plain(f"not run: {', '.join(result['not_run'])}")))
    if result["systems"]:
        names = list(COLUMNS)
        for columns in [names] if console.width >= _WIDTH else [names[:3], names[3:]]:
            _print(console, "test split", _comparison(result["systems"], columns))
        for line in _legend(result["systems"]):
            console.print(Text(plain(line), style="dim"))
    for system in result["systems"]:
        if system["system"] == DISTILLED:
            seeds = len(system["runs"])
            over = f", summed over {seeds} seeds" if seeds > 1 else ""
            _print(console, f"{DISTILLED}: posts by gold and predicted label{over}", _confusion(system))
    for note in result["notes"]:
        console.print(Text(plain(f"note: {note}"), style="yellow"))


def _stage_table(stages: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(("stage", "left"), ("wall time", "right"), ("made", "left"))
    for stage in stages:
        table.add_row(Text(plain(stage["stage"])), _duration(stage["wall_seconds"]), Text(plain(stage["made"])))
    return table


def _comparison(systems: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
    table = _table(("system", "left"), *((COLUMNS[column], "right") for column in columns))
    for system in systems:
        seeds = len(system["runs"])
        trained = system["kind"] in ("assistant", "student")
        name = f"{system['system']}\n{seeds} seed{'s' * (seeds != 1)}" if trained else system["system"]
        table.add_row(Text(plain(name)), *(_cell(system["scores"][column], seeds) for column in columns))
    return table


def _legend(systems: Sequence[Mapping[str, Any]]) -> list[str]:
    kinds = {system["kind"]: system for system in systems}
    lines = [f"{', '.join(f'{n:,}' for n in sorted({s['posts'] for s in systems}))} posts"]
    if kinds.keys() & {"assistant", "student"}:
        lines[0] += "; mean ± standard deviation over seeds"
        lines.append("BLEU and ROUGE-L: against the teacher's rationale, over the posts that have one")
        lines.append("agrees with: Prediction of the rationale; a reply that is no rationale agrees with nothing")
    if "majority" in kinds:
        lines.append(f"majority class: {kinds['majority']['label']!r}, the most frequent label of the training posts")
    if "teacher" in kinds:
        lines.append(
            "teacher: accuracy of the labels that it gave by itself; parse rate: posts with an accepted rationale"
        )
    return lines


def _confusion(system: Mapping[str, Any]) -> Table:
    labels = list(system["confusion"])
    table = _table(("gold ↓  predicted →", "left"), *((label, "right") for label in labels))
    for gold in labels:
        table.add_row(Text(plain(gold)), *(f"{system['confusion'][gold][name]:,}" for name in labels))
    return table


def _table(*columns: tuple[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1), collapse_padding=True)
    for heading, justify in columns:
        table.add_column(Text(plain(heading)), justify=justify, overflow="fold")
    return table


def _print(console: Console, title: str, table: Table) -> None:
    console.print()
    console.print(Text(title, style="bold"))
    console.print(table)


def _cell(score: Mapping[str, Any] | None, seeds: int) -> str:
    if score is None:
        return _DASH
    lines = [_number(score["mean"])]
    if score["sd"] is not None:
        lines.append(f"± {score['sd']:.3f}")
    if score["n"] != seeds:
        lines.append(f"n = {score['n']}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return _DASH if value is None else f"{value:.3f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not finished"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
