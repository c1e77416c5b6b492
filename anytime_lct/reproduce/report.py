"""The report of an experiment: a Markdown table with the paper's figures beside ours, and the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anytime_lct import disk
from anytime_lct.errors import CheckpointError, RecipeError
from anytime_lct.recipes import reading
from anytime_lct.recipes.recipe import Recipe
from anytime_lct.reproduce.figures import Figure, KnownValues
from anytime_lct.reproduce.plan import Experiment, Scale
from anytime_lct.reproduce.runner import SeededRun, comparable
from anytime_lct.run_folder import folder as run_folder

NOT_YET = "not yet run"


def as_json(
    experiment: Experiment,
    scale: Scale,
    figures: Sequence[Figure],
    jobs: Sequence[SeededRun],
    seeds: int,
    earlier: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the whole report: figures, recipes of the runs, and the machines that they ran on.

    It includes the recipes and machines of the report `earlier`, as it has its figures.
    """
    earlier = earlier or {}
    done = [job for job in jobs if experiment.kind != "complexity" and job.state() == "done"]
    return {
        "command": f"anytime-lct reproduce {experiment.name} --scale {scale} --seeds {seeds}",
        "experiment": experiment.name,
        "title": experiment.title,
        "scale": scale,
        "unit": experiment.unit,
        "differs": list(experiment.differences),
        "figures": [
            {
                "row": figure.cell.row,
                "column": figure.cell.column,
                "paper": figure.cell.paper,
                "mean": figure.mean,
                "deviation": figure.deviation,
                "values": list(figure.values),
                "seeds": list(figure.seeds),
                "run": figure.cell.run,
                **({"failed": figure.failed} if figure.failed else {}),
                "detail": list(figure.detail),
            }
            for figure in figures
        ],
        "recipes": {**earlier.get("recipes", {}), **{job.run.name: _recipe(job) for job in done}},
        "environments": _environments(done, earlier.get("environments", [])),
    }


def read_earlier(
    path: Path, experiment: Experiment, jobs: Sequence[SeededRun]
) -> tuple[KnownValues, set[str], dict[str, Any]]:
    """Read the earlier report at `path`: figures of runs with the same recipes, names of complete jobs, the report.

    A job is complete if all its cells have figures. All are empty if there is no report, or it cannot be read.
    """
    earlier = next(iter(_read_objects(path)), {})
    figures: dict[tuple[str, str], dict[int, tuple[float, dict[str, Any]]]] = {}
    earlier_recipes = {name: _completed(tables) for name, tables in earlier.get("recipes", {}).items()}

    def is_same(job: SeededRun) -> bool:  # and so is the run that it starts from
        return earlier_recipes.get(job.run.name) == _recipe(job) and (job.after is None or is_same(job.after))

    same_runs = {job.run.name for job in jobs if is_same(job)}
    for figure in earlier.get("figures", []):
        if figure["run"] in same_runs:
            entries = zip(figure["seeds"], figure["values"], figure["detail"], strict=True)
            figures[figure["row"], figure["column"]] = {seed: (value, detail) for seed, value, detail in entries}
    complete = {
        job.name
        for job in jobs
        if job.run.name in same_runs
        and all(job.seed in figures.get((c.row, c.column), {}) for c in experiment.cells if c.run == job.run.name)
    }
    recipes = {name: tables for name, tables in earlier.get("recipes", {}).items() if name in same_runs}
    return figures, complete, {**earlier, "recipes": recipes}


