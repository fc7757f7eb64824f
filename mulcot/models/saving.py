"""Trained models as ordinary Hugging Face folders."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from peft import PeftModel
from pydantic import Field, TypeAdapter, ValidationError
from torch import nn

from mulcot.files import write_atomic
from mulcot.models.folders import read_object
from mulcot.models.sources import ModelSource
from mulcot.prompts import PROMPTS
from mulcot.ranges import Side
from mulcot.types import DEFAULT_LABELS, InputError

SETTINGS_FILE: Final = "mulcot.json"


@dataclass(frozen=True, slots=True)
class RowSettings:
    """What a model was trained with beside its processor; rows for it must be made with the same."""

    labels: Annotated[tuple[str, ...], Field(min_length=2)] = DEFAULT_LABELS
    """The label set, as it is named in prompts."""
    image_size: tuple[Side, Side] | None = None
    """Width and height that every picture is squeezed to; None keeps its shape."""
    pad_end: bool = False
    """Whether the pad token ends a response instead of the chat template's end of turn."""


def save_model(model: nn.Module, processor: Any, settings: RowSettings, folder: Path) -> None:
    """Writes weights (an adapter alone where there is one), processor, settings and prompts to `folder`.

    The folder appears whole or not at all: it is written beside its place and then renamed.
    """
    building = folder.with_name(f"{folder.name}.building-{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    # No embedding is ever changed beside an adapter; left to itself, peft asks the hub whether one was.
    options = {"save_embedding_layers": False} if isinstance(model, PeftModel) else {}
    model.save_pretrained(building, **options)  # type: ignore[operator]
    processor.save_pretrained(building)
    prompts = {f"{setting}/{use}": prompt.hash for (setting, use), prompt in sorted(PROMPTS.items())}
    write_atomic(building / SETTINGS_FILE, json.dumps(asdict(settings) | {"prompts": prompts}, indent=2) + "\n")
    if folder.exists():
        shutil.rmtree(folder)
    building.rename(folder)


def read_settings(source: ModelSource) -> RowSettings:
    """What a model was trained with; for a model that mulcot did not write the defaults.

    Raises:
        InputError: what its folder says of that is damaged.
    """
    if source.labels is not None:
        return RowSettings(source.labels, source.image_size, source.pad_end)
    path = Path(source.name) / SETTINGS_FILE
    if not path.is_file():
        return RowSettings()
    try:
        return TypeAdapter(RowSettings).validate_python(read_object(path))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {name}: {first['msg']}; copy the file anew, or take it out") from error
