"""`anytime-lct predict`: answer files from a bundle within a budget."""

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


# An input as it is named to the user, and its batch.
Input = tuple[str, Any]
TIMEOUT = "Answer by the deepest exit that this machine reaches in so long, such as 5ms; needs `calibrate` first."
CONFIDENCE = "Let every sample stop at the first exit that is so sure, from 0 to 1."
MEAN = "Let samples stop by the bundle's rule for so many multiply-adds on average, such as 20M; see `thresholds`."
MEASURE = "What sure means: max-probability, margin or entropy."
STREAM = "Show the answer of every exit on the way, up to the one that the budget chooses."


def predict(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    files: Annotated[list[Path] | None, typer.Argument(help="Image files, .npy arrays or text files.")] = None,
    text: Annotated[str | None, typer.Option(help="Text to go on from, instead of files.")] = None,
    budget_flops: Annotated[str | None, typer.Option(help=FLOPS)] = None,
    budget_params: Annotated[str | None, typer.Option(help=PARAMS)] = None,
    budget_latency: Annotated[str | None, typer.Option(help=LATENCY)] = None,
    exit: Annotated[int | None, typer.Option("--exit", help="Go no deeper than this exit.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help=STREAM)] = False,
    top: Annotated[int | None, typer.Option(min=1, help="Show so many classes; default: 1, for text 5.")] = None,
    timeout: Annotated[str | None, typer.Option(help=TIMEOUT)] = None,
    min_confidence: Annotated[float | None, typer.Option(help=CONFIDENCE)] = None,
    mean_flops: Annotated[str | None, typer.Option(help=MEAN)] = None,
    measure: Annotated[str, typer.Option(metavar="MEASURE", help=MEASURE)] = "max-probability",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of onnxruntime; default: as calibrated, else 1.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Answer files from a bundle: the class of every image, or the most likely next characters of a text.

    Every answer comes from the most accurate exit whose cost the budget allows. All inputs are read before
    the first answer is shown.

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
    session.plan(ask)  # says before any input is read what cannot be asked of this bundle
    inputs = read_inputs(session, files or [], text)
    if timeout is not None:
        session.warm()  # loading graphs is none of the request's
    shown = top or (1 if session.manifest.task == "classification" else 5)
    rows = (
        row
        for name, x in inputs
        for answer in (stream_to(session, x, session.choose(budget)) if stream else [session.run(x, ask)])
        for row in rows_of(session.manifest, name, answer, shown)
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
        raise InputError("Expected something to answer, got no input; name files, or give --text for a text network.")
    return [(name, session.check(x)) for name, x in inputs]


def read_ask(
    budget: Budget, timeout: str | None, min_confidence: float | None, measure: str, mean_flops: str | None
) -> Ask:
    """Read what every input asks; raises BudgetError."""
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
    """Answer one input by every exit on the way, up to this one."""
    for answer in session.stream(x):
        yield answer
        if answer.exit == last:
            return


def rows_of(manifest: Manifest, name: str, answer: Answer, top: int) -> Iterator[dict[str, Any]]:
    """Put an answer into plain values, a row a sample; of a text, what comes after its last character."""
    likely = answer.probabilities
    if likely.ndim == 3:
        likely = likely[:, -1]
    for sample, row in enumerate(likely):
        best = row.argsort(kind="stable")[::-1][:top]
        yield {
            "input": name,
            "sample": sample,
            "samples": len(likely),
            "exit": int(answer.exits[sample]),
            "flops": answer.flops,
            "stopped": answer.stopped,
            "top": [
                {"class": manifest.classes[k], "index": int(k), "probability": float(row[k])} for k in best.tolist()
            ],
            "text": manifest.task == "language-model",
        }


def line(row: dict[str, Any]) -> str:
    """Write an answer on one line."""
    from anytime_lct.exits.budget import show_count

    return f"{title(row)}  exit {row['exit']}  {show_count(row['flops'])} FLOPs  {likely(row)}"


def title(row: dict[str, Any]) -> str:
    """Name the input, and which of its samples."""
    return row["input"] if row["samples"] == 1 else f"{row['input']}[{row['sample']}]"


def likely(row: dict[str, Any]) -> str:
    """Write classes with their probabilities; symbols in quotes, so that a space is seen."""
    return ", ".join(
        f"{repr(each['class']) if row['text'] else each['class']} {100 * each['probability']:.1f}%"
        for each in row["top"]
    )


def show(rows: list[dict[str, Any]]) -> None:
    """Draw answers as a table."""
    from rich.table import Table
    from rich.text import Text

    from anytime_lct.cli.screen import screen
    from anytime_lct.exits.budget import show_count

    table = Table("input", "next character" if rows[0]["text"] else "class", "exit", "FLOPs")
    for row in rows:
        table.add_row(Text(title(row)), Text(likely(row)), str(row["exit"]), show_count(row["flops"]))
    screen().print(table)
