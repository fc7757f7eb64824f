"""The teacher's rationales of the test posts, with which replies are compared."""

from __future__ import annotations

from typing import Final

from data_modules.rationales import read_record
from data_modules.readers.base import read_lines
from data_modules.readers.json_files import json_line
from mulcot.report.run import Run
from mulcot.types import RationaleRecord

REFERENCES: Final = "rationales-test.jsonl"


def references(run: Run) -> dict[str, RationaleRecord]:
    """The teacher's first rationale of every test post that has one, by post id; {} without a teacher.

    Raises:
        InputError: the rationale file is damaged.
    """
    stage = run.teacher()
    if stage is None or not (stage.folder / REFERENCES).is_file():
        return {}
    found: dict[str, RationaleRecord] = {}
    for row, line in read_lines(stage.folder / REFERENCES):
        record = read_record(row, json_line(row, line))
        found.setdefault(record.post_id, record)
    return found
