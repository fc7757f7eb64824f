"""The report on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mulcot.report.run import DISTILLED
from mulcot.report.systems import COLUMNS
from mulcot.report.tables import DASH, decimal, duration, interval, p_value
from mulcot.terminal_tables import Column, print_table, table, words

WIDTH: Final = 100
"""Columns that the comparison needs in one piece."""
_PAIRED: Final = (
    "over the posts that both answered; in brackets the 95% paired bootstrap interval; right alone: it : the other; p: "
    "McNemar's; of each seed in order"
)


def render(result: Mapping[str, Any], console: Console) -> None:
    """Prints what `collect` returned; a terminal of fewer than 100 columns gets the comparison in two parts."""
    print_table(console, "stages", _stage_table(result["stages"]))
    if result["not_run"]:
        console.print(words(f"not run: {', '.join(result['not_run'])}"))
    if result["systems"]:
        names = list(COLUMNS)
        for columns in [names] if console.width >= WIDTH else [names[:3], names[3:]]:
            print_table(console, "test split", _comparison(result["systems"], columns))
        for line in _legend(result["systems"]):
            console.print(words(line, style="dim"))
    if result["differences"]:
        baseline = result["differences"][0]["baseline"]
        print_table(console, f"paired differences from: {baseline}", _differences(result["differences"]))
        console.print(words(_PAIRED, style="dim"))
    for system in result["systems"]:
        if system["system"] == DISTILLED:
            seeds = len(system["runs"])
            over = f", summed over {seeds} seeds" if seeds > 1 else ""
            print_table(console, f"{DISTILLED}: posts by gold and predicted label{over}", _confusion(system))
    for note in result["notes"]:
        console.print(words(f"note: {note}", style="yellow"))


def render_comparison(result: Mapping[str, Any], console: Console) -> None:
    """Prints what `compare` returned."""
    first, second = (run["run_dir"] for run in result["runs"])
    if result["differences"]:
        print_table(console, f"test split: {first} minus {second}", _differences(result["differences"]))
        console.print(words(_PAIRED, style="dim"))
    if result["settings"]:
        made = table(("setting", "left"), (first, "left"), (second, "left"), ("stages", "left"))
        for one in result["settings"]:
            made.add_row(*map(words, (one["setting"], one["first"], one["second"], ", ".join(one["stages"]))))
        print_table(console, "settings that differ", made)
    print_table(console, "costs", _costs(result["runs"]))
    for note in (*result["notes"], *result["unpaired"]):
        console.print(words(f"note: {note}", style="yellow"))


def _differences(differences: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each system; the page has one for each seed, too."""
    names = ("accuracy", "macro_f1")  # a line holds no more; the page has all
    headings: list[Column] = [(COLUMNS[name], "right") for name in names]
    made = table(("system", "left"), ("posts", "right"), *headings, ("right\nalone", "right"), ("p", "right"))
    for found in differences:
        seeds = found["seeds"]
        known = {f"{seed['posts']:,}{_missing(seed)}": None for seed in seeds}
        tests = [seed["mcnemar"] for seed in seeds if seed["mcnemar"]]
        alone = [f"{test['only_second_right']:,} : {test['only_first_right']:,}" for test in tests]
        made.add_row(
            words(f"{found['system']}\n{len(seeds)} seed{'s' * (len(seeds) != 1)}"),
            "\n".join(known),
            *(_change(found["mean"].get(name)) for name in names),
            "\n".join(alone) or DASH,
            "\n".join(p_value(test["p_value"]) for test in tests) or DASH,
        )
    return made


def _missing(seed: Mapping[str, Any]) -> str:
    missing = seed["only_first"] + seed["only_second"] + seed["other_gold"]
    return f", {missing:,} left out" if missing else ""


def _change(found: Mapping[str, float] | None) -> Text:
    """A mean difference, its standard deviation over seeds, its interval over posts."""
    if found is None:
        return Text(DASH)
    spread = f" ± {found['sd']:.3f}" if found["sd"] is not None else ""
    ends = "" if found["low"] is None else f"\n{interval((found['low'], found['high']), sign=True)}"
    return words(f"{decimal(found['mean'], sign=True)}{spread}{ends}")


def _costs(runs: Sequence[Mapping[str, Any]]) -> Table:
    made = table(("run", "left"), *((name, "right") for name in ("wall time", "requests", "tokens", "money")))
    for run in runs:
        teacher = run["costs"]["teacher"] or {}
        read, written, usd = (teacher.get(name) for name in ("prompt_tokens", "completion_tokens", "usd"))
        tokens = DASH if read is None or written is None else f"{read + written:,}"
        requests = f"{teacher['requests']:,}" if teacher else DASH
        money = DASH if usd is None else f"${usd:,.4f}"
        made.add_row(words(run["run_dir"]), duration(run["costs"]["wall_seconds"]), requests, tokens, money)
    return made


def _stage_table(stages: Sequence[Mapping[str, Any]]) -> Table:
    made = table(("stage", "left"), ("wall time", "right"), ("made", "left"))
    for stage in stages:
        made.add_row(words(stage["stage"]), duration(stage["wall_seconds"]), words(stage["made"]))
    return made


def _comparison(systems: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
    made = table(("system", "left"), *((COLUMNS[column], "right") for column in columns))
    for system in systems:
        seeds = len(system["runs"])
        trained = system["kind"] in ("assistant", "student")
        name = f"{system['system']}\n{seeds} seed{'s' * (seeds != 1)}" if trained else system["system"]
        made.add_row(words(name), *(_cell(system["scores"][column], seeds) for column in columns))
    return made


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
    made = table(("gold ↓  predicted →", "left"), *((label, "right") for label in labels))
    for gold in labels:
        made.add_row(words(gold), *(f"{system['confusion'][gold][name]:,}" for name in labels))
    return made


def _cell(score: Mapping[str, Any] | None, seeds: int) -> str:
    if score is None:
        return DASH
    lines = [_number(score["mean"])]
    if score["sd"] is not None:
        lines.append(f"± {score['sd']:.3f}")
    if score["n"] != seeds:
        lines.append(f"n = {score['n']}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.3f}"
