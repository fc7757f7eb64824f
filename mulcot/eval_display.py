"""What `mulcot eval` found, as tables on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from mulcot.terminal_tables import Column, print_table, say, table, words

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
        say(out, f"{what}: {file['path']} ({file['kind']}, {file['rows']:,} rows)")
    if result["classification"] is not None:
        _print_classification(result, out)
    if result["reasoning"] is not None:
        _print_reasoning(result["reasoning"], out)
        _say_refused(result["refused"], out)
    for kind, groups in (result["slices"] or {}).items():
        print_table(out, f"by {kind}", _slice_table(groups))
    for note in result["notes"]:
        say(out, f"note: {note}", "yellow")


def _print_classification(result: Mapping[str, Any], out: Console) -> None:
    scores = result["classification"]
    made = table(("classification", "left"), ("value", "right"), ("95% interval", "right"))
    for name in ("accuracy", "weighted_f1", "macro_f1"):
        made.add_row(name.replace("_f1", " F1"), _number(scores[name]), _interval(scores["intervals"][name]))
    made.add_row("expected calibration error (15 bins)", _number(scores["ece"]), "")
    print_table(out, f"classification of {scores['posts']:,} posts", made)
    wrong = result["disagreements"]
    say(out, f"{wrong['count']:,} of {scores['posts']:,} labels disagree with the gold label" + _named(wrong))
    if scores["unparsed"]:
        say(out, f"{scores['unparsed']:,} of these posts have no label that can be read, which counts as wrong")
    labels = list(scores["confusion"])
    made = table(("label", "left"), *((name, "right") for name in ("precision", "recall", "F1", "posts", "predicted")))
    for label, one in scores["per_class"].items():
        measured = (_number(one[name]) for name in ("precision", "recall", "f1"))
        made.add_row(words(label), *measured, f"{one['posts']:,}", f"{one['predicted']:,}")
    print_table(out, "by label", made)
    made = table(("gold ↓  predicted →", "left"), *((label, "right") for label in labels))
    for gold in labels:
        made.add_row(words(gold), *(f"{scores['confusion'][gold][label]:,}" for label in labels))
    print_table(out, "posts by gold and predicted label", made)
    if scores["calibration"]:
        made = table(("confidence", "left"), ("mean confidence", "right"), ("accuracy", "right"), ("posts", "right"))
        for found in scores["calibration"]:
            edges = f"{found['lower']:.3f} to {found['upper']:.3f}"
            made.add_row(edges, _number(found["confidence"]), _number(found["accuracy"]), f"{found['posts']:,}")
        print_table(out, "calibration", made)


def _print_reasoning(scores: Mapping[str, Any], out: Console) -> None:
    sources = {name: found for name, found in scores["by_source"].items() if found["posts"]}
    columns: list[Column] = [(f"{name}\n{found['posts']:,}", "right") for name, found in sources.items()]
    if scores["references"]:
        made = table(("text against the reference", "left"), (f"all\n{scores['references']:,}", "right"), *columns)
        for name, heading in _TEXT_SCORES.items():
            row = [found.get(name) for found in sources.values()]
            made.add_row(heading, _number(scores[name]), *map(_number, row))
        print_table(out, "rationales by the source of their reference", made)
        say(out, "teacher-explained: written with the gold label in view", "dim")
    made = table((f"{scores['posts']:,} replies", "left"), ("value", "right"))
    for name, heading in _OTHER_SCORES.items():
        made.add_row(heading, _number(scores[name]))
    for key, rate in scores["parse_rate_per_field"].items():
        made.add_row(f"replies that hold {key}", _number(rate))
    print_table(out, "replies", made)
    for name, reason in scores["unavailable"].items():
        say(out, f"{_TEXT_SCORES[name]} is not computed: {reason}", "yellow")


def _say_refused(refused: Mapping[str, Any], out: Console) -> None:
    """How many replies are no rationale, and why the first ones are not; a label may be read from them all the same."""
    if refused["count"]:
        say(out, f"{refused['count']:,} replies are no rationale; a label in them counts all the same:")
    for post_id, reason in zip(refused["posts"], refused["reasons"], strict=True):
        say(out, f"  {post_id}: {reason}", "dim")


def _slice_table(groups: Mapping[str, Mapping[str, Any]]) -> Table:
    made = table(
        *(("group", "left"), ("posts", "right"), ("accuracy", "right"), ("95% interval", "right")),
        *(("macro F1", "right"), ("95% interval", "right")),
    )
    for name, found in groups.items():
        cells = [
            cell for s in ("accuracy", "macro_f1") for cell in (_number(found[s]), _interval(found["intervals"][s]))
        ]
        made.add_row(words(name), f"{found['posts']:,}", *cells)
    return made


def _named(counted: Mapping[str, Any]) -> str:
    posts: Sequence[str] = counted["posts"]
    more = ", ..." if counted["count"] > len(posts) else ""
    return f": {', '.join(posts)}{more}" if posts else ""


def _number(value: float | None) -> str:
    return _DASH if value is None else f"{value:.3f}"


def _interval(bounds: Sequence[float]) -> str:
    return f"{bounds[0]:.3f} to {bounds[1]:.3f}"
