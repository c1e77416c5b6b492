"""`anytime-lct train --sweep`: the progress of the trials, and their table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from anytime_lct.cli.screen import print_json

if TYPE_CHECKING:
    from anytime_lct.recipes.recipe import Recipe
    from anytime_lct.training.events import Event
    from anytime_lct.verbs.sweep import SweepResult, Trial

SHOWN = 10  # trials of the table, the best first


def sweep_runs(
    recipe: Recipe, spaces: list[str], folder: Path, *, trials: int, objective: str, as_json: bool = False
) -> None:
    """Sweep, with a bar for the trial in progress and a line for each that is finished, and print the best ones."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from anytime_lct.cli.screen import screen
    from anytime_lct.errors import StoppedError
    from anytime_lct.training.events import Progress as Within
    from anytime_lct.training.memory import keep_freed_memory
    from anytime_lct.verbs import sweep
    from anytime_lct.verbs.sweep import Trial as Finished
    from anytime_lct.verbs.sweep import as_json as written

    keep_freed_memory()
    console = screen(stderr=True, quiet=as_json)
    columns = (TextColumn("trial {task.fields[trial]}"), BarColumn(bar_width=24), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=as_json or not console.is_terminal) as bar:
        task = bar.add_task("sweep", total=None, trial=f"-/{trials}")

        def report(number: int, settings: dict[str, Any], event: Event | Trial) -> None:
            if isinstance(event, Within):
                total, done = event.epochs * event.batches, (event.epoch - 1) * event.batches + event.batch
                bar.update(task, total=total, completed=done, trial=f"{number}/{trials}  {_listed(settings)}")
            elif isinstance(event, Finished):
                value = "diverged" if event.value is None else f"{objective} {event.value:.4g}"
                line = f"trial {number}/{trials}  {_listed(settings)}  {value}"
                console.print(line, highlight=False, markup=False, soft_wrap=True)

        try:
            result = sweep(recipe, spaces, folder, trials=trials, objective=objective, report=report)
        except KeyboardInterrupt:
            raise StoppedError(f"Stopped; the same command goes on with the sweep in {folder}.") from None
    if as_json:
        print_json(written(result))
        return
    _show(result, objective)


def _show(result: SweepResult, objective: str) -> None:
    from anytime_lct.cli.screen import grid, screen
    from anytime_lct.exits.tasks import METRICS

    metric = next(metric for metric in METRICS.values() if metric.name == result.metric)
    judged = [each for each in result.trials if each.value is not None]
    ranked = sorted(judged, key=lambda each: -metric.merit(each.value or 0.0))
    rows = [
        [str(each.number), *map(_text, each.settings.values()), metric.show(each.value or 0.0)]
        for each in ranked[:SHOWN]
    ]
    heading = f"area under {metric.name}" if objective == "area" else f"{metric.name} of {objective.replace(':', ' ')}"
    columns = ("trial", *result.trials[0].settings, f"validation {heading}")
    screen().print(grid(columns, rows, title=f"The best of {len(result.trials)} trials"))
    if result.best is None:
        typer.echo("No trial ended with a finite loss; lower the rates that the sweep begins with.")
        return
    typer.echo(
        f"The best is trial {result.best.number}, in {result.best.run}; its settings are in {result.recipe}. Next: "
        f"anytime-lct analyze {result.best.run}, or train with --recipe {result.recipe}"
    )


def _listed(settings: dict[str, Any]) -> str:
    return " ".join(f"{key}={_text(value)}" for key, value in settings.items())


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
