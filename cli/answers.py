"""Answers as `predict` shows them: rows of plain values, as a table, lines, CSV, JSON lines or one JSON object."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import typer

from anytime_lct.cli.screen import print_json

if TYPE_CHECKING:
    from rich.progress import Progress

    from anytime_lct.exits.bundle import Manifest
    from anytime_lct.runtime.answer import Answer
    from anytime_lct.runtime.inputs import Portion

FORMATS = ("table", "csv", "jsonl")
MANY = 20  # inputs, of which a bar shows how many are answered
PAGE = 1000  # rows of a table

Row = dict[str, Any]


def rows_of(manifest: Manifest, name: str, portion: Portion, answer: Answer, top: int) -> Iterator[Row]:
    """Yield an answer as plain values, one row per sample; for a text, those of its last character."""
    if manifest.row.is_numbers:
        for k, row in enumerate(answer.logits.tolist()):
            yield _row(name, portion, answer, k) | {"numbers": dict(zip(manifest.classes, row, strict=True))}
        return
    probabilities = answer.probabilities
    if probabilities.ndim == 3:
        probabilities = probabilities[:, -1]
    for k, row in enumerate(probabilities):
        best = row.argsort(kind="stable")[::-1][:top]
        yield _row(name, portion, answer, k) | {
            "top": [
                {"class": manifest.classes[c], "index": int(c), "probability": float(row[c])} for c in best.tolist()
            ],
            "text": manifest.row.is_text,
        }


def _row(name: str, portion: Portion, answer: Answer, k: int) -> Row:
    """Return what every row has, of sample k."""
    return {
        "input": name,
        "sample": portion.first + k,
        "samples": portion.count,
        "exit": int(answer.exits[k]),
        "flops": answer.flops,
        "stopped": answer.stopped,
    }


def write_csv(rows: Iterable[Row]) -> None:
    """Print rows as CSV, the first class as class, index and probability, the second as class_2, ..

    A network of numbers has a column for each of them.
    """
    import csv

    lines = csv.writer(sys.stdout, lineterminator="\n")
    for number, row in enumerate(map(_flat, rows)):
        if number == 0:
            lines.writerow(row)
        lines.writerow(row.values())
        sys.stdout.flush()


def write_jsonl(rows: Iterable[Row]) -> None:
    """Print every row as a JSON object in a line of its own."""
    for row in rows:
        print_json(json.dumps(row))


def write_lines(rows: Iterable[Row]) -> None:
    """Print every row as a line for people."""
    from anytime_lct.exits.budget import show_count

    for row in rows:
        typer.echo(f"{_title(row)}  exit {row['exit']}  {show_count(row['flops'])} FLOPs  {_likely(row)}")


def write_table(rows: Iterable[Row], bar: Progress) -> None:
    """Print rows as a table, of many rows as several; meanwhile the bar is not on the screen."""
    from rich.table import Column, Table
    from rich.text import Text

    from anytime_lct.cli.screen import screen
    from anytime_lct.exits.budget import show_count

    remaining = iter(rows)
    while page := list(islice(remaining, PAGE)):
        table = Table(Column("input", overflow="fold"), _heading(page[0]), "exit", "FLOPs")
        for row in page:
            table.add_row(Text(_title(row)), Text(_likely(row)), str(row["exit"]), show_count(row["flops"]))
        bar.stop()
        screen().print(table)
        bar.start()


def bar_of(total: int, *, shown: bool) -> Progress:
    """Return a bar on standard error, of many inputs on a terminal, and else one that shows nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    bar = Progress(
        BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn(), console=console, transient=True,
        redirect_stdout=False, disable=not (shown and total > MANY and console.is_terminal),
    )  # fmt: skip
    bar.add_task("inputs", total=total)
    return bar


def _flat(row: Row) -> Row:
    """Return a row with its classes as columns, without what CSV does not need."""
    flat = {key: value for key, value in row.items() if key not in ("top", "samples", "text", "numbers")}
    flat |= row.get("numbers", {})
    for rank, each in enumerate(row.get("top", ()), start=1):
        flat |= {key if rank == 1 else f"{key}_{rank}": value for key, value in each.items()}
    return flat


def _heading(row: Row) -> str:
    if "numbers" in row:
        return "numbers"
    return "next character" if row["text"] else "class"


def _title(row: Row) -> str:
    """Return the name of the input, with the sample's index if it has several."""
    return row["input"] if row["samples"] == 1 else f"{row['input']}[{row['sample']}]"


def _likely(row: Row) -> str:
    """Format classes with their probabilities; symbols in quotes, so that a space is visible; or numbers."""
    if "numbers" in row:
        return ", ".join(f"{name} {number:.5g}" for name, number in row["numbers"].items())
    return ", ".join(
        f"{repr(each['class']) if row['text'] else each['class']} {100 * each['probability']:.1f}%"
        for each in row["top"]
    )
