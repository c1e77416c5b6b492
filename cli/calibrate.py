"""`anytime-lct calibrate`: measure how long every part of a bundle takes on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anytime_lct.cli.screen import print_json
from anytime_lct.cli.serve import PROVIDER

if TYPE_CHECKING:
    from anytime_lct.runtime.timings import Timings


def calibrate(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    sizes: Annotated[str, typer.Option(metavar="B,B,..", help="Sizes of batches to measure.")] = "1,4,16",
    threads: Annotated[
        str, typer.Option(metavar="N|auto", help="Threads inside a request; auto: the fastest number.")
    ] = "1",
    provider: Annotated[str, typer.Option(metavar="NAME,..", help=PROVIDER)] = "cpu",
    seconds: Annotated[float, typer.Option(min=0.01, help="Approximate time of measuring each size.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the timings as one JSON object.")] = False,
) -> None:
    """Measure every layer group and critic on this machine, for latency budgets and deadlines.

    The timings are stored beside the bundle, in BUNDLE.calibration.json (of a provider other than the CPU in
    BUNDLE.PROVIDER.calibration.json), where `predict` and `serve` read them. Run nothing else at the same time.
    --threads auto suits a device with one request at a time; a server computes each request on one thread, and
    calibrates by itself.

    Example: anytime-lct calibrate fashion.bundle
    """
    from rich.console import Console

    from anytime_lct.runtime.calibration import calibrate as measure
    from anytime_lct.runtime.calibration import fastest_threads
    from anytime_lct.runtime.session import AnytimeSession
    from anytime_lct.runtime.timings import expect_writable, save

    numbers = read_threads(threads)
    sessions = [AnytimeSession(bundle, number, calibrated=False, provider=provider.split(",")) for number in numbers]
    expect_writable(sessions[0].bundle)
    with Console(stderr=True, quiet=as_json).status("calibrating") as status:
        best = fastest_threads(sessions, seconds) if len(sessions) > 1 else numbers[0]
        session = sessions[numbers.index(best)]
        timings = measure(session, read_sizes(sizes), seconds, status.update)
    path = save(timings, session.bundle)
    if as_json:
        print_json(timings.model_dump_json())
    else:
        show(timings, session.served)
        typer.echo(f"Wrote {path}, on {session.provider}, with {best} thread{'s' * (best > 1)} per request.")


def read_threads(text: str) -> list[int]:
    """Read --threads: the number, or for auto the numbers to try, 1, 2, 4 .. up to the cores; raises BudgetError."""
    from anytime_lct.errors import BudgetError

    cores = os.cpu_count() or 1
    if text == "auto":
        return sorted({min(2**k, cores) for k in range(cores.bit_length() + 1)})
    if not text.isdecimal() or int(text) < 1:
        raise BudgetError(f"Expected a number of threads or auto, got '{text}'; 1 suits requests that overlap.")
    return [int(text)]


def read_sizes(text: str) -> list[int]:
    """Read batch sizes; raises BudgetError."""
    from anytime_lct.errors import BudgetError

    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise BudgetError(f"Expected sizes of batches with commas, like 1,4,16, got '{text}'; count from 1.")
    return sizes


def show(timings: Timings, served: tuple[int, ...]) -> None:
    """Print the time of every exit by batch size: the sum of its parts' medians, and of their 99% quantiles."""
    from anytime_lct.cli.screen import grid, screen
    from anytime_lct.exits.budget import show_seconds

    rows: list[list[str]] = []
    for size, times in timings.sizes.items():
        row = []
        for i in served:
            parts = [*times.groups[:i], *([times.critics[i]] if i in times.critics else [])]
            row.append(f"{show_seconds(sum(p.p50 for p in parts))} ({show_seconds(sum(p.p99 for p in parts))})")
        rows.append([str(size), *row])
    screen().print(grid(["batch", *(f"exit {i}" for i in served)], rows, title="median (99%)"))
