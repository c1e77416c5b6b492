"""Search settings of a recipe: many runs, by Optuna, whose study lies beside them, so that the same call goes on.

FOLDER/trial_001 ..     the runs, each a run folder
FOLDER/study.jsonl      Optuna's journal
FOLDER/sweep.json       what was asked: the recipe, the keys with their values, the objective
FOLDER/best.toml        the recipe of the best trial
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anytime_lct import disk
from anytime_lct.data.augment import mix
from anytime_lct.errors import DivergenceError, RecipeError
from anytime_lct.exits.tasks import Metric
from anytime_lct.recipes import reading
from anytime_lct.recipes.recipe import Recipe
from anytime_lct.recipes.spaces import Space, read_space
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder import journal
from anytime_lct.training.events import Epoch, Event, Start
from anytime_lct.verbs.train import train

if TYPE_CHECKING:
    from optuna import Study

STUDY, SWEEP, BEST = "study.jsonl", "sweep.json", "best.toml"
OBJECTIVES = "main, exit:N or area"


@dataclass(frozen=True)
class Trial:
    """A trial, from 1: its settings, its run folder, and its value by the objective, None where it diverged."""

    number: int
    settings: dict[str, Any]
    run: Path
    value: float | None


@dataclass(frozen=True)
class SweepResult:
    """All trials of a sweep, in order, the best of them, None where all diverged, and the metric that judges them."""

    trials: tuple[Trial, ...]
    best: Trial | None
    metric: str
    recipe: Path


# Called with the number of a trial, its settings, and its events; at its end with the trial itself.
Report = Callable[[int, dict[str, Any], Event | Trial], object]


def sweep(
    recipe: Recipe,
    spaces: Sequence[str],
    folder: Path | str,
    *,
    trials: int = 20,
    objective: str = "main",
    report: Report | None = None,
) -> SweepResult:
    """Train `trials` runs with settings drawn from `spaces`, in all, those of earlier calls included.

    The settings of a trial follow from the recipe's seed and the trials before it (Optuna's TPE). The best is that of
    the best validation metric of the main network, of exit:N, or with area of the area under the accuracy of the best
    exit within a budget, over budgets of multiply-adds up to the main network's. A trial that was interrupted is
    resumed first; one that diverges counts without a value. Raises RecipeError, DataError and CheckpointError.

    >>> sweep(complete({}), ["critics.lr=log:1e-4..1e-1"], "runs/sweep").best.settings     # doctest: +SKIP
    {'critics.lr': 0.012}
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path, axes = Path(folder), [read_space(text) for text in spaces]
    _expect_settings(recipe, axes, trials, objective)
    _expect_same(path, recipe, spaces, objective)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(path / STUDY))), study_name="sweep", direction="maximize",
            load_if_exists=True,
        )  # fmt: skip
    except (ValueError, LookupError):
        raise _damaged(path / STUDY) from None
    for open_trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        _finish(study, recipe, axes, open_trial.number, open_trial.params, path, objective, report)
    while (number := len(study.get_trials(deepcopy=False))) < trials:
        study.sampler = optuna.samplers.TPESampler(seed=mix(recipe.train.seed, number) % 2**32)
        drawn = study.ask(_distributions(axes))
        _finish(study, recipe, axes, drawn.number, drawn.params, path, objective, report)
    return _result(study, recipe, axes, path)


def _finish(
    study: Study,
    recipe: Recipe,
    axes: Sequence[Space],
    number: int,
    drawn: dict[str, Any],
    path: Path,
    objective: str,
    report: Report | None,
) -> None:
    """Train or resume a trial, and tell the study its value."""
    from optuna.trial import TrialState

    settings, run = _settings(axes, drawn), _run(path, number)
    costs: tuple[int, ...] = ()

    def watch(event: Event) -> None:
        nonlocal costs
        if isinstance(event, Start):
            costs = event.costs
            _expect_objective(objective, len(costs) or 1, event.facts.row.metric)
        if report is not None:
            report(number + 1, settings, event)

    value = None
    try:
        train(_with(recipe, settings), run, resume=(run / run_folder.RECIPE).exists(), report=watch)
        metric = run_folder.read(run)[1].row.metric
        value = _value(_kept(run, recipe.train.keep == "best", metric), costs, metric, objective)
    except DivergenceError:
        pass
    study.tell(number, value, state=TrialState.FAIL if value is None else None)
    if report is not None:
        shown = None if value is None else metric.merit(value)
        report(number + 1, settings, Trial(number + 1, settings, run, shown))


def _kept(run: Path, best: bool, metric: Metric) -> tuple[float, ...]:
    """Return the validation metric of every exit in the epoch whose weights the run keeps; raises RecipeError."""
    epochs = [Epoch.from_json(line).scores for line in journal.read(run / run_folder.METRICS)]
    if not epochs or not epochs[-1]:
        raise RecipeError("Expected a validation split, on which trials are compared, got none; set data.validation.")
    return max(epochs, key=lambda scores: metric.merit(scores[-1])) if best else epochs[-1]


def _value(scores: Sequence[float], costs: Sequence[int], metric: Metric, objective: str) -> float:
    """Return how good a trial is, higher is better."""
    if objective == "area":
        return area(scores, costs)
    return metric.merit(scores[-1 if objective == "main" else int(objective.removeprefix("exit:")) - 1])


