"""The tree of the project's files, each with the first sentence of what it is for.

python docs/house.py        writes docs/house.md
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

HOUSE = Path(__file__).parent.parent
PAGE = HOUSE / "docs" / "house.md"
OPENING = """# The house

Every file with the first sentence of what it is for. A room is a folder, or a file that stands by itself. Imports go
down only, between rooms and between the files of a room; `tests/test_architecture.py` holds the floors.
`python docs/house.py` writes this page.
"""
TOPS = ("anytime_lct", "models", "cli", "benchmarks", "docs")


def page() -> str:
    """Return docs/house.md as it should be."""
    parts = [OPENING]
    for top in TOPS:
        parts.append(f"\n## {top}/\n\n" + "\n".join(_lines(HOUSE / top, 0)) + "\n")
    return "".join(parts)


def _lines(folder: Path, depth: int) -> Iterator[str]:
    """Yield a line a file and room: files first, then rooms."""
    indent = "  " * depth
    for path in sorted(folder.iterdir()):
        if path.suffix in (".py", ".toml") and path.name != "__init__.py":
            yield f"{indent}- `{path.name}`: {first_sentence(path)}"
    for path in sorted(folder.iterdir()):
        if (path / "__init__.py").exists():
            yield f"{indent}- **{path.name}/**: {first_sentence(path / '__init__.py')}"
            yield from _lines(path, depth + 1)


def first_sentence(path: Path) -> str:
    """Return the first sentence of a file's docstring, or of the comment that a TOML file opens with."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".toml":
        tomllib.loads(text)
        told = text.splitlines()[0].lstrip("# ")
    else:
        told = ast.get_docstring(ast.parse(text)) or ""
    paragraph = " ".join(told.split("\n\n")[0].split())
    return re.split(r"(?<=[.])\s(?=[A-Z])", paragraph)[0].rstrip(".") + "."


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
