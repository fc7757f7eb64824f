"""A chain's YAML file as steps: read, checked, with seeds expanded and every command written out."""

import difflib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Final

from omegaconf import OmegaConf

from mulcot.config_files import read_yaml
from mulcot.secrecy import check_settings
from mulcot.types import InputError

LIGHTNING_VERBS: Final = ("fit", "validate", "test", "predict")
DATA_VERBS: Final = ("data convert", "data split")
TEACHER_CONFIG: Final = "teacher.yaml"
"""By this configuration a step is known that asks a teacher."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_INTERPOLATION: Final = re.compile(r"\$\{([^}]*)\}")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


_KINDS: Final[dict[str, Callable[[Any], bool]]] = {
    "a path": lambda value: isinstance(value, str) and value != "",
    "a path or null": lambda value: value is None or (isinstance(value, str) and value != ""),
    "a name": lambda value: isinstance(value, str) and value != "",
    "a list of names": _names,
    "a whole number from 1": lambda value: _whole(value) and value >= 1,
    "a whole number from 1 or null": lambda value: value is None or (_whole(value) and value >= 1),
    "a list of whole numbers": lambda value: isinstance(value, list) and all(map(_whole, value)),
    "true or false": lambda value: isinstance(value, bool),
    "a mapping": lambda value: isinstance(value, dict) and all(isinstance(key, str) for key in value),
    "a mapping of at least one step": lambda value: isinstance(value, dict) and len(value) > 0,
}
"""How an error calls a kind of value, and what is one."""

_CHAIN_KEYS: Final = {
    "run_dir": "a path",
    "data_root": "a path or null",
    "overlays": "a list of names",
    "jobs": "a whole number from 1",
    "threads": "a whole number from 1 or null",
    "seeds": "a list of whole numbers",
    "steps": "a mapping of at least one step",
}
_LIGHTNING_KEYS: Final = {"config": "a name", "overlays": "a list of names", "seeds": "true or false"}
_STEP_KEYS: Final = {
    "verb": "a name",
    "after": "a list of names",
    "always": "true or false",
    "inherit": "true or false",
    "set": "a mapping",
    **_LIGHTNING_KEYS,
}


@dataclass(frozen=True, slots=True)
class Step:
    """One process of a chain."""

    name: str
    """Its name; a step with seeds is one for every seed (`student-seed0`)."""
    verb: str
    """The verb of `mulcot` that it runs, `data split` and the like as one."""
    arguments: tuple[str, ...]
    """What the process finds in `sys.argv[1:]`: the verb and its options."""
    after: tuple[str, ...]
    """The steps that must have finished before it starts."""
    folder: Path
    """Its stage folder, `<run_dir>/<name>`."""
    always: bool
    """Whether it runs even when it finished before and nothing changed."""
    inherit: bool
    """Whether its output goes to the terminal instead of to its log."""

    @property
    def resumes(self) -> bool:
        """Whether its verb goes on where it was interrupted, and takes `--fresh` to start anew."""
        return self.verb in (*LIGHTNING_VERBS, *DATA_VERBS)


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain file, checked and written out."""

    file: Path
    """The YAML file."""
    run_dir: Path
    """The run's folder; each step has one inside."""
    data_root: Path | None
    """Where the data lies, handed to every Lightning step; None for what their configurations say."""
    jobs: int
    """How many steps run at the same time."""
    threads: int
    """How many threads each step uses."""
    steps: dict[str, Step]
    """The steps by name, in the order of the file."""
    groups: dict[str, tuple[str, ...]]
    """The steps that a name of the file means: one, or one for every seed."""


@dataclass(frozen=True, slots=True)
class Labelling:
    """What the command line says of the steps that label posts."""

    teacher: str | None = None
    """An overlay that names another teacher: a configuration, or the name of one in `teachers/` without its suffix."""
    yes: bool = False
    """Whether requests that cost money are sent without asking; a step of a chain has nobody to ask."""

    def arguments(self) -> list[str]:
        """The options that a step of `teacher.yaml` gets."""
        overlay = self.teacher
        if overlay is not None and not overlay.endswith((".yaml", ".yml")):
            overlay = f"teachers/{overlay}.yaml"
        return [*(["--config", overlay] if overlay else []), *(["--yes"] if self.yes else [])]


