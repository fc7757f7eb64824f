"""A checkpoint's weights in a stage's model, and whether they may be evaluated there."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mulcot.checkpoints import read_checkpoint
from mulcot.ground import base_ground, check_base
from mulcot.manifests import input_digests
from mulcot.models import holds_all, load_trained, weights_of
from stages.base import ModelStage

_LOG = logging.getLogger(__name__)


def load_weights(stage: ModelStage, path: str | Path) -> dict[str, Any]:
    """Puts the weights of a checkpoint into a stage's model; the checkpoint.

    Args:
        stage: the stage; its model is loaded where it is not yet.
        path: of the checkpoint.

    Raises:
        InputError: there is no such checkpoint, it is damaged, or its weights do not fit.
    """
    checkpoint = read_checkpoint(path)  # which is quickly done, and can be wrong: before the model is loaded
    weights = weights_of(checkpoint, path)
    stage.configure_model()
    assert stage.model is not None
    load_trained(stage.model, weights, path)
    return checkpoint


def load_evaluated(stage: ModelStage, path: str | Path, config: Mapping[str, Any], allowed: Collection[str]) -> None:
    """Puts the weights to evaluate into a stage's model, unless they were trained on another one.

    Args:
        stage: the stage.
        path: of the checkpoint.
        config: the resolved configuration.
        allowed: what may have changed, see `check_base`.

    Raises:
        InputError: see `load_weights` and `check_base`.
    """
    checkpoint = load_weights(stage, path)
    assert stage.model is not None
    if holds_all(stage.model, weights_of(checkpoint, path)):
        return  # nothing of the model below is left, and what it was does not matter
    origin = checkpoint.get("mulcot")
    ground = origin.get("ground") if isinstance(origin, dict) else None
    below = Path(stage.pretrained)
    base = base_ground(stage.pretrained, input_digests(stage.stage_dir, [below] if below.exists() else []))
    for told in check_base(ground, config, base, allowed, str(path)):
        _LOG.warning("%s: %s, so the numbers are not those of the fit", path, told)
