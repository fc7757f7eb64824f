"""The first lines of the page: the numbers that one looks for, and what they allow to say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mulcot.report.run import DISTILLED
from mulcot.report.tables import decimal, duration, spread_cell


@dataclass(frozen=True, slots=True)
class Headline:
    """One number at the top of the page."""

    name: str
    """What it is."""
    number: str
    """The number."""
    detail: str
    """Its spread, or of what it is."""


def headlines(result: Mapping[str, Any]) -> list[Headline]:
    """Accuracy of the trained systems, then how much of the chain was run."""
    found = []
    for system in result["systems"]:
        if system["kind"] in ("assistant", "student") and system["scores"]["accuracy"]:
            cell = spread_cell(system["scores"]["accuracy"], len(system["runs"]))
            seeds = len(system["runs"])
            detail = f"accuracy {cell.detail}, {seeds} seeds" if cell.detail else "accuracy, 1 seed"
            found.append(Headline(system["system"], cell.text, detail))
    done = len(result["stages"])
    detail = f"{duration(result['costs']['wall_seconds'])} in all" if result["costs"]["wall_seconds"] else ""
    missing = f", {len(result['not_run'])} not run" if result["not_run"] else ""
    return [*found, Headline("stages with numbers", str(done), detail + missing)]


def verdict(result: Mapping[str, Any]) -> str | None:
    """What the paired differences in accuracy say of the distilled student; None without any."""
    found = next((one for one in result["differences"] if one["system"] == DISTILLED), None)
    known = [seed["differences"]["accuracy"] for seed in found["seeds"] if seed["differences"]] if found else []
    if not found or not known:
        return None
    better, worse = sum(one["low"] > 0 for one in known), sum(one["high"] < 0 for one in known)
    told = {
        (0, 0): "no difference can be told from chance",
        (len(known), 0): "it is higher beyond chance",
        (0, len(known)): "it is lower beyond chance",
    }.get((better, worse), f"it is higher beyond chance in {better} of {len(known)} seeds and lower in {worse}")
    mean = decimal(found["mean"]["accuracy"]["mean"], sign=True)
    return (
        f"{found['system'].capitalize()} against {found['baseline']}, the same posts, {len(known)} seed"
        f"{'s' * (len(known) != 1)}: mean difference in accuracy {mean}; by the 95% "
        f"bootstrap intervals over posts {told}."
    )
