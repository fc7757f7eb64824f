"""Tables of scores: systems with their seeds, differences from the baseline, labels, confusions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from mulcot.metrics.stage_files import gold_counts
from mulcot.report.published import Published
from mulcot.report.run import Run, TestedModel
from mulcot.report.systems import COLUMNS, spread
from mulcot.report.tables import (
    DASH,
    Cell,
    PageTable,
    count_cell,
    duration,
    interval,
    number_cell,
    p_value,
    spread_cell,
)

NUMBERS: Final = "metrics.json"
_MEASURES: Final = {"accuracy": "accuracy", "weighted_f1": "weighted F1", "macro_f1": "macro F1"}


def stage_table(result: Mapping[str, Any]) -> PageTable:
    """What each stage made, in what time."""
    rows = [
        [Cell(stage["stage"]), Cell(duration(stage["wall_seconds"]), value=stage["wall_seconds"]), Cell(stage["made"])]
        for stage in result["stages"]
    ]
    rows += [[Cell(name), Cell("not run"), Cell(DASH)] for name in result["not_run"]]
    return PageTable("Stages of the chain", ("stage", "wall time", "made"), rows, f"{NUMBERS}: stages", numeric=False)


def cost_table(costs: Mapping[str, Any]) -> PageTable:
    """Time and money."""
    teacher = costs["teacher"] or {}
    usd = teacher.get("usd")
    rows = [
        [Cell("wall time, summed over stages"), Cell(duration(costs["wall_seconds"]), value=costs["wall_seconds"])],
        [Cell("requests to the teacher"), count_cell(teacher.get("requests"))],
        [Cell("tokens that it read"), count_cell(teacher.get("prompt_tokens"))],
        [Cell("tokens that it wrote"), count_cell(teacher.get("completion_tokens"))],
        [Cell("money"), Cell("not known", "no prices were given") if usd is None else Cell(f"${usd:,.4f}", value=usd)],
    ]
    return PageTable("Costs", ("what", "how much"), rows, f"{NUMBERS}: costs")


def comparison_table(systems: Sequence[Mapping[str, Any]]) -> PageTable:
    """The systems, each with its mean over seeds, and below it the seeds."""
    columns = [column for column in COLUMNS if any(system["scores"][column] for system in systems)]
    rows: list[list[Cell]] = []
    for at, system in enumerate(systems):
        seeds = len(system["runs"])
        trained = system["kind"] in ("assistant", "student")
        what = (f"{seeds} seed{'s' * (seeds != 1)}, " if trained else "") + f"{system['posts']:,} posts"
        cells = [
            spread_cell(system["scores"][column], seeds, f"{NUMBERS}: systems[{at}].scores.{column}.mean")
            for column in columns
        ]
        if trained and seeds == 1:
            cells = [_of_seed(system["runs"][0], column) for column in columns]
        rows.append([Cell(system["system"], what), *cells])
        if trained and seeds > 1:
            rows += [
                [Cell(f"seed {run['seed']}", run["stage"], minor=True), *(_of_seed(run, column) for column in columns)]
                for run in system["runs"]
            ]
    return PageTable(
        "Test split: systems", ("system", *(COLUMNS[column] for column in columns)), rows, f"{NUMBERS}: systems"
    )


def _of_seed(run: Mapping[str, Any], column: str) -> Cell:
    part = "classification" if column in _MEASURES else "reasoning"
    ends = run["intervals"].get(column)
    return number_cell(run["scores"].get(column), interval(ends), f"{run['stage']}/metrics.json: test.{part}.{column}")


def difference_table(differences: Sequence[Mapping[str, Any]], caption: str, source: str) -> PageTable:
    """Paired differences seed by seed, and their means."""
    rows: list[list[Cell]] = []
    for found in differences:
        seeds = found["seeds"]
        if len(seeds) > 1:
            means = [spread_cell(found["mean"].get(name), len(seeds), sign=True) for name in _MEASURES]
            rows.append([Cell(found["system"], f"mean of {len(seeds)} seeds"), Cell(""), *means, Cell(""), Cell("")])
        for seed in seeds:
            name = Cell(f"seed {seed['seed']}", minor=True) if len(seeds) > 1 else Cell(
                found["system"], f"seed {seed['seed']}"
            )  # fmt: skip
            rows.append([name, *_difference_cells(seed)])
    columns = ("system", "posts", *_MEASURES.values(), "right alone", "McNemar's p")
    return PageTable(caption, columns, rows, source)


def _difference_cells(seed: Mapping[str, Any]) -> Iterator[Cell]:
    missing = seed["only_first"] + seed["only_second"] + seed["other_gold"]
    yield Cell(f"{seed['posts']:,}", f"{missing:,} left out" if missing else "", seed["posts"])
    for name in _MEASURES:
        found = seed["differences"].get(name)
        if found is None:
            yield Cell(DASH)
        else:
            yield number_cell(found["difference"], interval((found["low"], found["high"]), sign=True), sign=True)
    test = seed["mcnemar"]
    if test is None:
        yield from (Cell(DASH), Cell(DASH))
    else:
        yield Cell(f"{test['only_second_right']:,} : {test['only_first_right']:,}")
        yield Cell(p_value(test["p_value"]), value=test["p_value"])


def published_table(published: Published) -> PageTable:
    """What others published of the same data set."""
    rows = [[Cell(row.system), Cell(row.metric), number_cell(row.value), Cell(row.source)] for row in published.rows]
    columns = ("system", "metric", "reported", "where it stands")
    return PageTable(f"Reported by the paper: {published.data_set}", columns, rows, "--published", numeric=False)


def confusion_table(system: Mapping[str, Any]) -> PageTable:
    """Posts by gold and predicted label, summed over seeds."""
    confusion = system["confusion"]
    golds = gold_counts(confusion)
    rows = []
    for gold, row in confusion.items():
        shares = {label: row[label] / golds[gold] if golds[gold] else 0.0 for label in confusion}
        cells = [
            Cell(f"{row[label]:,}", f"{shares[label]:.0%}", row[label], share=shares[label]) for label in confusion
        ]
        rows.append([Cell(gold), *cells])
    seeds = len(system["runs"])
    over = f", summed over {seeds} seeds" if seeds > 1 else ""
    missing = system.get("unparsed", 0)
    left_out = f"; {missing:,} answers without a label are in no cell" if missing else ""
    return PageTable(f"{system['system']}{over}{left_out}", ("gold ↓ predicted →", *confusion), rows)


def class_table(models: Sequence[TestedModel]) -> PageTable | None:
    """Precision, recall and F1 of every label, as means over the seeds of one system; None where none were computed."""
    seeds = [model.test.model_dump().get("per_class") for model in models]
    known = [scores for scores in seeds if scores]
    if not known:
        return None
    rows = []
    for label in known[0]:
        cells = [
            spread_cell(
                spread([s[label][name] for s in known if label in s and s[label][name] is not None]), len(models)
            )
            for name in ("precision", "recall", "f1")
        ]
        predicted = spread([s[label]["predicted"] for s in known if label in s])
        said = Cell(DASH) if predicted is None else number_cell(predicted["mean"], digits=0 if len(known) == 1 else 1)
        rows.append([Cell(label), *cells, count_cell(known[0][label]["posts"]), said])
    columns = ("label", "precision", "recall", "F1", "posts", "predicted")
    source = f"{', '.join(model.stage for model in models)}: metrics.json, test.classification.per_class"
    return PageTable(models[0].title, columns, rows, source)


def by_title(run: Run) -> dict[str, list[TestedModel]]:
    """The tested models by system."""
    return {title: [m for m in run.tested if m.title == title] for title in dict.fromkeys(m.title for m in run.tested)}
