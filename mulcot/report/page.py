"""The page: everything that a run's files say, in one HTML file that loads nothing and runs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from mulcot.report.comparison_tables import against_comparison_table, run_cost_table, settings_table
from mulcot.report.configs import FIT_CONFIG
from mulcot.report.examples import RULES, Example, examples, shown_model
from mulcot.report.pictures import PostPictures
from mulcot.report.plots import calibration_charts, loss_charts, stage_scalars, validation_chart
from mulcot.report.probe_tables import probe_tables
from mulcot.report.provenance import origins, read_chain_file
from mulcot.report.published import PublishedRow, published_for
from mulcot.report.rationale_tables import rationale_tables, unavailable
from mulcot.report.references import references
from mulcot.report.run import Run
from mulcot.report.score_tables import (
    by_title,
    class_table,
    comparison_table,
    confusion_table,
    cost_table,
    difference_table,
    published_table,
    stage_table,
)
from mulcot.report.slice_tables import slice_tables
from mulcot.report.summary import headlines, verdict
from mulcot.report.tables import PageTable
from mulcot.shown_text import finalize
from mulcot.types import RATIONALE_KEYS, RationaleRecord

POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""What the page allows itself: its own styles and pictures, nothing from elsewhere, no script."""
_MOST_HASHES: Final = 20
"""Files of a stage whose hashes are listed; its manifest has all."""


@dataclass(frozen=True, slots=True)
class ExampleGroup:
    """Posts that were chosen by one rule."""

    title: str
    """The group."""
    rule: str
    """How its posts were chosen."""
    examples: Sequence[Example]
    """The posts."""


def pictures_of(run: Run) -> PostPictures | None:
    """The pictures of the posts that the page shows; None where it shows none.

    Raises:
        InputError: a file of the run is damaged.
    """
    model = shown_model(run)
    if model is None:
        return None
    return PostPictures(run.folder, read_chain_file(run.folder).run_dir, model.folder / FIT_CONFIG)


def run_page(
    run: Run, result: Mapping[str, Any], published: Sequence[PublishedRow], pictures: PostPictures | None
) -> str:
    """The page of one run.

    Args:
        run: the run.
        result: its numbers, see `collect`.
        published: numbers that others published.
        pictures: those of the posts that it shows, see `pictures_of`.

    Raises:
        InputError: a file of the run is damaged.
    """
    chain = read_chain_file(run.folder)
    known = references(run)
    scalars, curve_notes = stage_scalars(run)
    trained = [system for system in result["systems"] if system["confusion"] is not None and system["runs"]]
    classes = [table for models in by_title(run).values() if (table := class_table(models)) is not None]
    return _render(
        "run.html.jinja",
        title=f"Report of {run.folder.resolve().name}",
        run_dir=str(run.folder),
        command=result["command"],
        chain_command=chain.command(),
        headlines=headlines(result),
        verdict=verdict(result),
        notes=[*result["notes"], *curve_notes],
        stages=stage_table(result),
        costs=cost_table(result["costs"]),
        systems=comparison_table(result["systems"]) if result["systems"] else None,
        majority=next((s["label"] for s in result["systems"] if s["kind"] == "majority"), None),
        differences=_differences(result),
        published=published_for(run, published),
        published_table=published_table,
        losses=loss_charts(run.folder, scalars),
        validation=validation_chart(scalars),
        confusions=[confusion_table(system) for system in trained if system["kind"] != "majority"],
        calibrations=calibration_charts(run),
        classes=classes,
        slices=slice_tables(run, known),
        rationales=rationale_tables(run),
        unavailable=unavailable(run),
        probes=probe_tables(run),
        example_groups=_examples(run, known, pictures),
        example_model=shown_model(run),
        rationale_keys=list(RATIONALE_KEYS),
        most_hashes=_MOST_HASHES,
        origins=origins(run.folder, chain, [stage.name for stage in run.stages]),
    )


def comparison_page(result: Mapping[str, Any], numbers: str) -> str:
    """The page of two runs beside each other.

    Args:
        result: what `compare` returns.
        numbers: the name of the file that holds it.
    """
    first, second = (run["run_dir"] for run in result["runs"])
    caption = f"Paired differences: {first} minus {second}"
    return _render(
        "against.html.jinja",
        title=f"{first} against {second}",
        command=result["command"],
        first=first,
        second=second,
        numbers=numbers,
        notes=[*result["notes"], *result["unpaired"]],
        systems=against_comparison_table(result),
        differences=difference_table(result["differences"], caption, f"{numbers}: differences")
        if result["differences"]
        else None,
        settings=settings_table(result, numbers) if result["settings"] else None,
        costs=run_cost_table(result, numbers),
    )


def _differences(result: Mapping[str, Any]) -> PageTable | None:
    if not result["differences"]:
        return None
    baseline = result["differences"][0]["baseline"]
    return difference_table(result["differences"], f"Paired differences from “{baseline}”", "metrics.json: differences")


def _examples(run: Run, known: Mapping[str, RationaleRecord], pictures: PostPictures | None) -> list[ExampleGroup]:
    model = shown_model(run)
    if model is None or pictures is None:
        return []
    return [ExampleGroup(*RULES[name], found) for name, found in examples(run, model, known, pictures).items()]


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("mulcot.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(policy=POLICY, **values)
