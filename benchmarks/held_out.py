"""What students come to under different losses, and whether each loss falls on posts that were not trained on.

    mulcot run --config demo.yaml && mulcot run --config demo_losses.yaml      # 27 further fits of the student
    python -m benchmarks.held_out --run_dir runs/demo

Reads what the fits left: the scores of every seed on the test split, and from TensorBoard each term on the validation
posts, before the first step and after the last epoch (`conf/experiment/held_out.yaml`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mulcot.report import collect
from mulcot.types import TASKS

BASE = "student, forward KL"
"""The system that the others are compared with: its title in `conf/demo_losses.yaml`."""
SCORES = {"accuracy": "accuracy", "bleu": "BLEU", "parse_rate": "parse rate"}


def held_out(stage: Path) -> dict[str, tuple[float, float]]:
    """Each term's value on the validation posts before the fit and after it, by `<task>/<name>`."""
    events = EventAccumulator(str(stage / "tensorboard"))
    events.Reload()
    prefix = "val/loss/"
    series = {
        tag.removeprefix(prefix): events.Scalars(tag) for tag in events.Tags()["scalars"] if tag.startswith(prefix)
    }
    return {name: (values[0].value, values[-1].value) for name, values in series.items()}


def measure(run_dir: Path) -> list[dict[str, Any]]:
    """Scores, and before and after of every soft term, of each system whose fits looked at held-out posts."""
    found = []
    for system in collect(run_dir)["systems"]:
        stages = [run_dir / run["stage"] for run in system["runs"] if system["kind"] == "student"]
        values = [held_out(stage) for stage in stages]
        names = sorted({key.split("/")[1] for each in values for key in each} - {"ce"})
        terms = {
            name: {task: [each[f"{task}/{name}"] for each in values if f"{task}/{name}" in each] for task in TASKS}
            for name in names
        }
        if terms:
            found.append({"system": system["system"], "scores": system["scores"], "terms": terms})
    return found


def show(systems: Sequence[Mapping[str, Any]]) -> None:
    """The table."""
    table = Table(
        title="test split, mean ± standard deviation over seeds; soft terms on validation posts: before → after"
    )
    for column in ("system", *SCORES.values(), "term", *TASKS, "fell"):
        table.add_column(column)
    base = next((s["scores"]["accuracy"]["mean"] for s in systems if s["system"] == BASE), None)
    for system in systems:
        cells = [spread(system["scores"][score]) for score in SCORES]
        if base is not None and system["system"] != BASE:
            cells[0] += f" ({system['scores']['accuracy']['mean'] - base:+.3f})"
        for name, tasks in system["terms"].items():
            pairs = [pair for task in TASKS for pair in tasks[task]]
            fell = f"{sum(after < before for before, after in pairs)} of {len(pairs)}"
            table.add_row(system["system"], *cells, name, *(before_after(tasks[task]) for task in TASKS), fell)
    Console(width=150).print(table)


def spread(score: Mapping[str, Any] | None) -> str:
    """A mean with its standard deviation."""
    if score is None:
        return ""
    return f"{score['mean']:.3f}" + ("" if score["sd"] is None else f" ± {score['sd']:.3f}")


def before_after(pairs: Sequence[tuple[float, float]]) -> str:
    """The means over seeds."""
    if not pairs:
        return ""
    before, after = (fmean(values) for values in zip(*pairs, strict=True))
    return f"{before:.3g} → {after:.3g}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.held_out", description="What students come to under different losses."
    )
    parser.add_argument("--run_dir", type=Path, default=Path("runs/demo"), help="a run with demo_losses.yaml in it")
    parser.add_argument("--json", action="store_true", help="prints all numbers as JSON")
    options = parser.parse_args()
    systems = measure(options.run_dir)
    if options.json:
        print(json.dumps(systems, indent=2))
    else:
        show(systems)


if __name__ == "__main__":
    main()
