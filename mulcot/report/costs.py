"""What a run cost: time, and what its teacher was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from mulcot.metrics.stage_files import Stage, Teacher
from mulcot.report.run import Run
from mulcot.teachers.store import LabelStore
from mulcot.teachers.store_summary import reconcile
from mulcot.types import InputError

STORE_NAME: Final = "labels.sqlite"


def costs_of(run: Run) -> tuple[dict[str, Any], list[str]]:
    """Time and money.

    Returns:
        `wall_seconds` (the sum over stages; several may have run at once) and `teacher` (None without one): `stage`,
        `requests`, `replies`, `prompt_tokens`, `completion_tokens` and `usd` over all runs of the store; of a teacher
        without a store the requests alone, of its last run. None is what is not known. Then notes: stores that could
        not be read.
    """
    seconds = [stage.wall_seconds for stage in run.stages if stage.wall_seconds is not None]
    costs: dict[str, Any] = {"wall_seconds": sum(seconds) if seconds else None, "teacher": None}
    stage = run.teacher()
    if stage is None:
        return costs, []
    try:
        costs["teacher"] = _asked(stage, stage.folder / STORE_NAME)
    except InputError as error:
        return costs, [f"costs of {stage.name} are not known: {error}"]
    return costs, []


def _asked(stage: Stage, path: Path) -> dict[str, Any]:
    """What the teacher was asked over all runs."""
    if not path.is_file():
        assert isinstance(stage.metrics, Teacher)
        requests = sum(split.requests for split in stage.metrics.splits.values())
        unknown = dict.fromkeys(("replies", "prompt_tokens", "completion_tokens", "usd"))
        return {"stage": stage.name, "requests": requests, **unknown}
    with LabelStore(path) as store:
        found = reconcile(store)
    return {
        "stage": stage.name,
        "requests": found.requests,
        "replies": found.replies,
        "prompt_tokens": found.prompt_tokens,
        "completion_tokens": found.completion_tokens,
        "usd": found.usd,
    }
