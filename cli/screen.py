"""The console for tables: a terminal has its own width, anything else is wide enough for every table."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


WIDTH = 240


def screen(*, quiet: bool = False) -> Console:
    """Return a console on standard output; a pipe or a file gets a fixed width."""
    from rich.console import Console

    return Console(quiet=quiet, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH)
