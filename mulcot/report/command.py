"""`mulcot report`: the tables of a run, its numbers as one JSON file, and one page for a browser."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from mulcot.files import write_atomic
from mulcot.metrics.stage_files import METRICS_NAME
from mulcot.report.against import compare
from mulcot.report.collect import numbers_of
from mulcot.report.published import PublishedRow, read_published
from mulcot.report.run import BASELINE, read_run
from mulcot.report.terminal import WIDTH, render, render_comparison
from mulcot.shown_text import visible
from mulcot.types import InputError

PAGE_NAME: Final = "report.html"
_PUBLISHED_HELP: Final = (
    "numbers that others published, shown beside the run's where it has the splits of their data set: a YAML list of "
    "rows with system, data_set (MVSA-Single, MVSA-Multiple, Twitter-2015 or Twitter-2017), metric (accuracy, "
    "weighted_f1, ...), value in [0, 1] and source. mulcot itself brings no published number"
)


def report(
    run_dir: Path,
    out: Path | None = None,
    page: Path | None = None,
    published: Path | None = None,
    baseline: str | None = None,
) -> dict[str, Any]:
    """Compares the systems of a run on the test split, prints the tables, writes their numbers and the page.

    Args:
        run_dir: the run, `runs/<name>`, with a folder for every stage.
        out: where the numbers are written; without it `metrics.json` in the run's folder.
        page: where the page is written; without it `report.html` beside the numbers.
        published: a YAML file of published numbers, see `PublishedRow`.
        baseline: the title of the system that the others are compared with, see `numbers_of`.

    Returns:
        What is written: `command`, `stages`, `not_run`, `systems` (mean, standard deviation and every seed's values,
        in [0, 1], and the confusion matrix summed over seeds), `differences` (from the baseline, see
        `differences_from_baseline`), `costs` and `notes`.

    Raises:
        MissingInputError: no stage of the run has written its metrics.
        InputError: a file of the run is damaged, or a result cannot be written.
    """
    # With it come the readers, which a mistyped folder should not wait for.
    from mulcot.report.page import pictures_of, run_page

    rows: list[PublishedRow] = [] if published is None else read_published(published)
    run = read_run(run_dir)
    result = numbers_of(run, baseline)
    target = out or _inside(run_dir, METRICS_NAME, "--out")
    _write_numbers(target, result)
    page = page or (target.parent / PAGE_NAME if out else _inside(run_dir, PAGE_NAME, "--page"))
    pictures = pictures_of(run)
    _write(page, run_page(run, result, rows, pictures), "page")
    console = _console()
    render(result, console)
    console.print(f"page: {page}", markup=False, highlight=False, soft_wrap=True)
    for folder, count in sorted(pictures.outside.items() if pictures else ()):
        # The run says which pictures are shown, and may be somebody else's; the page is sent around.
        told = f"pictures of the page that do not lie in the run: {count}, in {visible(str(folder))}"
        console.print(told, markup=False, highlight=False, soft_wrap=True)
    return result


def report_against(run_dir: Path, against: Path, out: Path | None = None, page: Path | None = None) -> dict[str, Any]:
    """Compares two runs, prints the tables, writes their numbers and the page.

    Args:
        run_dir: the run that is looked at.
        against: the run that it is compared with.
        out: where the numbers are written; without it `against-<name>.json` in the first run's folder.
        page: where the page is written; without it `against-<name>.html` beside the numbers.

    Returns:
        What is written, see `compare`.

    Raises:
        MissingInputError: no stage of one of the runs has written its metrics.
        InputError: a file of one of the runs is damaged, or a result cannot be written.
    """
    from mulcot.report.page import comparison_page

    result = compare(run_dir, against)
    name = f"against-{against.resolve().name}"
    target = out or _inside(run_dir, f"{name}.json", "--out")
    _write_numbers(target, result)
    page = page or (target.with_suffix(".html") if out else _inside(run_dir, f"{name}.html", "--page"))
    _write(page, comparison_page(result, target.name), "page")
    console = _console()
    render_comparison(result, console)
    console.print(f"page: {page}", markup=False, highlight=False, soft_wrap=True)
    return result


def main_report(argv: Sequence[str]) -> int:
    """`mulcot report` with these arguments.

    Args:
        argv: what follows `mulcot report`.

    Returns:
        The exit code 0.

    Raises:
        InputError: as in `report`.
        SystemExit: `--help` was asked for, or an option is missing or unknown.
    """
    parser = argparse.ArgumentParser(
        prog="mulcot report",
        description="Compare the systems of a run on the test split: tables, metrics.json, and report.html, one page "
        "that needs no network.",
        allow_abbrev=False,
    )
    parser.add_argument("--run_dir", type=Path, required=True, help="the run's folder, such as runs/demo")
    parser.add_argument("--against", type=Path, help="another run, to compare this one with, post by post")
    parser.add_argument("--out", type=Path, help=f"where the numbers go, instead of RUN_DIR/{METRICS_NAME}")
    parser.add_argument("--page", type=Path, help=f"where the page goes, instead of {PAGE_NAME} beside the numbers")
    parser.add_argument("--published", type=Path, help=_PUBLISHED_HELP)
    parser.add_argument("--baseline", help=f"the title of the system that others are compared with, not {BASELINE!r}")
    options = parser.parse_args(argv)
    if options.against is None:
        report(options.run_dir, options.out, options.page, options.published, options.baseline)
        return 0
    for name in ("published", "baseline"):
        if getattr(options, name) is not None:
            raise InputError(f"--{name} is for one run's numbers, not for two runs: leave out --against")
    report_against(options.run_dir, options.against, options.out, options.page)
    return 0


def _inside(run_dir: Path, name: str, option: str) -> Path:
    """A file of the run, whose folder somebody else may have made: a link in it must not lead what is written away."""
    target = run_dir / name
    if not target.resolve().is_relative_to(run_dir.resolve()):
        raise InputError(f"{target}: it is a link that leads out of the run; remove it, or name a file with {option}")
    return target


def _write_numbers(target: Path, result: Mapping[str, Any]) -> None:
    _write(target, json.dumps(result, ensure_ascii=False, indent=2, allow_nan=False) + "\n", "numbers")


def _write(target: Path, content: str, what: str) -> None:
    try:
        write_atomic(target, content)
    except OSError as error:
        raise InputError(f"{target}: the {what} cannot be written there ({error.strerror})") from error


def _console() -> Console:
    # Into a file or a pipe rich would assume 80 columns, too few for the comparison.
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=WIDTH) if piped else Console()
