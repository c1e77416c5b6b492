"""Where tables go: a terminal at its width, anything else at the width that they need."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


WIDE = 240


def screen(*, quiet: bool = False) -> Console:
    """Return the standard output for tables; a pipe or a file has no width of its own."""
    from rich.console import Console

    return Console(quiet=quiet, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDE)
