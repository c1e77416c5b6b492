"""The pages, README and docs/*.md: their fenced blocks, the commands in these, and the code in their prose."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HOUSE = Path(__file__).parent.parent
FILES = (HOUSE / "README.md", HOUSE / "CHANGELOG.md", *sorted((HOUSE / "docs").glob("*.md")))
PROGRAM = ("anytime-lct", "anytime_lct.cli.main")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: the heading it stands under, its language, its text."""

    heading: str
    kind: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page; a line that opens with # inside of one is no heading."""
    heading, kind, lines = "", None, []
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            if kind is None:
                kind, lines = line.removeprefix("```"), []
            else:
                yield Block(heading, kind, "\n".join(lines) + "\n")
                kind = None
        elif kind is not None:
            lines.append(line)
        elif line.startswith("#"):
            heading = line.lstrip("# ")


def commands(text: str) -> Iterator[list[str]]:
    """Yield the arguments of every `anytime-lct` in lines of a shell, the verb first."""
    lexer = shlex.shlex(text.replace("\\\n", " "), posix=True, punctuation_chars="();<>|&\n")
    lexer.whitespace, lexer.whitespace_split = " \t", True
    arguments: list[str] | None = None
    for token in [*lexer, "\n"]:
        if set(token) <= set("();<>|&\n"):
            if arguments:
                yield arguments
            arguments = None
        elif token in PROGRAM:
            arguments = []
        elif arguments is not None:
            arguments.append(token)


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def inline_code(page: Path) -> list[str]:
    """Return what stands between backticks in the prose of a page."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]
