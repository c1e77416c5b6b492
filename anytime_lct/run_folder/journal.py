"""A journal: what a run writes down on its way, one JSON object a line; the process may end in the middle of one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anytime_lct import disk
from anytime_lct.errors import CheckpointError

Line = dict[str, Any]


def append(path: Path, line: Line) -> None:
    """Add a line; raises CheckpointError."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CheckpointError(
            f"Could not write '{path}': {error.strerror or error}; make room and use --resume."
        ) from None


def read(path: Path) -> list[Line]:
    """Return the lines up to one that is cut off; none where there is no such file."""
    found: list[Line] = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict):
            break
        found.append(line)
    return found


def keep(path: Path, is_kept: Callable[[Line], bool]) -> None:
    """Drop the other lines, such as those of steps that will be run again."""
    if path.exists():
        lines = (json.dumps(line) + "\n" for line in read(path) if is_kept(line))
        disk.write(path, "".join(lines), CheckpointError, "make room and use --resume")
