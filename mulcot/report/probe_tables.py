"""Tables of the probes: how far a model's answers and rationales depend on what they are about."""

from __future__ import annotations

from mulcot.metrics.probe_files import PROBES, Agreement, Changes, Grounding, Probes, Unavailable, read_probes
from mulcot.report.run import Run, TestedModel
from mulcot.report.tables import Cell, PageTable, count_cell, interval, number_cell


def probe_tables(run: Run) -> list[tuple[str, list[PageTable], list[str]]]:
    """The probes of every tested model that has some.

    Returns:
        For each its system and seed, its tables, and what was not measured and why.

    Raises:
        InputError: a file of probes is damaged.
    """
    found = []
    for model in run.tested:
        path = model.folder / PROBES
        if path.exists():
            probes = read_probes(path)
            tables = [_faithfulness(model, probes), *_others(model, probes)]
            found.append((f"{model.title}, seed {model.seed}", tables, _unavailable(probes)))
    return found


def _faithfulness(model: TestedModel, probes: Probes) -> PageTable:
    file = f"{model.stage}/{PROBES}"
    rows = [_changes(name, changes, f"{file}: faithfulness.{name}") for name, changes in probes.faithfulness.items()]
    columns = ("perturbation", "posts", "accuracy\nbefore", "accuracy\nafter", "labels\nchanged", "total\nvariation",
               "parse rate\nafter", "rationale:\n1 − ROUGE-L", "Predictions\nchanged")  # fmt: skip
    caption = f"What happens without a part, or with another post's: {probes.posts:,} posts, seed {probes.seed}"
    return PageTable(caption, columns, rows, f"{file}: faithfulness")


def _changes(name: str, changes: Changes, place: str) -> list[Cell]:
    rationales = changes.rationales
    cells = [
        Cell(name.replace("_", " ")),
        count_cell(changes.posts, f"{place}.posts"),
        number_cell(changes.accuracy_before, source=f"{place}.accuracy_before"),
        number_cell(changes.accuracy, source=f"{place}.accuracy"),
        number_cell(changes.labels_changed, source=f"{place}.labels_changed"),
        number_cell(changes.total_variation, source=f"{place}.total_variation"),
    ]
    if rationales is None:
        return [*cells, *(number_cell(None) for _ in range(3))]
    return [
        *cells,
        number_cell(rationales.parse_rate, source=f"{place}.rationales.parse_rate"),
        number_cell(rationales.distance.get("whole"), source=f"{place}.rationales.distance.whole"),
        number_cell(rationales.predictions_changed, source=f"{place}.rationales.predictions_changed"),
    ]


def _others(model: TestedModel, probes: Probes) -> list[PageTable]:
    """Other aspects, conflict and grounding, as far as they were measured."""
    file, tables = f"{model.stage}/{PROBES}", []
    swaps = probes.other_aspects
    if swaps is not None:
        rows = [
            [Cell("answer is the other aspect's label"), count_cell(swaps.posts), number_cell(swaps.follows)],
            [Cell("the same, where labels differ"), count_cell(swaps.differing), number_cell(swaps.differing_follows)],
            [Cell("answer is still the first label"), count_cell(swaps.differing), number_cell(swaps.differing_stays)],
        ]
        caption = "Asked about another aspect of the same post"
        tables.append(PageTable(caption, ("answer", "posts", "share"), rows, f"{file}: other_aspects"))
    if not isinstance(probes.conflict, Unavailable):
        marks = (("text alone and picture alone say different labels", probes.conflict.yes),
                 ("they say the same label", probes.conflict.no))  # fmt: skip
        rows = [[Cell(name), count_cell(mark.posts), number_cell(mark.accuracy)] for name, mark in marks]
        caption = "Conflict, as the model itself sees it"
        tables.append(PageTable(caption, ("posts where", "posts", "accuracy"), rows, f"{file}: conflict"))
    if isinstance(probes.grounding, Grounding):
        sides = (("the model's rationales", probes.grounding.student), ("the references", probes.grounding.reference))
        rows = [_agreement(name, side) for name, side in sides]
        columns = ("Image_analysis of", "posts", "own picture\nwins", "cosine to\nown picture", "cosine to\nothers")
        caption = f"Do rationales fit their pictures? By {probes.grounding.clip_model}, chance is 0.5"
        tables.append(PageTable(caption, columns, rows, f"{file}: grounding"))
    return tables


def _agreement(name: str, found: Agreement) -> list[Cell]:
    return [
        Cell(name),
        count_cell(found.posts),
        number_cell(found.wins, interval(found.interval)),
        number_cell(found.own),
        number_cell(found.shuffled),
    ]


def _unavailable(probes: Probes) -> list[str]:
    parts = (("conflict", probes.conflict), ("grounding", probes.grounding))
    return [f"{name}: {part.unavailable}" for name, part in parts if isinstance(part, Unavailable)]
