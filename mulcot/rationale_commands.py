"""`mulcot data rationales`: what a label store holds, to and from rationale files, and several stores in one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser
from rich.console import Console

from mulcot.config_errors import explain_config_error
from mulcot.shown_text import printable_json
from mulcot.teachers.limits import Prices
from mulcot.teachers.store import LabelStore
from mulcot.teachers.store_files import whole_values
from mulcot.teachers.store_merge import merge_store
from mulcot.teachers.store_summary import print_reconciliation, reconcile
from mulcot.terminal_tables import say
from mulcot.types import SPLITS, InputError, MissingInputError, RationaleRecord


def main_rationales(argv: Sequence[str]) -> int:
    """`mulcot data rationales`: brings in, merges, exports, then prints the reconciliation."""
    parser = _parser()
    try:
        given = parser.parse_args(list(argv))
    except (ArgumentError, TypeError, ValueError) as error:
        raise InputError(explain_config_error(error, argv, parser)) from error
    path = Path(given.store)
    adds = bool(given.merge) or bool(given["import"])
    if not path.is_file() and not adds:
        raise MissingInputError(
            f"{path}: there is no such label store; `mulcot predict --config teacher.yaml` makes one in its folder"
        )
    # Everything is read before anything is written: a wrong line leaves the store as it was.
    records = [record for file in given["import"] for record in _records(file)]
    with whole_values(path), LabelStore(path) as store:
        new = store.bring_in(records)
        for other in given.merge:
            merge_store(store, other)
        if given.export is not None:
            _export(store, given.export)
        found = reconcile(store, _prices(given.prices))
    if given.json:
        print(printable_json(found.to_dict()))
        return 0
    out = Console()
    print_reconciliation(found, out)
    if records:
        say(out, f"brought in: {new:,} of {len(records):,} records were new; the next run takes those that fit")
    if given.export is not None:
        say(out, f"rationale files: {given.export}")
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="mulcot data rationales",
        description="Prints what a label store says: posts, requests, tokens, money, attempts of unknown outcome.",
        exit_on_error=False,
    )
    parser.add_argument("--store", type=str, required=True, help="The label store: <stage>/labels.sqlite.")
    parser.add_argument("--json", action="store_true", help="Prints everything as JSON.")
    parser.add_argument("--prices", type=tuple[float, float] | None, default=None,
                        help="US dollars for a million tokens read and written, as [0.15, 0.6].")  # fmt: skip
    parser.add_argument("--export", type=Path | None, default=None, help="A folder to write the rationale files into.")
    parser.add_argument("--import", type=Path, default=[], nargs="+",
                        help="Rationale files whose records the next run takes instead of asking.")  # fmt: skip
    parser.add_argument("--merge", type=Path, default=[], nargs="+", help="Further label stores to take in.")
    return parser


def _prices(given: Sequence[float] | None) -> Prices | None:
    return None if given is None else Prices(*given)


def _export(store: LabelStore, folder: Path) -> None:
    from stages.rationale_files import write_rationale_files  # with the stages comes torch

    store.check_attempts()
    splits = {row.split for row in store.settled()}
    if not splits:
        raise InputError(f"{store.path}: no run has settled a post yet, so there is nothing to export")
    write_rationale_files(folder, store, [split for split in SPLITS if split in splits])


def _records(path: Path) -> Iterator[RationaleRecord]:
    """The records of a rationale file.

    Raises:
        MissingInputError: there is no such file.
        InputError: a line is no record of a teacher.
    """
    from data_modules.rationales import read_record
    from data_modules.readers.base import read_lines
    from data_modules.readers.json_files import json_line

    if not path.is_file():
        raise MissingInputError(f"{path}: there is no such rationale file")
    for row, line in read_lines(path):
        record = read_record(row, json_line(row, line))
        if record.source == "assistant":
            raise row.error("source", "the assistant wrote it", "bring in what a teacher wrote")
        yield record
