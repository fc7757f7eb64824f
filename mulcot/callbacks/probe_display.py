"""What the probes found, on the terminal."""

from __future__ import annotations

from typing import Final

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from mulcot.metrics.probe_files import Agreement, Changes, Grounding, Probes, Unavailable

_CAPTION: Final = "changed: other labels; TV: mean total variation; rewritten: mean of 1 - ROUGE-L"
_COLUMNS: Final = ("posts", "accuracy", "changed", "TV", "parse", "rewritten")


def show_probes(probes: Probes, console: Console) -> None:
    """Prints one table for the perturbations, and lines for the rest."""
    title = f"Probes of {probes.posts} test posts (seed {probes.seed})"
    table = Table(title=title, title_justify="left", caption=_CAPTION, caption_justify="left", box=SIMPLE)
    table.add_column("perturbation", no_wrap=True)
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for name, changed in probes.faithfulness.items():
        table.add_row(name.replace("_", " "), *_cells(changed))
    console.print(table)
    for line in _lines(probes):
        console.print(line, highlight=False, markup=False)


def _cells(changed: Changes) -> list[str]:
    rationales = changed.rationales
    return [
        str(changed.posts),
        f"{_number(changed.accuracy_before)} → {_number(changed.accuracy)}",
        _number(changed.labels_changed),
        _number(changed.total_variation),
        "" if rationales is None else _number(rationales.parse_rate),
        "" if rationales is None else _number(rationales.distance["whole"]),
    ]


def _lines(probes: Probes) -> list[str]:
    lines = []
    if isinstance(probes.conflict, Unavailable):
        lines.append(f"conflict: not measured: {probes.conflict.unavailable}")
    else:
        yes, no = probes.conflict.yes, probes.conflict.no
        lines.append(
            f"conflict, by the model's answers to text alone and to the picture alone: {yes.posts} posts (accuracy "
            f"{_number(yes.accuracy)}), none: {no.posts} (accuracy {_number(no.accuracy)})"
        )
    swaps = probes.other_aspects
    if swaps is not None:
        lines.append(
            f"asked about another aspect of the same post, with another label: {swaps.differing} posts, the answer is "
            f"that label in {_number(swaps.differing_follows)}, the first one's in {_number(swaps.differing_stays)}"
        )
    if isinstance(probes.grounding, Grounding):
        lines += [
            _agreement("model", probes.grounding.student),
            _agreement("references", probes.grounding.reference),
        ]
    else:
        lines.append(f"grounding: not measured: {probes.grounding.unavailable}")
    return lines


def _agreement(whose: str, found: Agreement) -> str:
    if found.interval is None:
        return f"grounding, {whose}: no rationales to compare"
    low, high = found.interval
    return (
        f"grounding, {whose}: own picture wins {_number(found.wins)} ({low:.3f} to {high:.3f}; chance 0.5), cosine "
        f"{_number(found.own)} against {_number(found.shuffled)}, {found.posts} posts"
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
