"""Where every number of a run comes from: commands, configurations, versions, seeds and hashes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mulcot.manifests import read_manifest
from mulcot.metrics.stage_files import CHAIN_NAME, FolderName
from mulcot.regular_files import MAX_JSON, read_regular
from mulcot.types import InputError

_PROGRAM = ["-m", "mulcot"]


class _Step(BaseModel):
    model_config = ConfigDict(strict=True)

    name: FolderName
    command: list[str] = Field(default_factory=list)


class ChainFile(BaseModel):
    """What `mulcot run` wrote of how it was started."""

    model_config = ConfigDict(strict=True)

    config: str | None = None
    """The chain's configuration."""
    run_dir: str | None = None
    """The run's folder as the commands name it."""
    data_root: str | None = None
    """The folder of the data."""
    steps: list[_Step] = Field(default_factory=list)
    """The steps with their commands."""

    def command(self) -> str | None:
        """The command that makes the whole run again; None where the file does not say."""
        if self.config is None:
            return None
        options = [("--config", self.config), ("--run_dir", self.run_dir), ("--data_root", self.data_root)]
        return shlex.join(["mulcot", "run", *(part for name, value in options if value for part in (name, value))])


@dataclass(frozen=True, slots=True)
class StageOrigin:
    """What a stage was made by and from."""

    name: str
    """The stage."""
    command: str | None
    """Its command; None where the chain does not say."""
    configs: Sequence[str]
    """Its resolved configurations, relative to the run's folder."""
    finished: bool
    """Whether it has a manifest."""
    seed: int | None = None
    """Its seed."""
    started: str = ""
    """When it started, UTC."""
    git_revision: str | None = None
    """The revision of the checkout that it ran in."""
    key: str = ""
    """The fingerprint of its command."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of Python and the packages that decide the result."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Paths and SHA-256 of what it read."""
    outputs: Mapping[str, str] = field(default_factory=dict)
    """Paths and SHA-256 of what it wrote."""


def read_chain_file(run_dir: Path) -> ChainFile:
    """How a run was started; empty where it was not by `mulcot run`.

    Raises:
        InputError: the file is damaged.
    """
    path = run_dir / CHAIN_NAME
    if not path.exists():
        return ChainFile()
    try:
        return ChainFile.model_validate_json(read_regular(path, MAX_JSON))
    except OSError as error:
        raise InputError(f"{path}: it cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"{path}: {place}: {' '.join(first['msg'].split())}; start the run again") from error


def origins(run_dir: Path, chain: ChainFile, names: Sequence[str]) -> list[StageOrigin]:
    """The origin of every stage.

    Args:
        run_dir: the run's folder.
        chain: how it was started.
        names: the stages; those of the chain that left a manifest and no metrics are added.

    Raises:
        InputError: a manifest is damaged.
    """
    commands = {step.name: step.command for step in chain.steps}
    made = [name for name in commands if name not in names and (run_dir / name / "manifest.json").exists()]
    found = []
    for name in [*made, *names]:
        manifest = read_manifest(run_dir / name)
        told: dict[str, Any] = {}
        if manifest is not None:
            told = {
                "seed": manifest.seed,
                "started": manifest.started,
                "git_revision": manifest.git_revision,
                "key": manifest.key,
                "versions": manifest.versions,
                "inputs": manifest.inputs,
                "outputs": manifest.outputs,
            }
        configs = sorted(f"{name}/{path.name}" for path in (run_dir / name).glob("config-*.yaml"))
        command = _spelt(commands[name]) if commands.get(name) else None
        found.append(StageOrigin(name, command, configs, manifest is not None, **told))
    return found


def _spelt(command: Sequence[str]) -> str:
    """A command as one types it, without the interpreter that `mulcot run` starts it with."""
    rest = list(command)
    return shlex.join(["mulcot", *rest[3:]] if rest[1:3] == _PROGRAM else rest)
