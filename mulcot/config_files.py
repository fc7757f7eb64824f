"""Where a configuration's name leads (the working folder, its `conf`, what mulcot installs), and what is in it."""

import difflib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import yaml

from mulcot.regular_files import read_regular
from mulcot.types import InputError

MAX_VALUES: Final = 100_000
"""Of a configuration; a few lines of aliases of aliases come to billions."""
MAX_BYTES: Final = 1 << 20
"""Of a configuration; PyYAML takes ten seconds for so many."""
_PER_VALUE: Final = 40
"""Characters of a text that count as one value: an alias of a long one is short too."""
_MAX_BITS: Final = 256
"""Of a whole number, more than any setting has; Python refuses to write one of thousands of digits."""
_UNREADABLE: Final = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, OverflowError)
"""What PyYAML raises: beside its own errors those that Python has for `!!int x`, `!!bool x`, or a thirteenth month."""


class _OneOfEachKey(yaml.SafeLoader):
    """YAML's safe loader, but a key that stands twice is an error: PyYAML would drop the first one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping that a node spells."""
        spelt: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # refused below; spelt out, its aliases could be billions
            if key.value in spelt:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value} stands twice", key.start_mark)
            spelt.add(key.value)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Writes out what a mapping merges by `<<`: billions of keys of a few lines, before PyYAML 6.0.4."""
        merged = 0
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    if isinstance(part, yaml.MappingNode):
                        self.flatten_mapping(part)
                        merged += len(part.value)
        if merged > MAX_VALUES:
            problem = f"it merges more than {MAX_VALUES} keys by `<<`"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        super().flatten_mapping(node)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """The whole number that a node spells."""
        value = super().construct_yaml_int(node)
        if value.bit_length() > _MAX_BITS:
            raise yaml.constructor.ConstructorError(None, None, "a number of too many digits", node.start_mark)
        return value


_OneOfEachKey.add_constructor("tag:yaml.org,2002:int", _OneOfEachKey.construct_yaml_int)


def read_yaml(file: Path, form: str = "a configuration is a mapping") -> dict[str, Any]:
    """What a configuration file holds, `${...}` as it is spelt.

    Args:
        file: The file.
        form: What it must be, for the message when it is no mapping.

    Raises:
        InputError: As `load_yaml`, or it is no mapping.
    """
    values = load_yaml(file)
    if not isinstance(values, dict):
        raise InputError(f"{file}: {form}")
    return values


def load_yaml(file: Path) -> Any:
    """What a YAML file holds, of any form; it may be somebody else's.

    Args:
        file: The file.

    Raises:
        InputError: It is no regular file, too large, no YAML, or a key stands twice; the message names file and line.
    """
    try:
        values = yaml.load(read_regular(file, MAX_BYTES).decode("utf-8"), _OneOfEachKey)  # a SafeLoader
    except _UNREADABLE as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else f"{file}"
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise InputError(f"{where}: not YAML: {problem}") from error
    except RecursionError as error:
        raise InputError(f"{file}: not YAML: it is nested beyond reason") from error
    except OSError as error:
        raise InputError(f"{file}: it cannot be read ({error.strerror})") from error
    if _written_out(values, {}) > MAX_VALUES:
        raise InputError(f"{file}: with its aliases written out it has more than {MAX_VALUES} values; write fewer")
    return values


def _written_out(value: Any, known: dict[int, int]) -> int:
    """How many values there are when an alias counts as what it stands for; each is looked at once."""
    if isinstance(value, str | bytes):
        return 1 + len(value) // _PER_VALUE
    if not isinstance(value, dict | list | tuple | set):
        return 1
    if id(value) not in known:
        known[id(value)] = MAX_VALUES  # of one that holds itself
        keys, inner = (value, value.values()) if isinstance(value, dict) else ((), value)
        of_keys = sum(len(key) // _PER_VALUE for key in keys if isinstance(key, str))
        known[id(value)] = 1 + of_keys + sum(_written_out(item, known) for item in inner)
    return known[id(value)]


def find_config(name: str) -> Path:
    """The file that a configuration's name means.

    A path that exists is taken as it is. Another relative name (`student.yaml`, `models/tiny.yaml`) is looked up in
    the folder `conf` of the working folder, then among the installed configurations.

    Args:
        name: A path or a bare name.

    Raises:
        InputError: There is no such file; the message lists the names that come nearest.
    """
    places = [Path(name)]
    if name and not places[0].is_absolute():
        places += [folder / name for folder in _config_folders()]
    for place in places:
        if place.is_file():
            return place
    raise InputError(
        f"{name}: there is no such configuration in `.`, `./conf` or among the installed ones{_hint(name)}"
    )


def installed_configs() -> Path:
    """The folder of the installed configurations: `mulcot/conf` of a wheel, or `conf` beside the package's folder."""
    package = Path(str(files("mulcot")))
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def _config_folders() -> list[Path]:
    return [Path("conf"), installed_configs()]


def _hint(name: str) -> str:
    known = sorted(set(_known_names()))
    wanted = Path(name).with_suffix(".yaml").as_posix() if name else ""
    near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.6)
    near += [other for other in known if Path(other).name == Path(wanted).name and other not in near]
    if near:
        return f"; near it are {', '.join(near)}"
    return f"; known are {', '.join(known)}" if known else ""


def _known_names() -> Iterator[str]:
    yield from (path.name for path in Path().glob("*.yaml"))
    for folder in _config_folders():
        yield from (path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))
