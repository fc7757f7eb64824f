"""The systems of a run: every tested model with its seeds, beside the majority class and the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any, Final

from mulcot.metrics.functional.classification import majority_scores
from mulcot.metrics.stage_files import METRICS_NAME, Confusion, Stage, Teacher, gold_counts
from mulcot.report.run import Run, TestedModel
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


def systems_of(run: Run) -> list[dict[str, Any]]:
    """The rows of the comparison: the majority class, the teacher, then the tested models.

    Raises:
        InputError: a stage counts training posts of a label that its confusion matrix does not have.
    """
    return [*_majority(run.tested), *_teachers(run.stages), *_trained(run.tested)]


def _majority(runs: Sequence[TestedModel]) -> list[dict[str, Any]]:
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


def _trained(runs: Sequence[TestedModel]) -> list[dict[str, Any]]:
    systems = []
    for title in dict.fromkeys(run.title for run in runs):
        seeds = [run for run in runs if run.title == title]
        labels = list(dict.fromkeys(label for run in seeds for label in run.test.confusion))
        confusion = {
            gold: {name: sum(run.test.confusion.get(gold, {}).get(name, 0) for run in seeds) for name in labels}
            for gold in labels
        }
        values = [
            {"stage": run.stage, "seed": run.seed, "scores": _scores(run), "intervals": run.test.intervals}
            for run in seeds
        ]
        system = _system(title, seeds[0].metrics.kind, seeds[0].test.posts, values, confusion)
        systems.append(system | {"unparsed": sum(run.test.unparsed for run in seeds)})
    return systems


def _scores(run: TestedModel) -> dict[str, float | None]:
    values = run.test.model_dump() | (run.reasoning.model_dump() if run.reasoning else {})
    return {column: values.get(column) for column in COLUMNS}


def _system(
    name: str, kind: str, posts: int, runs: list[dict[str, Any]], confusion: Confusion | None
) -> dict[str, Any]:
    measured = {column: [run["scores"].get(column) for run in runs] for column in COLUMNS}
    scores = {column: spread([value for value in values if value is not None]) for column, values in measured.items()}
    return {"system": name, "kind": kind, "posts": posts, "scores": scores, "runs": runs, "confusion": confusion}


def spread(values: Sequence[float]) -> dict[str, Any] | None:
    """Mean and standard deviation of a sample (n - 1), the latter of two values or more."""
    if not values:
        return None
    return {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else None, "n": len(values)}
