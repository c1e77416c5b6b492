"""A journal: a file of one JSON object per line, which a run appends to; a last line that is cut off is ignored."""

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
    lines: list[Line] = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict):
            break
        lines.append(line)
    return lines


def keep(path: Path, predicate: Callable[[Line], bool]) -> None:
    """Keep the lines that satisfy the predicate; the others, such as those of steps that run again, are removed."""
    if path.exists():
        lines = (json.dumps(line) + "\n" for line in read(path) if predicate(line))
        disk.write(path, "".join(lines), CheckpointError, "make room and use --resume")
