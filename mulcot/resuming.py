"""Which checkpoint a fit goes on from, and whether it may."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mulcot.checkpoints import newest_good, read_checkpoint
from mulcot.ground import FORMAT, Ground, check_ground
from mulcot.manifests import package_versions
from mulcot.types import InputError

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Resumed:
    """Where a fit goes on."""

    path: Path
    """The checkpoint."""
    step: int
    """The optimizer steps that were taken."""
    begins_epoch_anew: bool
    """Whether the posts of its epoch, or the steps that they make, are others now."""


def find_resumed(paths: Sequence[Path], ground: Ground, allowed: Collection[str], *, named: bool) -> Resumed | None:
    """The newest good checkpoint; a damaged one is told of and passed over.

    Args:
        paths: the checkpoints that there may be, the newest first.
        ground: what the fit stands on now.
        allowed: groups of the ground that may have changed.
        named: whether the user named the checkpoint, so that it must be there.

    Returns:
        Where the fit goes on; None when there is no checkpoint at all.

    Raises:
        InputError: every checkpoint is damaged, or the newest good one is of a later version or of other ground.
    """
    path, refusals = newest_good(paths)
    if path is None and (refusals or named):
        raise InputError("; ".join(refusals) or f"{paths[0]}: there is no such checkpoint")
    if path is None:
        return None
    checkpoint = read_checkpoint(path, mmap=True)
    origin = checkpoint.get("mulcot", {})
    if origin.get("format", FORMAT) > FORMAT:
        raise InputError(
            f"{path}: a later version of mulcot wrote it (format {origin['format']}, this one reads {FORMAT}): take "
            "that version, or --fresh"
        )
    step = int(checkpoint.get("global_step", 0))
    where = f"{path} (step {step})"
    changed = check_ground(origin.get("ground"), ground, allowed, where)
    for refusal in refusals:
        _LOG.warning("%s. The fit goes on from %s", refusal, where)
    _tell_versions(origin["versions"])
    return Resumed(path, step, bool({"batch", "data", "world"}.intersection(changed)))


def _tell_versions(before: Mapping[str, str]) -> None:
    """Says which packages are others than when the fit was begun: the same steps may give other last digits."""
    now = package_versions()
    told = [f"{name} was {before.get(name)}, is {now[name]}" for name in now if before.get(name) != now[name]]
    if told:
        _LOG.warning("the fit was begun with other versions: %s", "; ".join(told))
