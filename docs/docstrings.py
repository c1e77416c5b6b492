"""Docstrings as reStructuredText: plain words with `code`, drawings and tables that are indented, examples."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby

CODE = re.compile(r"`([^`]+)`")
DRAWN = re.compile(r"^ {3}|\S {3}", re.MULTILINE)
MARKS = re.compile(r"([\\*_|])")


def as_rst(lines: Iterable[str]) -> list[str]:
    """Return the lines of a docstring so that docutils reads them as they are meant.

    >>> as_rst(["Return `h`, of f_1 * f_2.", "", "    f_1 -> f_2"])
    ['Return ``h``, of f\\\\_1 \\\\* f\\\\_2.', '', '::', '', '    f_1 -> f_2', '']
    """
    result: list[str] = []
    for is_text, paragraph in groupby(lines, key=lambda line: bool(line.strip())):
        if is_text:
            result += [*_paragraph(list(paragraph)), ""]
    return result


def _paragraph(lines: list[str]) -> Iterator[str]:
    text = "\n".join(lines)
    if text.startswith(">>>"):
        yield from lines
    elif DRAWN.search(text):
        yield from ("::", "", *(f"    {line.removeprefix('    ')}" for line in lines))
    else:
        yield from _escaped(text).split("\n")


def _escaped(text: str) -> str:
    """Return prose with its code in double backticks, and without any other mark."""
    words = CODE.split(text)
    words[::2] = [MARKS.sub(r"\\\1", word) for word in words[::2]]
    for i in range(1, len(words), 2):
        ends = ("\\ " if words[i - 1][-1:].isalnum() else "", "\\ " if words[i + 1][:1].isalnum() else "")
        words[i] = f"{ends[0]}``{words[i]}``{ends[1]}"
    return "".join(words)
