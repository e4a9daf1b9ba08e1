"""Tables on the console. Nothing heavy is imported before one is printed."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from orchestrator.doctor import Check

_WIDE = 1000
"""Characters that no row of a table in a file has."""


def print_checks(checks: Sequence[Check]) -> None:
    """Print checks as a table: level, what was looked at, what was found and its cure."""
    print_table(
        ["", "check", "found"],
        [
            [check.level, check.name, check.found + (f" -> {check.cure}" if check.cure else "")]
            for check in checks
        ],
    )


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table as wide as the terminal; nothing in it is taken for markup."""
    from rich.console import Console

    from orchestrator.plan import terminal_width

    width = None if sys.stdout.isatty() else terminal_width()
    Console(width=width, highlight=False, emoji=False).print(_table(headings, rows))


def table_text(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table as text, as wide as it needs to be."""
    from rich.console import Console

    text = io.StringIO()
    console = Console(file=text, width=_WIDE, highlight=False, emoji=False)
    console.print(_table(headings, rows))
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines())


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(_plain(cell) for cell in row))
    return table


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