def _expect_objective(objective: str, exits: int, metric: Metric) -> None:
    """Raise RecipeError where a trial has not what the objective names."""
    if objective == "area" and not metric.rises:
        raise RecipeError(
            f"Expected a network that classifies for the objective area, got one judged by {metric.name}; choose main "
            f"or exit:N."
        )
    if objective.startswith("exit:") and int(objective[5:]) > exits:
        raise RecipeError(f"Expected an exit up to {exits} as the objective, got {objective[5:]}; name another.")


def area(scores: Sequence[float], costs: Sequence[int]) -> float:
    """Return the mean, over budgets up to the main network's cost, of the best score within the budget, 0 without one.

    >>> area((0.5, 0.4, 1.0), (20, 50, 100))
    0.4
    """
    if len(costs) < 2:
        return 0.0 if costs else scores[-1]
    steps = sorted((cost, score) for cost, score in zip(costs, scores, strict=True) if cost <= costs[-1])
    total, best = 0.0, 0.0
    for (cost, score), (next_cost, _) in pairwise([*steps, (costs[-1], 0.0)]):
        best = max(best, score)
        total += best * (next_cost - cost)
    return total / costs[-1]


def _distributions(axes: Sequence[Space]) -> dict[str, Any]:
    from optuna import distributions

    return {
        axis.key: distributions.CategoricalDistribution(axis.choices)
        if axis.kind == "choice"
        else distributions.IntDistribution(int(axis.low), int(axis.high))
        if axis.kind == "whole"
        else distributions.FloatDistribution(axis.low, axis.high, log=axis.kind == "log")
        for axis in axes
    }


def _settings(axes: Sequence[Space], drawn: dict[str, Any]) -> dict[str, Any]:
    return {axis.key: axis.value(drawn[axis.key]) for axis in axes}


def _with(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    """Return the recipe with some settings; raises RecipeError."""
    tables = recipe.model_dump(mode="json", exclude_none=True)
    for key, value in settings.items():
        table, _, entry = key.partition(".")
        tables.setdefault(table, {})[entry] = value
    return reading.complete(tables)


def _run(path: Path, number: int) -> Path:
    return path / f"trial_{number + 1:03d}"


def _expect_settings(recipe: Recipe, axes: Sequence[Space], trials: int, objective: str) -> None:
    """Raise RecipeError for what would fail in the first trial, or in a later one."""
    if objective not in ("main", "area") and not (
        objective.startswith("exit:") and objective[5:].isdecimal() and int(objective[5:]) > 0
    ):
        raise RecipeError(f"Expected the objective {OBJECTIVES}, got '{objective}'; name one of them.")
    if trials < 1:
        raise RecipeError(f"Expected at least one trial, got {trials}; give another number.")
    keys = [axis.key for axis in axes]
    if not keys or len(set(keys)) < len(keys):
        raise RecipeError(
            f"Expected one or more keys to vary, each once, got {', '.join(keys) or 'none'}; correct them."
        )
    for axis in axes:
        ends = axis.choices or ((int(axis.low), int(axis.high)) if axis.kind == "whole" else (axis.low, axis.high))
        for end in ends:
            _with(recipe, {axis.key: axis.value(end)})


def _expect_same(path: Path, recipe: Recipe, spaces: Sequence[str], objective: str) -> None:
    """Write down what a new sweep is asked; raise RecipeError where a folder's sweep was asked something else."""
    asked = {"recipe": recipe.model_dump(mode="json"), "spaces": list(spaces), "objective": objective}
    file = path / SWEEP
    if not file.exists():
        path.mkdir(parents=True, exist_ok=True)
        disk.write(file, json.dumps(asked, indent=1) + "\n", RecipeError)
        return
    try:
        earlier = dict[str, Any](json.loads(disk.read_text(file, RecipeError, "choose another folder")))
    except (ValueError, TypeError):
        raise _damaged(file) from None
    for name, value in asked.items():
        if earlier.get(name) != value:
            raise RecipeError(
                f"Expected the {name} of the sweep in '{path}', to go on with it, got another one; give the same, or "
                f"another --run-dir."
            )


def _damaged(file: Path) -> RecipeError:
    return RecipeError(f"Expected what a sweep wrote in '{file}', got a damaged file; choose another --run-dir.")


def _result(study: Study, recipe: Recipe, axes: Sequence[Space], path: Path) -> SweepResult:
    """Write the recipe of the best trial, and return all trials."""
    metric = run_folder.read(_run(path, 0))[1].row.metric
    trials = tuple(
        Trial(
            each.number + 1,
            _settings(axes, each.params),
            _run(path, each.number),
            None if each.value is None else metric.merit(each.value),
        )
        for each in study.get_trials(deepcopy=False)
    )
    judged = [trial for trial in trials if trial.value is not None]
    best = max(judged, key=lambda trial: metric.merit(trial.value or 0.0), default=None)
    if best is not None:
        reading.write(_with(recipe, best.settings), path / BEST)
    return SweepResult(trials, best, metric.name, path / BEST)


def as_json(result: SweepResult) -> str:
    """Return a result as one JSON object."""
    return json.dumps(asdict(result), default=str)
