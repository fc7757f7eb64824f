"""The manifest of a stage: what it was made from and what it made. It is written last, so its presence means done."""

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any, Final

from mulcot.config_files import find_config
from mulcot.files import write_atomic
from mulcot.regular_files import MAX_JSON, read_regular
from mulcot.types import InputError, MissingInputError

MANIFEST_NAME: Final = "manifest.json"
CHAIN_FILES: Final = frozenset({"log.txt", "command.key"})
"""What `mulcot run` keeps in a step's folder beside what the step makes."""
_CONFIG_OPTIONS: Final = ("--config", "-c")
_PLACE_OPTIONS: Final = ("--run_dir", "--jobs")
"""Where and how wide a command runs does not change what it makes."""
_MANNER_FLAGS: Final = ("--fresh", "--debug", "--yes")
_PACKAGES: Final = ("torch", "lightning", "transformers", "mulcot")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a finished stage says of itself."""

    verb: str
    """The verb that ran (`fit`, `predict`, ...)."""
    key: str
    """`command_key` of the arguments that it ran with."""
    inputs: dict[str, str]
    """Path of every input and its `digest`; relative to the run's folder where it lies inside, else absolute."""
    outputs: dict[str, str]
    """Path of every output file, relative to the stage's folder, and the SHA-256 of its content."""
    versions: dict[str, str]
    """Versions of Python and of the packages that decide the result."""
    git_revision: str | None
    """The revision of the checkout that it ran in; None outside of one."""
    seed: int | None
    """The seed; None where nothing is random."""
    started: str
    """When it started, ISO 8601 in UTC."""
    wall_seconds: float
    """How long it took."""


def command_key(argv: Sequence[str]) -> str:
    """The identity of a command: equal keys mean that equal inputs give an equal result.

    It is the SHA-256 over mulcot's version, the verb and the arguments. A `--config` counts by its file's content;
    `--run_dir`, `--jobs`, `--fresh`, `--debug` and `--yes` do not count. A path inside the run's folder (`--run_dir`,
    or the parent of `--out`) counts as relative to it, so that a run that was moved keeps its keys.

    Args:
        argv: The arguments as in `sys.argv[1:]`: the verb, then its options.

    Raises:
        InputError: A named configuration does not exist.
    """
    return hashlib.sha256(json.dumps([f"mulcot {version('mulcot')}", *_described(argv)]).encode()).hexdigest()


