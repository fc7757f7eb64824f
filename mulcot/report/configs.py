"""The resolved configurations that stages leave in their folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from mulcot.types import InputError

FIT_CONFIG: Final = "config-fit.yaml"
"""What a trained stage was fitted with."""


def read_config(path: Path) -> Mapping[str, Any]:
    """A configuration as plain values; {} where there is no such file.

    Raises:
        InputError: it cannot be read, or is no YAML mapping.
    """
    if not path.exists():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: it cannot be read as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: it is no YAML mapping; run the stage again with --fresh")
    return content
