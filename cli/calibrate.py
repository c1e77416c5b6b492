"""`anytime-lct calibrate`: measure what every part of a bundle takes on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from anytime_lct.runtime.timings import Timings


def calibrate(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    sizes: Annotated[str, typer.Option(metavar="B,B,..", help="Sizes of batches to measure.")] = "1,4,16",
    threads: Annotated[
        str, typer.Option(metavar="N|auto", help="Threads of onnxruntime inside a request; auto: the fastest number.")
    ] = "1",
    seconds: Annotated[float, typer.Option(min=0.01, help="How long to measure each size, about.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the timings as one JSON object.")] = False,
) -> None:
    """Measure every layer group and critic on this machine, for budgets of latency and for deadlines.

    The timings are kept beside the bundle, in BUNDLE.calibration.json; `predict` and `serve` find them there. Let
    nothing else run meanwhile. --threads auto suits a device with one request at a time; a server computes each request
    by one thread, and measures that itself.

    Example: anytime-lct calibrate fashion.bundle
    """
    from rich.console import Console

    from anytime_lct.runtime import calibration, timings
    from anytime_lct.runtime.session import AnytimeSession

    numbers = read_threads(threads)
    sessions = [AnytimeSession(bundle, threads=number, calibrated=False) for number in numbers]
    with Console(stderr=True, quiet=as_json).status("calibrating") as status:
        best = calibration.fastest_threads(sessions, seconds) if len(sessions) > 1 else numbers[0]
        session = sessions[numbers.index(best)]
        found = calibration.calibrate(session, read_sizes(sizes), seconds, status.update)
    path = timings.save(found, session.bundle)
    if as_json:
        typer.echo(found.model_dump_json())
    else:
        show(found, session.served)
        typer.echo(f"Wrote {path}, with {best} thread{'s' * (best > 1)} a request.")


def read_threads(text: str) -> list[int]:
    """Read --threads: the number, or for auto those to try, 1, 2, 4 .. up to the cores; raises BudgetError."""
    from anytime_lct.errors import BudgetError

    cores = os.cpu_count() or 1
    if text == "auto":
        return sorted({min(2**k, cores) for k in range(cores.bit_length() + 1)})
    if not text.isdecimal() or int(text) < 1:
        raise BudgetError(f"Expected a number of threads or auto, got '{text}'; 1 suits requests that overlap.")
    return [int(text)]


def read_sizes(text: str) -> list[int]:
    """Read sizes of batches; raises BudgetError."""
    from anytime_lct.errors import BudgetError

    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise BudgetError(f"Expected sizes of batches with commas, like 1,4,16, got '{text}'; count from 1.")
    return sizes


def show(found: Timings, served: tuple[int, ...]) -> None:
    """Draw what every exit takes, by size of batch: the sum of its parts' medians, and of their 99 in 100."""
    from rich.table import Table

    from anytime_lct.cli.screen import screen
    from anytime_lct.exits.budget import show_seconds

    table = Table("batch", *(f"exit {i}" for i in served), title="median (99 in 100)")
    for size, times in found.sizes.items():
        row = []
        for i in served:
            parts = [*times.groups[:i], *([times.critics[i]] if i in times.critics else [])]
            row.append(f"{show_seconds(sum(p.p50 for p in parts))} ({show_seconds(sum(p.p99 for p in parts))})")
        table.add_row(str(size), *row)
    screen().print(table)
