"""Where a configuration's name leads: the working folder, its `conf` folder, then the configs that mulcot installs."""

import difflib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from mulcot.types import InputError


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
