"""The page of promises names tests that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = (CHECKOUT / "docs" / "guarantees.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("|") and not re.match(r"\|(---|\s*promise)", line)
]


def named() -> list[tuple[str, str]]:
    """Files and functions in the page's order; `::function` belongs to the file that was named last in its row."""
    found = []
    for row in ROWS:
        path = ""
        for file, function in re.findall(r"`(tests/[\w/.]+)?(?:::(\w+))?`", row[-1]):
            path = file or path
            found.append((path, function))
    return found


@pytest.mark.parametrize(("path", "function"), named())
def test_every_named_test_is_there(path: str, function: str) -> None:
    tree = ast.parse((CHECKOUT / path).read_text(encoding="utf-8"))
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert not function or function in functions
    assert any(name.startswith("test_") for name in functions)


def test_every_promise_has_two_cells() -> None:
    assert len(ROWS) > 25
    assert [row for row in ROWS if len(row) != 2 or not row[0]] == []


def test_the_threat_model_and_the_page_point_to_each_other() -> None:
    assert "docs/guarantees.md" in (CHECKOUT / "SECURITY.md").read_text(encoding="utf-8")
    assert "SECURITY.md" in PAGE
