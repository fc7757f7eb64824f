"""The resolved configurations that stages leave in their folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from mulcot.config_files import read_yaml

FIT_CONFIG: Final = "config-fit.yaml"
"""What a trained stage was fitted with."""


def read_config(path: Path) -> Mapping[str, Any]:
    """A configuration as plain values, which may be somebody else's; {} where there is no such file.

    Raises:
        InputError: it cannot be read, or is no YAML mapping.
    """
    if not path.exists():
        return {}
    return read_yaml(path, "it is no YAML mapping; run the stage again with --fresh")
