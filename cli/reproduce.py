"""`anytime-lct reproduce`: the paper's tables and figures, run and held against the paper."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer


def reproduce(
    name: Annotated[str, typer.Argument(help="Table or figure, such as table3; `list` names them all.")],
    scale: Annotated[
        str, typer.Option(help="small: for two CPU cores; paper: the paper's own setting, for a machine with GPUs.")
    ] = "small",
    seeds: Annotated[int, typer.Option(min=1, help="Run every row with so many seeds, from 0.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with runs that were begun and not finished.")] = False,
    data_root: Annotated[str, typer.Option(help="Folder that holds the data sets.")] = ".data",
    out: Annotated[Path, typer.Option(help="Folder for the report: Markdown, JSON and picture.")] = Path("reproduced"),
    runs: Annotated[
        Path | None, typer.Option(help="Folder of the run folders, shared by all experiments; default: OUT/runs.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side, each with its share of the cores.")] = 1,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Run only what matches, e.g. '*-lct-*-seed0'; may be repeated."),
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Train nothing: report on the runs that are done.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Repeat a table or figure of the paper: train what it needs, print the paper's figures beside ours.

    Every row is a run of `anytime-lct train`, kept in its run folder and shared between experiments. A row that was not
    run says so. Ctrl-C writes checkpoints; --resume goes on.

    Example: anytime-lct reproduce table3 --scale small --seeds 3 --jobs 2
    """
    import json

    from anytime_lct.errors import LCTError, RecipeError
    from anytime_lct.reproduce import catalogue, figures, pictures, runner
    from anytime_lct.reproduce import report as reports

    if name.lower() == "list":
        if as_json:
            typer.echo(json.dumps(catalogue.NAMES))
            return
        for key, title in catalogue.NAMES.items():
            typer.echo(f"{key:8}  {title}")
        return
    size: Literal["small", "paper"]
    if scale == "small" or scale == "paper":
        size = scale
    else:
        raise RecipeError(f"Expected --scale small or paper, got '{scale}'.")
    experiment = catalogue.experiment(name.lower(), size)
    laid_out = runner.jobs(experiment.runs, seeds, runs or out / "runs", data_root)
    if only and not any(_wanted(job.name, only) for job in laid_out):
        names = ", ".join(dict.fromkeys(job.run.name for job in laid_out))
        raise RecipeError(f"Expected in --only a pattern of runs of {name}, got none that matches; they are {names}.")
    stem = f"{experiment.name}_{size}"
    known, whole, before = reports.known(out / f"{stem}.json", experiment, laid_out)
    failed: dict[str, str] = {}
    if experiment.kind != "complexity" and not report:
        todo = [job for job in laid_out if _wanted(job.name, only) and job.name not in whole and job.state() != "done"]
        todo = runner.with_starts(todo)
        if not resume:
            runner.expect_unbegun(todo)
        threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // jobs))
        typer.echo(f"{len(laid_out)} runs, {len(todo)} of them to do.", err=True)
        try:
            failed = runner.work(todo, jobs, threads, lambda line: typer.echo(line, err=True))
        except KeyboardInterrupt:
            typer.echo(
                "Stopped; what was under way has its checkpoints. Go on with the same command and --resume.", err=True
            )
            raise
    found = figures.figures(experiment, laid_out, failed, known)
    text = reports.markdown(experiment, size, found, seeds)
    summary = reports.as_json(experiment, size, found, laid_out, seeds, before)
    written = [*reports.write(out, stem, text, summary), pictures.draw(experiment, found, out / f"{stem}.png")]
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        typer.echo(text)
        typer.echo(f"Wrote {', '.join(str(path) for path in written)}.")
    if failed:
        first = next(iter(failed))
        raise LCTError(
            f"{len(failed)} of the runs failed, first {first}: {failed[first]} The log beside its run folder says more."
        )


def _wanted(name: str, patterns: list[str] | None) -> bool:
    from fnmatch import fnmatch

    return not patterns or any(fnmatch(name, pattern) for pattern in patterns)
