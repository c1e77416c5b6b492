"""`anytime-lct reproduce`: run the paper's tables and figures, and compare with the paper."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from anytime_lct.cli.screen import print_json


def reproduce(
    name: Annotated[str, typer.Argument(help="Table or figure, such as table3; `list` names them all.")],
    scale: Annotated[
        str, typer.Option(help="small: for two CPU cores; paper: the paper's own setting, for a machine with GPUs.")
    ] = "small",
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds of every row, from 0.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Continue runs that are not finished.")] = False,
    data_root: Annotated[str, typer.Option(help="Folder that holds the data sets.")] = ".data",
    out: Annotated[Path, typer.Option(help="Folder for the report: Markdown, JSON and picture.")] = Path("reproduced"),
    runs: Annotated[
        Path | None, typer.Option(help="Folder of the run folders, shared by all experiments; default: OUT/runs.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once, each with its share of the cores.")] = 1,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Only runs that match, e.g. '*-lct-*-seed0'; may be repeated."),
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Do not train; report the runs that are done.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Reproduce a table or figure of the paper: train its runs, print the paper's figures beside ours.

    Every row is a run of `anytime-lct train` in its own run folder, shared between experiments. A row without a run is
    marked "not yet run". Ctrl-C writes checkpoints; --resume continues.

    Example: anytime-lct reproduce table3 --scale small --seeds 3 --jobs 2
    """
    import json

    from anytime_lct.errors import LCTError, RecipeError, StoppedError
    from anytime_lct.reproduce import catalogue, figures, pages, pictures, runner
    from anytime_lct.reproduce import report as reports

    if name.lower() == "list":
        if as_json:
            print_json(json.dumps(catalogue.TITLES))
            return
        for key, title in catalogue.TITLES.items():
            typer.echo(f"{key:8}  {title}")
        return
    size: Literal["small", "paper"]
    if scale == "small" or scale == "paper":
        size = scale
    else:
        raise RecipeError(f"Expected --scale small or paper, got '{scale}'.")
    experiment = catalogue.experiment(name.lower(), size)
    all_jobs = runner.jobs(experiment.runs, seeds, runs or out / "runs", data_root)
    if only and not any(_matches(job.name, only) for job in all_jobs):
        names = ", ".join(dict.fromkeys(job.run.name for job in all_jobs))
        raise RecipeError(f"Expected in --only a pattern of runs of {name}, got none that matches; they are {names}.")
    stem = f"{experiment.name}_{size}"
    known, complete, earlier = reports.read_earlier(out / f"{stem}.json", experiment, all_jobs)
    failed: dict[str, str] = {}
    if experiment.kind != "complexity" and not report:
        todo = [
            job for job in all_jobs if _matches(job.name, only) and job.name not in complete and job.state() != "done"
        ]
        todo = runner.with_predecessors(todo)
        if not resume:
            runner.expect_none_unfinished(todo)
        threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // jobs))
        typer.echo(f"{len(all_jobs)} runs, {len(todo)} of them to do.", err=True)
        try:
            failed = runner.run_jobs(todo, jobs, threads, lambda line: typer.echo(line, err=True))
        except KeyboardInterrupt:
            raise StoppedError(
                "Stopped; unfinished runs have checkpoints. Continue with the same command and --resume."
            ) from None
    filled = figures.figures(experiment, all_jobs, failed, known)
    text = reports.markdown(experiment, size, filled, seeds)
    summary = reports.as_json(experiment, size, filled, all_jobs, seeds, earlier)
    paths = reports.write(out, stem, text, summary)  # which makes the folder
    picture = pictures.draw(experiment, filled, out / f"{stem}.png")
    page = pages.write(out / f"{stem}.html", experiment, size, filled, seeds, picture)
    paths = [*paths, picture, page]
    if as_json:
        print_json(json.dumps(summary))
    else:
        typer.echo(text)
        typer.echo(f"Wrote {', '.join(str(path) for path in paths)}.")
    if failed:
        first = next(iter(failed))
        raise LCTError(
            f"{len(failed)} of the runs failed, first {first}: {failed[first]} See the log beside its run folder."
        )


def _matches(name: str, patterns: list[str] | None) -> bool:
    from fnmatch import fnmatch

    return not patterns or any(fnmatch(name, pattern) for pattern in patterns)
