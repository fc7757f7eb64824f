"""Which launch began a folder's work anew: a job that is started again goes on instead of beginning anew once more."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from mulcot.files import write_atomic

LAUNCH: Final = ".launch"
"""The file that says so."""
_COUNTS: Final = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
"""How often SLURM has put the job back into its queue, and how often torchrun has started its processes again."""
_NAMES: Final = ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID")
"""What stays the same when they do."""


def was_begun_before(folder: Path, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this very job has begun a folder's work anew, was ended, and is started again.

    A step of `mulcot run` never has: the chain itself says what begins anew, and knows what has changed since.

    Args:
        folder: of a stage or of a run.
        environment: that of the process.
    """
    again = "MULCOT_CHAIN" not in environment and any(environment.get(name, "0") != "0" for name in _COUNTS)
    noted = folder / LAUNCH
    return again and noted.is_file() and noted.read_text(encoding="utf-8") == _name(environment)


def note_begin(folder: Path, environment: Mapping[str, str] = os.environ) -> None:
    """Notes that this job has begun a folder's work anew; nothing is noted where nobody would start it again.

    Args:
        folder: of a stage or of a run.
        environment: that of the process.
    """
    if name := _name(environment):
        write_atomic(folder / LAUNCH, name)


def _name(environment: Mapping[str, str]) -> str:
    return " ".join(f"{name}={environment[name]}" for name in _NAMES if name in environment)
