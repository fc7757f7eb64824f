"""Tables and lines on a terminal: what others wrote can neither act there nor be taken for markup."""

from __future__ import annotations

from typing import Literal, TypeAlias

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mulcot.shown_text import visible

Column: TypeAlias = tuple[str, Literal["left", "right"]]
"""A heading, and the side by which its cells are set."""


def table(*columns: Column) -> Table:
    """An empty table of these columns."""
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1), collapse_padding=True)
    for heading, justify in columns:
        made.add_column(words(heading), justify=justify, overflow="fold")
    return made


def words(text: str, style: str = "") -> Text:
    """Words that somebody else may have written, for a cell or a line: control characters spelt out, no markup."""
    return Text(visible(text), style=style)


def print_table(console: Console, title: str, made: Table) -> None:
    """Prints a blank line, the title and the table."""
    console.print()
    console.print(words(title, style="bold"))
    console.print(made)


def say(console: Console, line: str, style: str = "") -> None:
    """Prints one line, which the terminal may wrap; a pipe gets it whole."""
    console.print(words(line, style), soft_wrap=True)
