"""What `mulcot eval` found, as tables on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_DASH: Final = "—"
_WIDTH: Final = 100
_TEXT_SCORES: Final = {
    "bleu": "BLEU of the corpus",
    "sentence_bleu": "BLEU of the sentence, mean",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
    "sim": "Sim",
}
_OTHER_SCORES: Final = {
    "distinct_1": "Distinct-1",
    "distinct_2": "Distinct-2",
    "mean_words": "words of a reply",
    "parse_rate": "parse rate",
    "agreement_with_gold": "Prediction is the gold label",
    "agreement_with_answer": "Prediction is the own answer",
}


def print_evaluation(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints what `evaluate` returned.

    Args:
        result: the numbers.
        console: where they go; without it the standard output, 100 columns wide where it is no terminal.
    """
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    out = console or (Console(width=_WIDTH) if piped else Console())
    for what in ("predictions", "references"):
        file = result[what]
        _say(out, f"{what}: {file['path']} ({file['kind']}, {file['rows']:,} rows)")
    if result["classification"] is not None:
        _print_classification(result, out)
    if result["reasoning"] is not None:
        _print_reasoning(result["reasoning"], out)
        _say_refused(result["refused"], out)
    for kind, groups in (result["slices"] or {}).items():
        _print(out, f"by {kind}", _slice_table(groups))
    for note in result["notes"]:
        _say(out, f"note: {note}", "yellow")


def _print_classification(result: Mapping[str, Any], out: Console) -> None:
    scores = result["classification"]
    table = _table(("classification", "left"), ("value", "right"), ("95% interval", "right"))
    for name in ("accuracy", "weighted_f1", "macro_f1"):
        table.add_row(name.replace("_f1", " F1"), _number(scores[name]), _interval(scores["intervals"][name]))
    table.add_row("expected calibration error (15 bins)", _number(scores["ece"]), "")
    _print(out, f"classification of {scores['posts']:,} posts", table)
    wrong = result["disagreements"]
    _say(out, f"{wrong['count']:,} of {scores['posts']:,} labels disagree with the gold label" + _named(wrong))
    if scores["unparsed"]:
        _say(out, f"{scores['unparsed']:,} of these posts have no label that can be read, which counts as wrong")
    labels = list(scores["confusion"])
    table = _table(
        ("label", "left"), *((name, "right") for name in ("precision", "recall", "F1", "posts", "predicted"))
    )
    for label, one in scores["per_class"].items():
        measured = (_number(one[name]) for name in ("precision", "recall", "f1"))
        table.add_row(Text(label), *measured, f"{one['posts']:,}", f"{one['predicted']:,}")
    _print(out, "by label", table)
    table = _table(("gold ↓  predicted →", "left"), *((label, "right") for label in labels))
    for gold in labels:
        table.add_row(Text(gold), *(f"{scores['confusion'][gold][label]:,}" for label in labels))
    _print(out, "posts by gold and predicted label", table)
    if scores["calibration"]:
        table = _table(("confidence", "left"), ("mean confidence", "right"), ("accuracy", "right"), ("posts", "right"))
        for found in scores["calibration"]:
            edges = f"{found['lower']:.3f} to {found['upper']:.3f}"
            table.add_row(edges, _number(found["confidence"]), _number(found["accuracy"]), f"{found['posts']:,}")
        _print(out, "calibration", table)


def _print_reasoning(scores: Mapping[str, Any], out: Console) -> None:
    sources = {name: found for name, found in scores["by_source"].items() if found["posts"]}
    columns = [(f"{name}\n{found['posts']:,}", "right") for name, found in sources.items()]
    if scores["references"]:
        table = _table(("text against the reference", "left"), (f"all\n{scores['references']:,}", "right"), *columns)
        for name, heading in _TEXT_SCORES.items():
            row = [found.get(name) for found in sources.values()]
            table.add_row(heading, _number(scores[name]), *map(_number, row))
        _print(out, "rationales by the source of their reference", table)
        _say(out, "teacher-explained: written with the gold label in view", "dim")
    table = _table((f"{scores['posts']:,} replies", "left"), ("value", "right"))
    for name, heading in _OTHER_SCORES.items():
        table.add_row(heading, _number(scores[name]))
    for key, rate in scores["parse_rate_per_field"].items():
        table.add_row(f"replies that hold {key}", _number(rate))
    _print(out, "replies", table)
    for name, reason in scores["unavailable"].items():
        _say(out, f"{_TEXT_SCORES[name]} is not computed: {reason}", "yellow")


def _say_refused(refused: Mapping[str, Any], out: Console) -> None:
    """How many replies are no rationale, and why the first ones are not; a label may be read from them all the same."""
    if refused["count"]:
        _say(out, f"{refused['count']:,} replies are no rationale; a label in them counts all the same:")
    for post_id, reason in zip(refused["posts"], refused["reasons"], strict=True):
        _say(out, f"  {post_id}: {reason}", "dim")


def _slice_table(groups: Mapping[str, Mapping[str, Any]]) -> Table:
    table = _table(
        *(("group", "left"), ("posts", "right"), ("accuracy", "right"), ("95% interval", "right")),
        *(("macro F1", "right"), ("95% interval", "right")),
    )
    for name, found in groups.items():
        cells = [
            cell for s in ("accuracy", "macro_f1") for cell in (_number(found[s]), _interval(found["intervals"][s]))
        ]
        table.add_row(Text(name), f"{found['posts']:,}", *cells)
    return table


def _table(*columns: tuple[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1), collapse_padding=True)
    for heading, justify in columns:
        table.add_column(Text(heading), justify=justify, overflow="fold")
    return table


def _print(out: Console, title: str, table: Table) -> None:
    out.print()
    out.print(Text(title, style="bold"))
    out.print(table)


def _say(out: Console, line: str, style: str = "") -> None:
    out.print(Text(line, style=style), soft_wrap=True)


def _named(counted: Mapping[str, Any]) -> str:
    posts: Sequence[str] = counted["posts"]
    more = ", ..." if counted["count"] > len(posts) else ""
    return f": {', '.join(posts)}{more}" if posts else ""


def _number(value: float | None) -> str:
    return _DASH if value is None else f"{value:.3f}"


def _interval(bounds: Sequence[float]) -> str:
    return f"{bounds[0]:.3f} to {bounds[1]:.3f}"
