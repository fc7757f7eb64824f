"""Tables about rationales: how near they are to the teacher's, whose Prediction holds, which fields could be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from mulcot.report.run import Run, TestedModel
from mulcot.report.score_tables import by_title
from mulcot.report.systems import spread
from mulcot.report.tables import Cell, PageTable, spread_cell
from mulcot.types import RATIONALE_KEYS

_TEXT: Final = {
    "bleu": "BLEU",
    "sentence_bleu": "sentence BLEU",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
    "sim": "Sim",
    "agreement_with_gold": "agrees with gold",
}
"""What is computed against references, and over all of them or those of one source."""
_ALONE: Final = {
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "mean_words": "words",
    "parse_rate": "parse rate",
    "agreement_with_answer": "agrees with own answer",
}
"""What is computed of the replies alone."""
_SOURCES: Final = {
    "teacher-predicted": "without label-explained references",
    "teacher-explained": "label-explained references alone",
}


def rationale_tables(run: Run) -> list[PageTable]:
    """The tables of all systems that wrote rationales; [] where none did."""
    systems = {
        title: found
        for title, models in by_title(run).items()
        if (found := [model for model in models if model.reasoning is not None])
    }
    if not systems:
        return []
    return [table for table in (_against_references(systems), _alone(systems), _fields(systems)) if table is not None]


def unavailable(run: Run) -> list[str]:
    """Measures that could not be computed, and why, each once."""
    found: dict[str, None] = {}
    for model in run.tested:
        for name, reason in (_dump(model).get("unavailable") or {}).items():
            found[f"{_TEXT.get(name, _ALONE.get(name, name))}: {reason}"] = None
    return list(found)


def _against_references(systems: Mapping[str, Sequence[TestedModel]]) -> PageTable | None:
    columns = [name for name in _TEXT if any(_dump(m).get(name) is not None for ms in systems.values() for m in ms)]
    if not columns:
        return None
    rows = []
    for title, models in systems.items():
        parts = [_dump(model) for model in models]
        rows.append(_row(title, "all references", parts, columns, models, "test.reasoning"))
        for source, words in _SOURCES.items():
            some = [(part.get("by_source") or {}).get(source) for part in parts]
            if any(some):
                rows.append(_row(words, "", some, columns, models, f"test.reasoning.by_source[{source}]", minor=True))
    return PageTable("Rationales against the teacher's", ("system", *(_TEXT[c] for c in columns)), rows,
                     "<stage>/metrics.json: test.reasoning and its by_source")  # fmt: skip


def _alone(systems: Mapping[str, Sequence[TestedModel]]) -> PageTable | None:
    columns = [name for name in _ALONE if any(_dump(m).get(name) is not None for ms in systems.values() for m in ms)]
    if not columns:
        return None
    rows = [
        _row(title, f"{len(models)} seed{'s' * (len(models) != 1)}", [_dump(model) for model in models], columns,
             models, "test.reasoning")
        for title, models in systems.items()
    ]  # fmt: skip
    return PageTable("Rationales by themselves", ("system", *(_ALONE[c] for c in columns)), rows,
                     "<stage>/metrics.json: test.reasoning")  # fmt: skip


def _fields(systems: Mapping[str, Sequence[TestedModel]]) -> PageTable | None:
    rows = []
    for title, models in systems.items():
        parts = [_dump(model).get("parse_rate_per_field") for model in models]
        if any(parts):
            rows.append(_row(title, "", parts, list(RATIONALE_KEYS), models, "test.reasoning.parse_rate_per_field"))
    if not rows:
        return None
    return PageTable("Replies in which each field could be read", ("system", *RATIONALE_KEYS), rows,
                     "<stage>/metrics.json: test.reasoning.parse_rate_per_field")  # fmt: skip


def _row(
    name: str,
    detail: str,
    parts: Sequence[Mapping[str, Any] | None],
    columns: Sequence[str],
    models: Sequence[TestedModel],
    path: str,
    minor: bool = False,
) -> list[Cell]:
    """Means over seeds of some measures; the source names the file where there is one seed."""
    cells = [Cell(name, detail, minor=minor)]
    for column in columns:
        values = [part[column] for part in parts if part and part.get(column) is not None]
        source = f"{models[0].stage}/metrics.json: {path}.{column}" if len(models) == 1 else ""
        cells.append(spread_cell(spread(values), len(models), source))
    return cells


def _dump(model: TestedModel) -> dict[str, Any]:
    return model.reasoning.model_dump() if model.reasoning else {}
