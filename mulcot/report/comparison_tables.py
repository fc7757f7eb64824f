"""Tables of two runs beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mulcot.report.systems import COLUMNS
from mulcot.report.tables import DASH, Cell, PageTable, count_cell, duration, spread_cell


def against_comparison_table(result: Mapping[str, Any]) -> PageTable:
    """The systems of both runs, each with its mean over its seeds."""
    first, second = result["runs"]
    systems = [{system["system"]: system for system in run["systems"]} for run in (first, second)]
    names = list(dict.fromkeys(name for run in systems for name in run))
    columns = [c for c in COLUMNS if any(system["scores"][c] for run in systems for system in run.values())]
    rows = []
    for name in names:
        for at, (run, found) in enumerate(zip((first, second), systems, strict=True)):
            title = Cell(name, run["run_dir"]) if at == 0 else Cell(run["run_dir"], minor=True)
            if name not in found:
                rows.append([title, Cell("absent"), *(Cell(DASH) for _ in columns)])
                continue
            system = found[name]
            seeds = len(system["runs"])
            cells = [spread_cell(system["scores"][column], seeds) for column in columns]
            rows.append([title, Cell(f"{seeds}", f"{system['posts']:,} posts", seeds), *cells])
    headings = ("system", "seeds", *(COLUMNS[column] for column in columns))
    return PageTable("Test split: systems of both runs", headings, rows)


def settings_table(result: Mapping[str, Any], numbers: str) -> PageTable:
    """What differs between the resolved configurations."""
    first, second = (run["run_dir"] for run in result["runs"])
    rows = [
        [Cell(one["setting"]), Cell(one["first"]), Cell(one["second"]), Cell(", ".join(one["stages"]))]
        for one in result["settings"]
    ]
    columns = ("setting", first, second, "stages")
    return PageTable("Settings that differ", columns, rows, f"{numbers}: settings", numeric=False)


def run_cost_table(result: Mapping[str, Any], numbers: str) -> PageTable:
    """Time and money of both."""
    rows = []
    for run in result["runs"]:
        costs, teacher = run["costs"], run["costs"]["teacher"] or {}
        usd = teacher.get("usd")
        rows.append(
            [
                Cell(run["run_dir"]),
                Cell(duration(costs["wall_seconds"]), value=costs["wall_seconds"]),
                *(count_cell(teacher.get(name)) for name in ("requests", "prompt_tokens", "completion_tokens")),
                Cell(DASH) if usd is None else Cell(f"${usd:,.4f}", value=usd),
            ]
        )
    columns = ("run", "wall time, summed", "requests", "tokens read", "tokens written", "money")
    return PageTable("Costs", columns, rows, f"{numbers}: runs[].costs")
