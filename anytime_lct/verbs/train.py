"""Train into a run folder, in this process or in several that it starts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from anytime_lct.data import datasets
from anytime_lct.errors import CheckpointError, PartitionError
from anytime_lct.recipes import reading
from anytime_lct.recipes.recipe import Recipe
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder import journal, start
from anytime_lct.training import run
from anytime_lct.training.events import Epoch, Event
from anytime_lct.training.methods.table import checked, expect_processes
from anytime_lct.training.prepare import device_of
from anytime_lct.training.processes import team as teams
from anytime_lct.training.processes.launch import launch


def train(
    recipe: Recipe | Path | str | None,
    run_dir: Path | str,
    *,
    resume: bool = False,
    workers: int = 1,
    replicas: int = 1,
    max_restarts: int = 0,
    report: Callable[[Event], object] | None = None,
) -> Epoch | None:
    """Train in a new run folder, or with `resume` go on in one; return the last epoch, None where nothing was left.

    `recipe` is one, a TOML file, or the name of a shipped recipe; None has the defaults, and with `resume` the run's
    own. With `workers` and `replicas`, processes on this machine share the layer groups and every minibatch; they show
    their progress as the command does, and a run that lost one is started again up to `max_restarts` times. Otherwise
    `report` is called with every event. Raises RecipeError, DataError, CheckpointError, DivergenceError and
    WorkerLostError.

    >>> recipe = reading.complete({"data": {"name": "cifar10"}, "train": {"epochs": 10}})
    >>> train(recipe, "runs/cifar", report=print).scores                               # doctest: +SKIP
    (0.71, 0.78, 0.81, 0.82)
    """
    path = Path(run_dir)
    if resume:
        recipe = run_folder.read(path)[0]
    elif not isinstance(recipe, Recipe):
        recipe = reading.read(recipe)
    chosen = prepared(recipe, (workers, replicas), resume=resume)
    if starts_processes(workers, replicas):
        launch_workers(chosen, path, (workers, replicas), max_restarts, resume=resume)
        lines = journal.read(path / run_folder.METRICS)
        return Epoch.from_json(lines[-1]) if lines else None
    team = None
    if workers * replicas > 1:
        team = teams.join(workers, replicas, device_of(chosen.train.device), chosen.train.wire)
    if team is None or (team.leads and not team.restarted):
        _expect_room(path, resume)
    last: Epoch | None = None
    for event in run.train(chosen, datasets.from_recipe(chosen), path, resume=resume, team=team):
        if report is not None:
            report(event)
        last = event if isinstance(event, Epoch) else last
    return last


def prepared(recipe: Recipe, size: tuple[int, int], *, resume: bool = False) -> Recipe:
    """Return a recipe as it is trained by, by so many workers and replicas; raises RecipeError and DataError."""
    recipe = checked(recipe if resume else start.with_statistics(recipe))
    expect_processes(recipe, *size)
    datasets.expect_known(recipe.data.name)
    return recipe


def starts_processes(workers: int, replicas: int) -> bool:
    """Whether `train` starts processes for so many, and is not one of them itself (as under torchrun)."""
    return workers * replicas > 1 and not teams.started()


def launch_workers(
    recipe: Recipe,
    path: Path,
    size: tuple[int, int],
    max_restarts: int = 0,
    *,
    resume: bool = False,
    options: Sequence[str] = (),
) -> None:
    """Check what can be checked beforehand, then run `anytime-lct train` with these `options` in every process."""
    workers, replicas = size
    if workers > recipe.cut.groups:
        raise PartitionError(
            f"Expected at most as many workers as layer groups, {recipe.cut.groups}, got {workers}; lower --workers or "
            f"raise --groups."
        )
    _expect_room(path, resume)
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / "recipe.toml"
        reading.write(recipe, written)
        given = ["--resume"] if resume else ["--recipe", str(written)]
        given += ["--run-dir", str(path), "--workers", str(workers), "--replicas", str(replicas)]
        launch(["train", *given, *options], workers, replicas, max_restarts)


def _expect_room(path: Path, resume: bool) -> None:
    if not resume and (path / run_folder.RECIPE).exists():
        raise CheckpointError(
            f"The folder '{path}' holds a run already; go on with it by --resume --run-dir {path}, or choose another "
            f"--run-dir."
        )
