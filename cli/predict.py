"""`anytime-lct predict`: answer files by a bundle, within a budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anytime_lct.cli.select import FLOPS, LATENCY, PARAMS, read_budget

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anytime_lct.exits.budget import Ask, Budget
    from anytime_lct.exits.bundle import Manifest
    from anytime_lct.runtime.answer import Answer
    from anytime_lct.runtime.session import AnytimeSession


# An input's name for the user, and its batch.
Input = tuple[str, Any]
TIMEOUT = "Answer by the deepest exit that this machine reaches within this time, such as 5ms; needs `calibrate` first."
CONFIDENCE = "Let every sample stop at the first exit with at least this confidence, from 0 to 1."
MEAN = "Let samples stop by the bundle's rule for this mean number of multiply-adds, such as 20M; see `thresholds`."
MEASURE = "Measure of confidence: max-probability, margin or entropy."
STREAM = "Show the answer of every exit on the way, up to the one that the budget chooses."


def predict(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    files: Annotated[list[Path] | None, typer.Argument(help="Image files, .npy arrays or text files.")] = None,
    text: Annotated[str | None, typer.Option(help="Text to continue, instead of files.")] = None,
    budget_flops: Annotated[str | None, typer.Option(help=FLOPS)] = None,
    budget_params: Annotated[str | None, typer.Option(help=PARAMS)] = None,
    budget_latency: Annotated[str | None, typer.Option(help=LATENCY)] = None,
    exit: Annotated[int | None, typer.Option("--exit", help="Go no deeper than this exit.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help=STREAM)] = False,
    top: Annotated[int | None, typer.Option(min=1, help="Number of classes to show; default: 1, for text 5.")] = None,
    timeout: Annotated[str | None, typer.Option(help=TIMEOUT)] = None,
    min_confidence: Annotated[float | None, typer.Option(help=CONFIDENCE)] = None,
    mean_flops: Annotated[str | None, typer.Option(help=MEAN)] = None,
    measure: Annotated[str, typer.Option(metavar="MEASURE", help=MEASURE)] = "max-probability",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of onnxruntime; default: as calibrated, else 1.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Answer files by a bundle: the class of every image, or the most likely next characters of a text.

    Every answer comes from the most accurate exit that the budget allows. All inputs are read before the first answer
    is shown.

    Example: anytime-lct predict fashion.bundle boot.png --budget-flops 20M --top 3
    """
    from anytime_lct.errors import BudgetError
    from anytime_lct.exits.budget import Ask
    from anytime_lct.runtime.session import AnytimeSession

    session = AnytimeSession(bundle, threads=threads)
    budget = read_budget(budget_flops, budget_params, budget_latency, exit)
    ask = read_ask(budget, timeout, min_confidence, measure, mean_flops)
    if stream and ask != Ask(budget):
        raise BudgetError(
            "Expected --stream alone, which shows every exit; leave --timeout, --min-confidence and --mean-flops out."
        )
    session.plan(ask)  # raises before any input is read where this bundle cannot answer
    inputs = read_inputs(session, files or [], text)
    if timeout is not None:
        session.warm()  # loading graphs is not part of the request
    num_classes = top or (1 if session.manifest.task == "classification" else 5)
    rows = (
        row
        for name, x in inputs
        for answer in (stream_to(session, x, session.choose(budget)) if stream else [session.run(x, ask)])
        for row in rows_of(session.manifest, name, answer, num_classes)
    )
    if as_json:
        import json

        typer.echo(json.dumps({"bundle": str(bundle), "answers": list(rows)}))
    elif stream:
        for row in rows:
            typer.echo(line(row))
    else:
        show(list(rows))


def read_inputs(session: AnytimeSession, files: list[Path], text: str | None) -> list[Input]:
    """Read and check every file and text."""
    from anytime_lct.errors import InputError
    from anytime_lct.runtime import preprocess

    inputs: list[Input] = [(str(path), preprocess.read_input(path, session.manifest)) for path in files]
    if text is not None:
        inputs.append(("--text", preprocess.from_text(text, session.manifest.preprocessing)))
    if not inputs:
        raise InputError("Expected an input, got none; name files, or give --text for a text network.")
    return [(name, session.check(x)) for name, x in inputs]


def read_ask(
    budget: Budget, timeout: str | None, min_confidence: float | None, measure: str, mean_flops: str | None
) -> Ask:
    """Return the Ask of every input, from the options; raises BudgetError."""
    from anytime_lct.errors import BudgetError
    from anytime_lct.exits.budget import Ask, parse_count, parse_seconds
    from anytime_lct.exits.thresholds import MEASURES

    if measure not in MEASURES:
        raise BudgetError(f"Expected --measure {', '.join(MEASURES)}, got '{measure}'; name one of them.")
    return Ask(
        budget,
        timeout=None if timeout is None else parse_seconds(timeout),
        min_confidence=min_confidence,
        measure=measure,
        mean_flops=None if mean_flops is None else parse_count(mean_flops),
    )


def stream_to(session: AnytimeSession, x: Any, last: int) -> Iterator[Answer]:
    """Yield the answers of every exit on the way to `last`."""
    for answer in session.stream(x):
        yield answer
        if answer.exit == last:
            return


def rows_of(manifest: Manifest, name: str, answer: Answer, top: int) -> Iterator[dict[str, Any]]:
    """Yield an answer as plain values, one row per sample; for a text, those of its last character."""
    probabilities = answer.probabilities
    if probabilities.ndim == 3:
        probabilities = probabilities[:, -1]
    for sample, row in enumerate(probabilities):
        best = row.argsort(kind="stable")[::-1][:top]
        yield {
            "input": name,
            "sample": sample,
            "samples": len(probabilities),
            "exit": int(answer.exits[sample]),
            "flops": answer.flops,
            "stopped": answer.stopped,
            "top": [
                {"class": manifest.classes[k], "index": int(k), "probability": float(row[k])} for k in best.tolist()
            ],
            "text": manifest.task == "language-model",
        }


def line(row: dict[str, Any]) -> str:
    """Format an answer as one line."""
    from anytime_lct.exits.budget import show_count

    return f"{title(row)}  exit {row['exit']}  {show_count(row['flops'])} FLOPs  {likely(row)}"


def title(row: dict[str, Any]) -> str:
    """Return the name of the input, with the sample's index if it has several."""
    return row["input"] if row["samples"] == 1 else f"{row['input']}[{row['sample']}]"


def likely(row: dict[str, Any]) -> str:
    """Format classes with their probabilities; symbols in quotes, so that a space is visible."""
    return ", ".join(
        f"{repr(each['class']) if row['text'] else each['class']} {100 * each['probability']:.1f}%"
        for each in row["top"]
    )


def show(rows: list[dict[str, Any]]) -> None:
    """Print answers as a table."""
    from rich.table import Table
    from rich.text import Text

    from anytime_lct.cli.screen import screen
    from anytime_lct.exits.budget import show_count

    table = Table("input", "next character" if rows[0]["text"] else "class", "exit", "FLOPs")
    for row in rows:
        table.add_row(Text(title(row)), Text(likely(row)), str(row["exit"]), show_count(row["flops"]))
    screen().print(table)