def read_chain(
    file: Path,
    run_dir: Path | None = None,
    data_root: Path | None = None,
    jobs: int | None = None,
    labelling: Labelling | None = None,
) -> Chain:
    """Read a chain file.

    Args:
        file: The YAML file.
        run_dir: Used instead of the file's `run_dir`.
        data_root: Used instead of the file's `data_root`.
        jobs: Used instead of the file's `jobs`.
        labelling: What the steps of `teacher.yaml` get beside what the file says.

    Raises:
        InputError: Something in it is wrong; the message names the file, the key and what would be right.
    """
    values = read_yaml(file, "a chain is a mapping with `run_dir` and `steps`")
    _check_keys(f"{file}", values, _CHAIN_KEYS, required=("steps",))
    home, root = _places(file, values, run_dir, data_root)
    steps: dict[str, Step] = {}
    groups: dict[str, tuple[str, ...]] = {}
    for name, settings in values["steps"].items():
        _check_step(file, name, settings)
        expanded = _expand(file, values, home, root, name, settings)
        if labelling is not None and settings.get("config") == TEACHER_CONFIG:
            expanded = [replace(step, arguments=(*step.arguments, *labelling.arguments())) for step in expanded]
        if taken := next((step.name for step in expanded if step.name in steps), None):
            raise InputError(f"{file}: steps.{name}: there is a step {taken} already; name one of them differently")
        steps |= {step.name: step for step in expanded}
        groups[name] = tuple(step.name for step in expanded)
    if labelling is not None and labelling.teacher is not None and not _labels(values["steps"]):
        raise InputError(f"--teacher: no step of {file} has `config: {TEACHER_CONFIG}`, so none asks a teacher")
    threads = values.get("threads")
    width = jobs or values.get("jobs", 1)
    return Chain(
        file=file,
        run_dir=Path(home),
        data_root=None if root is None else Path(root),
        jobs=width,
        threads=threads or max(1, len(os.sched_getaffinity(0)) // width),
        steps=_linked(file, steps, groups),
        groups=groups,
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint of an error about an unknown name: the nearest of the known ones, or all of them."""
    names = list(dict.fromkeys(known))
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean `{near[0]}`?" if near else f"known are {', '.join(names)}"


def _labels(steps: Mapping[str, Any]) -> bool:
    """Whether any step asks a teacher."""
    return any(settings.get("config") == TEACHER_CONFIG for settings in steps.values())


def _check_keys(where: str, values: dict[Any, Any], known: Mapping[str, str], required: tuple[str, ...]) -> None:
    for key, value in values.items():
        if key not in known:
            raise InputError(f"{where}: unknown key `{key}`; {nearest(str(key), known)}")
        if not _KINDS[known[key]](value):
            raise InputError(f"{where}: `{key}` must be {known[key]}, not {value!r}")
    for key in required:
        if key not in values:
            raise InputError(f"{where}: `{key}` is missing; it is {known[key]}")


def _check_step(file: Path, name: Any, settings: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(f"{file}: steps: {name!r} names a folder, so take letters, digits, `_`, `-` and `.`")
    where = f"{file}: steps.{name}"
    if not isinstance(settings, dict):
        raise InputError(f"{where}: a step is a mapping with at least `verb`")
    _check_keys(where, settings, _STEP_KEYS, required=("verb",))
    if settings["verb"] in LIGHTNING_VERBS:
        if "config" not in settings:
            raise InputError(f"{where}: `config` is missing; `{settings['verb']}` needs the name of a configuration")
        return
    for key in _LIGHTNING_KEYS:
        if key in settings:
            raise InputError(f"{where}: `{key}` goes only with {', '.join(LIGHTNING_VERBS)}; use `set`")


def _places(file: Path, values: dict[str, Any], run_dir: Path | None, data_root: Path | None) -> tuple[str, str | None]:
    """`run_dir` and `data_root`, the command line before the file; `data_root` may refer to `run_dir`."""
    home = str(run_dir) if run_dir is not None else values.get("run_dir")
    if home is None:
        raise InputError(f"{file}: `run_dir` is missing; write it there or give --run_dir")
    if _INTERPOLATION.search(home):
        raise InputError(f"{file}: `run_dir` must be a plain path, not {home!r}")
    root = str(data_root) if data_root is not None else values.get("data_root")
    return home, _filled(f"{file}: data_root", root, {"run_dir": home})


def _expand(
    file: Path, values: dict[str, Any], home: str, root: str | None, name: str, settings: dict[str, Any]
) -> list[Step]:
    seeds = values.get("seeds", []) if settings.get("seeds") else [None]
    if not seeds:
        raise InputError(f"{file}: steps.{name}: `seeds: true` needs a list `seeds` at the top of the file")
    made = []
    for seed in seeds:
        stage = name if seed is None else f"{name}-seed{seed}"
        filled = _filled(f"{file}: steps.{name}", settings, {"run_dir": home, "data_root": root, "stage": stage})
        try:
            check_settings(filled.get("set", {}))  # which chain.json is about to hold
        except InputError as error:
            raise InputError(f"{file}: steps.{name}: {error}") from error
        arguments = _options(filled.get("set", {}))
        if filled["verb"] in LIGHTNING_VERBS:
            overlays = [*values.get("overlays", []), *filled.get("overlays", [])]
            configs = [part for config in [filled["config"], *overlays] for part in ("--config", config)]
            fixed = {"run_dir": home, "stage": stage}
            fixed |= {} if root is None else {"data_root": root}
            fixed |= {} if seed is None else {"seed_everything": str(seed)}
            arguments = [*configs, *_options(fixed), *arguments]
        made.append(
            Step(
                name=stage,
                verb=filled["verb"],
                arguments=(*filled["verb"].split(), *arguments),
                after=tuple(filled.get("after", ())),
                folder=Path(home, stage),
                always=filled.get("always", False),
                inherit=filled.get("inherit", False),
            )
        )
    return made


def _filled(where: str, value: Any, names: Mapping[str, str | None]) -> Any:
    """The value with its `${...}` filled in. Other resolvers (`oc.env`) are refused: the result is written to a file.

    Raises:
        InputError: A name is not one of those that can be filled in here.
    """
    spelt = json.dumps(value, default=str)
    for name in _INTERPOLATION.findall(spelt):
        if name not in names:
            raise InputError(f"{where}: `${{{name}}}` means nothing here; {nearest(name, names)}")
    if "${" not in spelt:
        return value
    return OmegaConf.to_container(OmegaConf.create({**names, "_": value}), resolve=True)["_"]  # type: ignore[index, call-overload]


def _options(settings: Mapping[str, Any]) -> list[str]:
    """Settings as command-line options: text as it is, everything else as JSON."""
    options = []
    for key, value in settings.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        # A value that begins with a dash would be read as an option of its own.
        options += [f"--{key}={text}"] if text.startswith("-") else [f"--{key}", text]
    return options


def _linked(file: Path, steps: dict[str, Step], groups: dict[str, tuple[str, ...]]) -> dict[str, Step]:
    """The steps with `after` naming expanded steps, once it is sure that there is an order."""
    linked = {}
    for step in steps.values():
        for name in step.after:
            if name not in groups and name not in steps:
                raise InputError(f"{file}: steps.{step.name}: `after` names no step `{name}`; {nearest(name, groups)}")
        after = [found for name in step.after for found in groups.get(name, (name,))]
        linked[step.name] = replace(step, after=tuple(after))
    try:
        TopologicalSorter({step.name: step.after for step in linked.values()}).prepare()
    except CycleError as error:
        circle = " after ".join(reversed(error.args[1]))
        raise InputError(f"{file}: steps: {circle} is a circle; remove one of these `after`") from error
    return linked
