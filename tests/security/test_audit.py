"""The lock file, and what is made of the advisories about it."""

from __future__ import annotations

import re
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

CHECKOUT = Path(__file__).resolve().parents[2]
LOCK = (CHECKOUT / "requirements.lock").read_text(encoding="utf-8")
PINNED = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", LOCK, re.MULTILINE))


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = spec_from_file_location("audit", CHECKOUT / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package(name: str, *holes: str, **others: Any) -> dict[str, Any]:
    return {"name": name, "version": "1", "vulns": [{"id": hole, "fix_versions": ["2"]} for hole in holes]} | others


UNKNOWN = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("report", "exceptions", "code", "line"),
    [
        ({"dependencies": [package("a"), package("b")]}, {}, 0, "2 packages looked up"),
        ({"dependencies": [package("a", "PYSEC-1")]}, {}, 1, "HOLE: a 1: PYSEC-1, fixed in 2"),
        ({"dependencies": [package("a", "PYSEC-1")]}, {"PYSEC-1": "why"}, 0, "excepted: a PYSEC-1: why"),
        ({"dependencies": [package("a")]}, {"PYSEC-1": "why"}, 1, "UNUSED EXCEPTION: PYSEC-1"),
        ({"dependencies": [package("a"), UNKNOWN]}, {}, 1, "NO ANSWER: c"),
        ({"dependencies": [UNKNOWN]}, {}, 3, "NOT AUDITED"),
        ({"dependencies": []}, {}, 3, "NOT AUDITED"),
        (None, {}, 3, "NOT AUDITED"),
    ],
)
def test_what_is_made_of_the_advisories(
    audit: ModuleType, report: Any, exceptions: dict[str, str], code: int, line: str
) -> None:
    found, lines = audit.judge(report, exceptions)
    assert found == code
    assert any(shown.startswith(line) for shown in lines), lines


def test_every_exception_has_a_reason(audit: ModuleType) -> None:
    assert all(len(reason.split()) >= 4 for reason in audit.EXCEPTIONS.values())


def test_everything_that_is_needed_is_locked_within_its_bounds() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["dev"], *extras["metrics"]]:
        wanted = Requirement(text)
        if wanted.name == project["name"]:  # `dev` takes an extra of mulcot's own
            continue
        assert Version(PINNED[wanted.name.lower().replace("_", "-")]) in wanted.specifier, text


def test_every_locked_package_has_hashes_and_comes_from_the_index() -> None:
    entries = re.split(r"^(?=[\w.-]+==)", LOCK, flags=re.MULTILINE)[1:]
    assert len(entries) == len(re.findall(r"==", re.sub(r"#.*|;.*", "", LOCK)))
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)
    assert not re.search(r"file:|https?:|git\+|--find-links|index-url", LOCK)
