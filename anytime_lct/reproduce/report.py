"""What an experiment came to: a Markdown table with the paper's figures beside ours, and the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anytime_lct import disk
from anytime_lct.errors import CheckpointError, RecipeError
from anytime_lct.recipes import reading as recipes
from anytime_lct.recipes.recipe import Recipe
from anytime_lct.reproduce.figures import Figure, Known
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
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return everything there is to say: figures, recipes of the runs, and the machines that they ran on.

    Recipes and machines of the report `before` are kept, since its figures are.
    """
    before = before or {}
    done = [job for job in jobs if experiment.kind != "complexity" and job.state() == "done"]
    return {
        "command": f"anytime-lct reproduce {experiment.name} --scale {scale} --seeds {seeds}",
        "experiment": experiment.name,
        "title": experiment.title,
        "scale": scale,
        "unit": experiment.unit,
        "differs": list(experiment.differs),
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
        "recipes": {**before.get("recipes", {}), **{job.run.name: _recipe(job) for job in done}},
        "environments": _environments(done, before.get("environments", [])),
    }


def known(path: Path, experiment: Experiment, jobs: Sequence[SeededRun]) -> tuple[Known, set[str], dict[str, Any]]:
    """Return what an earlier report at `path` has of these runs, by the same recipes: figures, jobs, and the report.

    A job is known when all its cells are. Nothing is known where there is no such report, or none that can be read.
    """
    before = next(iter(_object(path)), {})
    figures: dict[tuple[str, str], dict[int, tuple[float, dict[str, Any]]]] = {}
    then = {name: _completed(tables) for name, tables in before.get("recipes", {}).items()}

    def is_same(job: SeededRun) -> bool:  # what it starts from included
        return then.get(job.run.name) == _recipe(job) and (job.after is None or is_same(job.after))

    same = {job.run.name for job in jobs if is_same(job)}
    for figure in before.get("figures", []):
        if figure["run"] in same:
            entries = zip(figure["seeds"], figure["values"], figure["detail"], strict=True)
            figures[figure["row"], figure["column"]] = {seed: (value, detail) for seed, value, detail in entries}
    whole = {
        job.name
        for job in jobs
        if job.run.name in same
        and all(job.seed in figures.get((c.row, c.column), {}) for c in experiment.cells if c.run == job.run.name)
    }
    return figures, whole, {**before, "recipes": {name: before["recipes"][name] for name in same}}


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
        shown = [show(cells[row, column], experiment) if (row, column) in cells else "" for column in columns]
        text.append(f"| {row} | " + " | ".join(shown) + " |")
    text += ["", "What differs from the paper's setting:", "", *(f"- {line}" for line in experiment.differs), ""]
    text += [f"Made by `anytime-lct reproduce {experiment.name} --scale {scale} --seeds {seeds}`.", ""]
    return "\n".join(text)


def show(figure: Figure, experiment: Experiment) -> str:
    """Write a cell: ours, then the paper's."""
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
    if experiment.kind == "descent":
        ours += _descent(figure)
    if experiment.kind == "complexity":
        ours += f", {figure.detail[0]['flops'] / 1e6:.1f}M multiply-adds"
    return ours + paper


def _descent(figure: Figure) -> str:
    """Say more of the first seed's measurements: the median, when sigma was not positive, what they cost."""
    told = figure.detail[0]
    odd = [str(step) for step in told["not_positive"]]
    when = f"never <= 0 in {told['measurements']} measurements"
    if odd:
        when = f"<= 0 at {len(odd)} of {told['measurements']}, minibatch {', '.join(odd[:6])}{' ..' * (len(odd) > 6)}"
    cost = f"{100 * told['share_of_training']:.1f}% of training time"
    return f" (median {told['median_sigma']:.2f}, cosine {told['median_cosine']:.2f}; {when}; {cost})"


def write(folder: Path, name: str, text: str, found: dict[str, Any]) -> tuple[Path, Path]:
    """Write NAME.md and NAME.json, each whole or not at all; raises CheckpointError where the disk refuses."""
    remedy = "choose another --out"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"Could not make the folder '{folder}': {error.strerror or error}; {remedy}.") from None
    page, data = folder / f"{name}.md", folder / f"{name}.json"
    disk.write(page, text, CheckpointError, remedy)
    disk.write(data, json.dumps(found, indent=1) + "\n", CheckpointError, remedy)
    return page, data


def _recipe(job: SeededRun) -> dict[str, Any]:
    return _seedless(job.recipe)


def _completed(tables: dict[str, Any]) -> dict[str, Any]:
    """Complete a recipe of an earlier report, which may not know every key of today; {} where it is none any more."""
    if tables.get("train", {}).get("method") == "posthoc":  # which needs weights, and a report does not say whose
        tables = {**tables, "train": {**tables["train"], "weights": "elsewhere"}}
    try:
        return _seedless(recipes.complete(tables))
    except RecipeError:
        return {}


def _seedless(recipe: Recipe) -> dict[str, Any]:
    """Return what the results of a run depend on, whatever its seed."""
    tables = comparable(recipe)
    return {table: {key: v for key, v in keys.items() if key != "seed"} for table, keys in tables.items()}


def _environments(jobs: Sequence[SeededRun], before: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    found = list(before)
    for job in jobs:
        for environment in _object(job.folder / run_folder.ENVIRONMENT):
            if environment not in found:
                found.append(environment)
    return found


def _object(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError):
        return []
