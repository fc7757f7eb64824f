"""Which checkpoint a fit goes on from, and whether it may."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning import Trainer

from data_modules.multimodal import MultimodalDataModule
from mulcot.checkpoints import newest_good, read_checkpoint
from mulcot.ground import FORMAT, Ground, check_ground
from mulcot.launches import was_begun_before
from mulcot.manifests import package_versions
from mulcot.stage_folder import StageFolder
from mulcot.types import InputError
from stages.base import ModelStage
from stages.optimizer import OtherRates

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Resumed:
    """Where a fit goes on."""

    path: Path
    """The checkpoint."""
    step: int
    """The optimizer steps that were taken."""
    changed: Collection[str]
    """The groups of its ground that are others now."""


def find_resumed(
    folder: StageFolder, named: str | None, ground: Ground, allowed: Collection[str], *, fresh: bool
) -> Resumed | None:
    """The checkpoint that was named, else the newest good one of the stage; a damaged one is told of and passed over.

    Args:
        folder: of the stage, as an earlier fit left it.
        named: the checkpoint that the user named.
        ground: what the fit stands on now.
        allowed: groups of the ground that may have changed.
        fresh: whether the folder is about to be emptied.

    Returns:
        Where the fit goes on; None when there is no checkpoint at all.

    Raises:
        InputError: the named checkpoint is not there or would be removed, the stage has others of its own, every one
            is damaged, or the newest good one is of a later version or of other ground.
    """
    paths = _candidates(folder, None if named is None else Path(named), fresh)
    path, refusals = newest_good(paths)
    if path is None and (refusals or (named and paths == [Path(named)])):
        raise InputError("; ".join(refusals) or f"{named}: there is no such checkpoint")
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
    return Resumed(path, step, changed)


def take_up(resumed: Resumed, trainer: Trainer, stage: ModelStage, data: MultimodalDataModule) -> None:
    """Gets a fit ready to go on.

    Args:
        resumed: from where.
        trainer: of the fit, which has not begun.
        stage: that is trained.
        data: that it is trained on.
    """
    # The posts of its epoch, or the steps that they make, are others now.
    data.begins_epoch_anew = not {"batch", "data", "world"}.isdisjoint(resumed.changed)
    if "optimizer" in resumed.changed:
        trainer.callbacks.append(OtherRates(stage.optimizer))  # type: ignore[attr-defined]
    if trainer.is_global_zero:
        print(f"going on from step {resumed.step}, saved in {resumed.path}")


def _candidates(folder: StageFolder, named: Path | None, fresh: bool) -> Sequence[Path]:
    """The checkpoints that may be gone on from, the newest first: nothing that a fit has saved is lost by another's."""
    if named is None:
        return [] if fresh else folder.checkpoints
    inside = named.resolve().is_relative_to(folder.path.resolve())
    if fresh and inside:
        raise InputError(f"--ckpt_path {named}: --fresh would remove it: give one of the two, or another --stage")
    own = next((path for path in folder.checkpoints if path.is_file()), None)
    if fresh or inside or own is None:
        return [named]
    if was_begun_before(folder.path):
        return folder.checkpoints
    raise InputError(
        f"--ckpt_path {named}: the stage has a checkpoint of its own, {own}: leave out --ckpt_path to go on from that, "
        "or give --fresh to begin again from the one that was named"
    )


def _tell_versions(before: Mapping[str, str]) -> None:
    """Says which packages are others than when the fit was begun: the same steps may give other last digits."""
    now = package_versions()
    told = [f"{name} was {before.get(name)}, is {now[name]}" for name in now if before.get(name) != now[name]]
    if told:
        _LOG.warning("the fit was begun with other versions: %s", "; ".join(told))
