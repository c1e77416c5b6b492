"""The text that `predict --generate` writes, as it is drawn or as data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from anytime_lct.cli.screen import print_json

if TYPE_CHECKING:
    from anytime_lct.runtime.generation import Character


def write_text(prompt: str, characters: Iterable[Character]) -> None:
    """Print a text as it is drawn, behind its prompt; then, on stderr, which exits drew it and at what cost."""
    from anytime_lct.exits.budget import show_count

    typer.echo(prompt, nl=False)
    text: list[Character] = []
    for character in characters:
        typer.echo(character.symbol, nl=False)
        text.append(character)
    typer.echo()
    exits = Counter(character.exit for character in text)
    counts = ", ".join(f"{exits[exit]:,} by exit {exit}" for exit in sorted(exits))
    cost = sum(character.flops for character in text) / len(text)
    typer.echo(f"{len(text):,} characters: {counts}; {show_count(cost)} multiply-adds a character.", err=True)


def write_rows(characters: Iterable[Character], output: str) -> None:
    """Print every character with its probability and exit, as "csv" or "jsonl"."""
    import csv
    import sys

    lines = csv.writer(sys.stdout, lineterminator="\n")
    for number, row in enumerate(map(asdict, characters)):
        if output == "jsonl":
            print_json(json.dumps(row))
        else:
            lines.writerows([row, row.values()] if number == 0 else [row.values()])
            sys.stdout.flush()


def write_json(bundle: str, prompt: str, characters: Iterable[Character]) -> None:
    """Print a text as one JSON object, with the exit of every character and the mean cost of one."""
    text = list(characters)
    values: dict[str, Any] = {
        "bundle": bundle,
        "prompt": prompt,
        "text": "".join(character.symbol for character in text),
        "exits": [character.exit for character in text],
        "flops": sum(character.flops for character in text) / len(text),
    }
    print_json(json.dumps(values))