def markdown(experiment: Experiment, scale: Scale, figures: Sequence[Figure], seeds: int) -> str:
    """Return the report as Markdown: rows and columns as in the paper, `ours (paper)` in every cell."""
    rows = list(dict.fromkeys(figure.cell.row for figure in figures))
    columns = list(dict.fromkeys(figure.cell.column for figure in figures))
    cells = {(figure.cell.row, figure.cell.column): figure for figure in figures}
    text = [
        f"# {experiment.name}: {experiment.title}",
        "",
        f"Scale {scale}; {experiment.unit}; mean ± standard deviation over seeds (their number as n where more than "
        "one), the paper's figure in parentheses.",
        "",
        "| | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for row in rows:
        row_cells = [show_cell(cells[row, column], experiment) if (row, column) in cells else "" for column in columns]
        text.append(f"| {row} | " + " | ".join(row_cells) + " |")
    text += ["", "What differs from the paper's setting:", "", *(f"- {line}" for line in experiment.differences), ""]
    text += [f"Made by `anytime-lct reproduce {experiment.name} --scale {scale} --seeds {seeds}`.", ""]
    return "\n".join(text)


def show_cell(figure: Figure, experiment: Experiment) -> str:
    """Format a cell: our figure, then the paper's."""
    digits = 2
    if experiment.kind == "memory":
        digits = 0
    elif "BPC" in experiment.unit and (figure.mean or 99) < 10:
        digits = 3
    paper = "" if figure.cell.paper is None else f" ({figure.cell.paper:.{digits}f})"
    if figure.mean is None:
        return (f"failed: {figure.failed}" if figure.failed else NOT_YET) + paper
    ours = f"{figure.mean:.{digits}f}"
    if figure.deviation is not None:
        ours += f" ± {figure.deviation:.{digits}f} (n = {len(figure.values)})"
    if experiment.kind == "exits":
        ours += f" at {figure.detail[0]['flops'] / 1e6:.1f}M"
    if experiment.kind == "descent":
        ours += _descent(figure)
    if experiment.kind == "complexity":
        ours += f", {figure.detail[0]['flops'] / 1e6:.1f}M multiply-adds"
    return ours + paper


def _descent(figure: Figure) -> str:
    """Format the first seed's measurements: medians, the steps where sigma was not positive, and the cost."""
    detail = figure.detail[0]
    steps = [str(step) for step in detail["not_positive"]]
    signs = f"never <= 0 in {detail['measurements']} measurements"
    if steps:
        minibatches = f"{', '.join(steps[:6])}{' ..' * (len(steps) > 6)}"
        signs = f"<= 0 at {len(steps)} of {detail['measurements']}, minibatch {minibatches}"
    cost = f"{100 * detail['share_of_training']:.1f}% of training time"
    return f" (median {detail['median_sigma']:.2f}, cosine {detail['median_cosine']:.2f}; {signs}; {cost})"


def write(folder: Path, name: str, text: str, summary: dict[str, Any]) -> tuple[Path, Path]:
    """Write NAME.md and NAME.json, each whole or not at all; raises CheckpointError if that fails."""
    remedy = "choose another --out"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"Could not make the folder '{folder}': {error.strerror or error}; {remedy}.") from None
    page, data = folder / f"{name}.md", folder / f"{name}.json"
    disk.write(page, text, CheckpointError, remedy)
    disk.write(data, json.dumps(summary, indent=1) + "\n", CheckpointError, remedy)
    return page, data


def _recipe(job: SeededRun) -> dict[str, Any]:
    return _seedless(job.recipe)


def _completed(tables: dict[str, Any]) -> dict[str, Any]:
    """Complete a recipe of an earlier report, which may lack new keys; {} if it is no longer valid."""
    if tables.get("train", {}).get("method") == "posthoc":  # which requires weights, and a report has no paths
        tables = {**tables, "train": {**tables["train"], "weights": "elsewhere"}}
    try:
        return _seedless(reading.complete(tables))
    except RecipeError:
        return {}


def _seedless(recipe: Recipe) -> dict[str, Any]:
    """Return the keys that the results of a run depend on, without the seed."""
    tables = comparable(recipe)
    return {table: {key: v for key, v in keys.items() if key != "seed"} for table, keys in tables.items()}


def _environments(jobs: Sequence[SeededRun], earlier: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    environments = list(earlier)
    for job in jobs:
        for environment in _read_objects(job.folder / run_folder.ENVIRONMENT):
            if environment not in environments:
                environments.append(environment)
    return environments


def _read_objects(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError):
        return []
