"""Tables of groups of posts: where a system is right and where it is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mulcot.metrics.slices import slice_scores
from mulcot.report.run import Run
from mulcot.report.score_tables import by_title
from mulcot.report.systems import spread
from mulcot.report.tables import DASH, Cell, PageTable, count_cell, interval, number_cell, spread_cell
from mulcot.types import RationaleRecord

_MEASURES = {"accuracy": "accuracy", "macro_f1": "macro F1"}
_Groups = Mapping[str, Mapping[str, Any]]


def slice_tables(run: Run, known: Mapping[str, RationaleRecord]) -> list[PageTable]:
    """One table for each kind of group, with all systems that left predictions; means over their seeds.

    Args:
        run: the run.
        known: the teacher's rationales of the test posts.

    Raises:
        InputError: a prediction file is damaged.
    """
    systems = {title: found for title, found in _scores(run, known).items() if found}
    kinds = dict.fromkeys(kind for seeds in systems.values() for seed in seeds for kind in seed)
    return [_table(kind, {title: [seed.get(kind, {}) for seed in seeds] for title, seeds in systems.items()})
            for kind in kinds]  # fmt: skip


def _scores(run: Run, known: Mapping[str, RationaleRecord]) -> dict[str, list[dict[str, _Groups]]]:
    """System → for each seed with predictions what `slice_scores` returns."""
    found: dict[str, list[dict[str, _Groups]]] = {}
    for title, models in by_title(run).items():
        for model in models:
            answered = run.predictions(model)
            if answered:
                said = [name for p in answered for name in (p.answer.label, p.gold) if name is not None]
                labels = list(dict.fromkeys([*model.test.confusion, *said]))
                found.setdefault(title, []).append(dict(slice_scores(answered, known, labels)))
    return found


def _table(kind: str, systems: Mapping[str, list[_Groups]]) -> PageTable:
    names = dict.fromkeys(group for seeds in systems.values() for seed in seeds for group in seed)
    rows = []
    for name in names:
        posts = next(seed[name]["posts"] for seeds in systems.values() for seed in seeds if name in seed)
        cells = [_cell([s[name] for s in seeds if name in s], m) for seeds in systems.values() for m in _MEASURES]
        rows.append([Cell(name), count_cell(posts), *cells])
    columns = [f"{title}\n{words}".replace(", ", ",\n") for title in systems for words in _MEASURES.values()]
    return PageTable(f"By {kind}", (kind, "posts", *columns), rows)


def _cell(seeds: list[Mapping[str, Any]], measure: str) -> Cell:
    """The mean over seeds, with the bootstrap interval where there is one seed."""
    if not seeds:
        return Cell(DASH)
    if len(seeds) == 1:
        return number_cell(seeds[0][measure], interval(seeds[0]["intervals"][measure]))
    return spread_cell(spread([seed[measure] for seed in seeds]), len(seeds))
