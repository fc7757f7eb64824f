"""Mistakes in a configuration, as one line that names file, line and the nearest right key."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from mulcot.config_files import find_config
from mulcot.secrecy import shown
from mulcot.types import InputError

_UNKNOWN: Final = re.compile(
    r"does not accept option '([\w.]+)'|Option '([\w.]+)' is not accepted|[Uu]nrecognized arguments: --([\w.]+)"
)
_CLASS: Final = re.compile(r"given class_path '([\w.]+)'")
_KEY: Final = re.compile(r"[Pp]arser key \"([\w.]+)\"")
_NO_CLASS: Final = re.compile(r"Expected a dot import path string: (\S+)")
_MISSING: Final = re.compile(r"the following arguments are required: ([\w., ]+)")
_WRONG: Final = re.compile(r"Expected an? ([^.\n]+)\. Got value: (.+)")
_LITERAL: Final = re.compile(r"Expected a typing\.Literal\[(.+?)\]\. Got value: (.+)")
_REFUSAL: Final = re.compile(
    r"(?:[\w-]+: )?([\w.]+)(?:\[\d+\])*(?: of (?:an? )?\w+)?(?: is |: |,)|(?:trainer: |You )[^`]*`(?:Trainer\()?(\w+)"
)
"""How a constructor's refusal begins that is about one of its arguments."""
_GIVEN: Final = re.compile(r"Given value: (.+)")


def explain_config_error(error: Exception, argv: Sequence[str], parser: Any) -> str:
    """Turns a parser's error into one line.

    Args:
        error: what the parser raised; the innermost cause stands last in its text.
        argv: the command line.
        parser: knows the keys outside of classes.

    Raises:
        InputError: an argument is no Unicode text, which is what is wrong then.
    """
    check_unicode(argv)
    text = str(error)
    keys = _KEY.findall(text)
    if unknown := _UNKNOWN.search(text):
        key = next(group for group in unknown.groups() if group)
        return f"{_place(key, argv)}unknown key {key!r}{_among(text)}; {_nearest(key, _known_keys(text, parser))}"
    if (missing := _NO_CLASS.search(text)) and "Expected a <class 'float'>" in text:
        wanted = "a number or a schedule {shape: ..., end: ...}"
        return f"{_place(keys[-1], argv)}{keys[-1]} is {missing.group(1)!r}; it must be {wanted}"
    if missing:
        name = missing.group(1)
        known = [base.__name__ for base in _subclasses(_expected_class(text, keys))]
        return f"{_place(name, argv)}there is no class {name!r}; {_nearest(name, known)}"
    if lacking := _MISSING.search(text):
        return _lacking(lacking.group(1).split(", "), text, keys, argv, parser)
    if literal := list(_LITERAL.finditer(text)):
        words, got = literal[-1].groups()
        near = difflib.get_close_matches(got.strip(), re.findall(r"'(.+?)'", words), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{_place(keys[-1], argv)}{keys[-1]} is {shown(keys[-1], got.strip())}; it must be one of {words}{hint}"
    if wrong := list(_WRONG.finditer(text)):
        wanted, got = wrong[-1].groups()
        return f"{_place(keys[-1], argv)}{keys[-1]} is {shown(keys[-1], got.strip())}; it must be {_type_name(wanted)}"
    if keys and (given := _GIVEN.search(text)):
        wanted = " or ".join(dict.fromkeys(_type_name(name) for name in re.findall(r"Expected an? (.+)", text)))
        wanted = "a class: {class_path: ..., init_args: {...}}" if wanted == "null" else wanted
        return f"{_place(keys[-1], argv)}{keys[-1]} is {shown(keys[-1], given.group(1).strip())}; it must be {wanted}"
    return (_place(keys[-1], argv) if keys else "") + " ".join(text.split())


def with_place(refusal: InputError, argv: Sequence[str]) -> InputError:
    """A constructor's refusal, with file and line where a configuration gives the argument that it is about.

    Args:
        refusal: what the constructor raised.
        argv: the command line.
    """
    about = _REFUSAL.match(str(refusal))
    place = _place(about.group(1) or about.group(2), argv, r"[\"']?\s*:") if about else ""
    return type(refusal)(f"{place}{refusal}") if place else refusal


def check_unicode(argv: Sequence[str]) -> None:
    """Refuses arguments that no file of a run could hold.

    Raises:
        InputError: an argument, such as a path, is not UTF-8.
    """
    for arg in argv:
        try:
            arg.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"the argument {arg!r} is not UTF-8; rename the file or folder, or name a link to it that is"
            ) from error


