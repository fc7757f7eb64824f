"""Trained models as ordinary Hugging Face folders."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from peft import PeftModel
from torch import nn

from mulcot.files import write_atomic
from mulcot.models.loading import ModelSource
from mulcot.prompts import PROMPTS
from mulcot.types import DEFAULT_LABELS

SETTINGS_FILE: Final = "mulcot.json"


def save_model(
    model: nn.Module, processor: Any, labels: Sequence[str], image_size: tuple[int, int] | None, folder: Path
) -> None:
    """Writes weights (an adapter alone where there is one), processor, label set and prompts to `folder`.

    The folder appears whole or not at all: it is written beside its place and then renamed.
    """
    building = folder.with_name(f"{folder.name}.building-{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    # No embedding is ever changed beside an adapter; left to itself, peft asks the hub whether one was.
    options = {"save_embedding_layers": False} if isinstance(model, PeftModel) else {}
    model.save_pretrained(building, **options)  # type: ignore[operator]
    processor.save_pretrained(building)
    settings = {
        "labels": list(labels),
        "image_size": image_size,
        "prompts": {f"{setting}/{use}": prompt.hash for (setting, use), prompt in sorted(PROMPTS.items())},
    }
    write_atomic(building / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")
    if folder.exists():
        shutil.rmtree(folder)
    building.rename(folder)


def read_settings(source: ModelSource) -> tuple[tuple[str, ...], tuple[int, int] | None]:
    """The label set and the picture size that a model was trained with.

    For a model that mulcot did not write these are the default labels, and pictures keep their shape.
    """
    if source.labels is not None:
        return source.labels, source.image_size
    path = Path(source.name) / SETTINGS_FILE
    if not path.is_file():
        return DEFAULT_LABELS, None
    settings = json.loads(path.read_text(encoding="utf-8"))
    size = settings.get("image_size")
    return tuple(settings["labels"]), None if size is None else (size[0], size[1])
