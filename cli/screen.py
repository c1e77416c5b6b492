"""The console for tables and text: a terminal has its own width, anything else is wide enough for every table."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH = 240
LONGEST_WORD = 40  # a longer one, such as the path of a module, may break


def screen(*, quiet: bool = False, stderr: bool = False) -> Console:
    """Return a console on standard output, or stderr; a pipe or a file gets a fixed width."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else WIDTH
    return Console(quiet=quiet, stderr=stderr, width=width)


class OnlyResults:
    """Standard output of a command with --json: what a user's code prints goes to stderr, results to `results`."""

    def __init__(self, results: TextIO) -> None:
        self.results = results

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


def print_json(text: str) -> None:
    """Print a line of JSON on standard output, which has nothing else."""
    print(text, file=getattr(sys.stdout, "results", sys.stdout), flush=True)


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print text that breaks between words on a terminal, and not at all elsewhere."""
    console.print(text, highlight=False, markup=False, style=style, soft_wrap=console.width >= WIDTH)


def grid(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None, left: Sequence[str] = ()
) -> Table:
    """Return a table whose cells break between words only; columns of `left` start left, others end right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
    )
    lines = [[str(cell) for cell in row] for row in rows]
    for number, name in enumerate(columns):
        words = " ".join([name, *(line[number] for line in lines)]).split()
        justify = "left" if name in left else "right"
        width = min(LONGEST_WORD, max(map(len, words)))
        table.add_column(name, justify=justify, min_width=width, overflow="fold")
    for line in lines:
        table.add_row(*map(Text, line))
    return table
