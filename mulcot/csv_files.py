"""The files of CSV loggers with a folder of their own: Lightning's deletes what lies where it begins to write."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from itertools import count
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities import rank_zero_only


@rank_zero_only
def set_aside(loggers: Iterable[Logger], before: str) -> None:
    """Gives the file of each CSV logger another name, and says which.

    Args:
        loggers: of a stage, before it logs.
        before: what comes: a verb, or the step from which a fit goes on.
    """
    for logger in loggers:
        if not isinstance(logger, CSVLogger):
            continue
        path = Path(logger.log_dir, "metrics.csv")
        if path.is_file():
            kept = _free(path, f"metrics-before-{before}")
            path.rename(kept)
            print(f"{path} is kept as {kept.name}")
            # Lightning would tell of files that it deletes, of which there is none any more.
            warnings.filterwarnings("ignore", message=f"Experiment logs directory {re.escape(logger.log_dir)} exists")


def _free(path: Path, stem: str) -> Path:
    """The first name that no file has: a fit may end again before it has saved anything."""
    names = (f"{stem}{f'-{number}' if number > 1 else ''}.csv" for number in count(1))
    return next(path.with_name(name) for name in names if not path.with_name(name).exists())