def digest(path: Path) -> str:
    """The SHA-256 of what a path holds.

    Of a file: of its content. Of a stage's folder: of its manifest's key and outputs, so that a stage that ran again
    with the same result is still the same input. Of any other folder: of the sorted names, sizes and contents in it.

    Raises:
        MissingInputError: There is nothing at this path.
        InputError: The folder's manifest is damaged.
    """
    if path.is_file():
        return _file_digest(path)
    if not path.is_dir():
        raise MissingInputError(f"{path}: there is no such file or folder")
    manifest = read_manifest(path)
    if manifest is not None:
        content: object = {"key": manifest.key, "outputs": manifest.outputs}
    else:
        content = [
            (file.relative_to(path).as_posix(), file.stat().st_size, _file_digest(file)) for file in _files_in(path)
        ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def input_digests(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """The `inputs` of a manifest: call it before the stage starts, so that a later change of an input is noticed.

    Args:
        folder: The stage's folder, `<run>/<stage>`.
        paths: Files and folders that the stage reads, relative to the working folder or absolute.
    """
    return {recorded_name(folder, path): digest(path) for path in paths}


def output_digests(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """The `outputs` of a manifest: every named file, and every file of a named folder.

    Args:
        folder: The stage's folder, `<run>/<stage>`.
        paths: Files and folders inside it.

    Raises:
        ValueError: A path lies outside the stage's folder.
    """
    found = (file for path in paths for file in (_files_in(path) if path.is_dir() else [path]))
    return {_absolute(file).relative_to(_absolute(folder)).as_posix(): _file_digest(file) for file in found}


def make_manifest(
    argv: Sequence[str],
    *,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    seed: int | None,
    started: datetime,
) -> Manifest:
    """The manifest of a stage that ends now.

    Args:
        argv: What the stage ran with, as in `sys.argv[1:]`.
        inputs: What `input_digests` gave before the start.
        outputs: What `output_digests` gives at the end.
        seed: The seed, None where nothing is random.
        started: When the stage started, with a time zone.
    """
    return Manifest(
        verb=argv[0],
        key=command_key(argv),
        inputs=dict(inputs),
        outputs=dict(outputs),
        versions=package_versions(),
        git_revision=git_revision(),
        seed=seed,
        started=started.astimezone(UTC).isoformat(timespec="seconds"),
        wall_seconds=round((datetime.now(UTC) - started).total_seconds(), 3),
    )


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result; a package that is not installed is left out."""
    found = {"python": python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """The commit of the checkout around the working folder, None where there is no git, checkout or commit."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "--verify", "HEAD"], capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Declare a stage finished: `folder/manifest.json` appears whole or not at all. Nothing is to be written after it.

    Raises:
        ValueError: A recorded input does not exist, which would make the stage stale for ever.
    """
    inputs: dict[str, str] = {}
    for name, recorded in manifest.inputs.items():
        path = _absolute(folder).parent / name  # `/` keeps an absolute name as it is
        if not path.exists():
            raise ValueError(f"{folder / MANIFEST_NAME}: the input {name} does not exist; see input_digests")
        inputs[recorded_name(folder, path)] = recorded
    content = asdict(manifest) | {"inputs": inputs}
    write_atomic(folder / MANIFEST_NAME, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a stage's folder, None when the stage never finished.

    Raises:
        InputError: The file is there and is not a manifest; the message says what to do.
    """
    path = folder / MANIFEST_NAME
    try:
        content = json.loads(read_regular(path, MAX_JSON))
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise InputError(f"{folder}: cannot be a folder, for a part of it is a file: name another") from error
    except OSError as error:
        raise _damaged(path, str(error.strerror)) from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "it is not JSON") from error
    if not isinstance(content, dict):
        raise _damaged(path, "it is not a mapping")
    for field in fields(Manifest):
        if not _fits(field.name, content.get(field.name)):
            raise _damaged(path, f"`{field.name}` is missing or of the wrong kind")
    return Manifest(**{field.name: content[field.name] for field in fields(Manifest)})


def staleness(folder: Path, key: str) -> str | None:
    """Why a stage has to run (again), in one phrase; None when its result is still what its inputs would give.

    Args:
        folder: The stage's folder, `<run>/<stage>`.
        key: `command_key` of the command that would make it now.

    Raises:
        InputError: The manifest is damaged.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return "never finished"
    if manifest.key != key:
        return "its configuration changed"
    return _changed(manifest.inputs, _absolute(folder).parent, "input") or _changed(manifest.outputs, folder, "output")


def _changed(recorded: Mapping[str, str], base: Path, what: str) -> str | None:
    for name, expected in recorded.items():
        path = base / name
        if not path.exists():
            return f"{what} {name} is missing"
        if digest(path) != expected:
            return f"{what} {name} changed"
    return None


def _described(argv: Sequence[str]) -> Iterator[str]:
    """The arguments as they count: `--name=value` split in two, and what does not count left out."""
    home = _home(argv)
    rest = list(argv)
    while rest:
        name, assigned, value = rest.pop(0).partition("=")
        if not name.startswith("-"):
            yield _homeless(name + assigned + value, home)
            continue
        if name in _MANNER_FLAGS:
            if rest and rest[0] in ("true", "false"):
                rest.pop(0)
            continue
        if name in (*_CONFIG_OPTIONS, *_PLACE_OPTIONS) and not assigned and rest:
            assigned, value = "=", rest.pop(0)
        if name in _PLACE_OPTIONS:
            continue
        if name in _CONFIG_OPTIONS and assigned:
            yield from ("--config", digest(find_config(value)))
            continue
        yield name
        if assigned:
            yield _homeless(value, home)


def _home(argv: Sequence[str]) -> str:
    """The run's folder as this command spells it, empty when it names none."""
    run_dir = _option(argv, "--run_dir").rstrip("/")
    return run_dir or os.path.dirname(_option(argv, "--out").rstrip("/"))


def _option(argv: Sequence[str], wanted: str) -> str:
    for position, argument in enumerate(argv):
        name, assigned, value = argument.partition("=")
        if name == wanted:
            return value if assigned else "".join(argv[position + 1 : position + 2])
    return ""


def _homeless(value: str, home: str) -> str:
    """The value with paths inside the run's folder made relative to it, also inside a JSON list."""
    if home in ("", ".", "/"):
        return value
    return re.sub(rf"(?<![\w./-]){re.escape(home)}(?=[/\"',\]]|$)", "${run_dir}", value)


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files_in(folder: Path) -> list[Path]:
    found = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return sorted(path for path in found if path.is_file())


def _absolute(path: Path) -> Path:
    """The absolute path with its symbolic links as they are: a link inside a run stays inside it."""
    return Path(os.path.abspath(path))


def recorded_name(folder: Path, path: Path) -> str:
    """How a manifest names an input: relative to the run's folder where it lies inside, else absolute.

    Args:
        folder: The stage's folder, `<run>/<stage>`.
        path: A file or folder, relative to the working folder or absolute.
    """
    run, target = _absolute(folder).parent, _absolute(path)
    for base, inside in ((run, target), (run.resolve(), target.resolve())):
        if inside.is_relative_to(base):
            return inside.relative_to(base).as_posix()
    return target.as_posix()


def _fits(name: str, value: Any) -> bool:
    if name in ("inputs", "outputs", "versions"):
        return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    if name == "wall_seconds":
        return isinstance(value, int | float)
    if name == "seed":
        return value is None or isinstance(value, int)
    return isinstance(value, str) or (name == "git_revision" and value is None)


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path}: the manifest is damaged ({why}); delete this file and run the stage again")