def _lacking(names: Sequence[str], text: str, keys: Sequence[str], argv: Sequence[str], parser: Any) -> str:
    """What a class or the verb itself was not given, as it is written where the class is named."""
    found = _CLASS.findall(text)
    if not found:
        return f"{parser.prog} needs {' and '.join(f'--{name}' for name in names)}"
    name = found[-1].rsplit(".", 1)[-1]
    place = _place(name, argv)
    if place:
        return f"{place}{name} needs {' and '.join(names)}; add it to its init_args"
    return f"{name} needs {' and '.join('--' + '.'.join([*keys, name]) for name in names)}"


def _place(key: str, argv: Sequence[str], behind: str = r"(?!\w)") -> str:
    """Where the last part of `key` is given last: `FILE line N: ` or `--FLAG: `, empty when nowhere."""
    last = key.rsplit(".", 1)[-1]
    for at in reversed(range(len(argv))):
        flag, _, value = argv[at].partition("=")
        if flag in ("--config", "-c"):
            if place := _line(value or "".join(argv[at + 1 : at + 2]), last, behind):
                return place
        elif flag.startswith("--") and flag[2:].rsplit(".", 1)[-1] == last:
            return f"{flag}: "
    return ""


def _line(name: str, key: str, behind: str) -> str:
    try:
        path = Path(find_config(name))
    except InputError:
        return ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if re.search(rf"(?<!\w){re.escape(key)}{behind}", line.split("#", 1)[0]):
            return f"{path} line {number}: "
    return ""


def _among(text: str) -> str:
    found = _CLASS.findall(text)
    return f" of {found[-1].rsplit('.', 1)[-1]}" if found else ""


def _known_keys(text: str, parser: Any) -> list[str]:
    """The right keys: the arguments of the class that the error is about, else those of the parsers."""
    if found := _CLASS.findall(text):
        module, name = found[-1].rsplit(".", 1)
        return list(inspect.signature(getattr(import_module(module), name)).parameters)
    subparsers = getattr(parser, "_subcommands_action", None)
    parsers = [parser, *(subparsers._name_parser_map.values() if subparsers else ())]
    return [action.dest for one in parsers for action in one._actions if isinstance(action.dest, str)]


def _expected_class(text: str, keys: Sequence[str]) -> type | None:
    """The base class that a value was expected to be of, as the error names it."""
    for path in reversed(re.findall(r"<class '([\w.]+)'>", text.split("Errors:")[0])):
        module, _, name = path.rpartition(".")
        if module:
            return getattr(import_module(module), name)
    return None


def _subclasses(base: type | None) -> Iterator[type]:
    children: list[type] = base.__subclasses__() if base else []
    for child in children:
        yield child
        yield from _subclasses(child)


def _nearest(key: str, known: Sequence[str]) -> str:
    """What would be right: the known keys that are most like this one."""
    last = key.rsplit(".", 1)[-1]
    close = difflib.get_close_matches(last, sorted({name.rsplit(".", 1)[-1] for name in known}), n=2)
    return f"did you mean {' or '.join(close)}?" if close else "see `mulcot fit --help` for what there is"


def _type_name(text: str) -> str:
    named = re.fullmatch(r"<class '([\w.]+)'>", text.strip())
    plain = {"int": "a whole number", "float": "a number", "bool": "true or false", "NoneType": "null", "str": "text"}
    return plain.get(named.group(1), named.group(1)) if named else text.strip()
