"""Train into a run folder, in this process or in several that this one starts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from anytime_lct.data import datasets
from anytime_lct.data.folders import among_images
from anytime_lct.data.locations import root_of
from anytime_lct.errors import CheckpointError, PartitionError
from anytime_lct.recipes import reading
from anytime_lct.recipes.recipe import DEFAULT_GROUPS, Recipe
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder import journal, start
from anytime_lct.run_folder.paths import UNCHANGED, Changes
from anytime_lct.training import run
from anytime_lct.training.events import Epoch, Event
from anytime_lct.training.logs import expect_installed
from anytime_lct.training.methods.table import checked, expect_processes
from anytime_lct.training.prepare import device_of
from anytime_lct.training.processes.launch import launch
from anytime_lct.training.processes.team import in_team, join_team
from anytime_lct.verbs.trial import with_trial


def train(
    recipe: Recipe | Path | str | None,
    run_dir: Path | str,
    *,
    resume: bool = False,
    changes: Changes = UNCHANGED,
    workers: int = 1,
    replicas: int = 1,
    max_restarts: int = 0,
    report: Callable[[Event], object] | None = None,
) -> Epoch | None:
    """Train in a new run folder, or resume a run; return the last epoch, None where the run was complete.

    `recipe` is a Recipe, a TOML file, or the name of a shipped recipe; None means the defaults. With `resume` it is not
    read: a run has its own recipe, and `changes` are more epochs, or where its data and network are now. With `workers`
    and `replicas`, processes on this machine share the layer groups and every minibatch; they show their progress like
    the command, and a run that lost one is started again up to `max_restarts` times. In a single process `report` is
    called with every event. Raises RecipeError, DataError, CheckpointError, DivergenceError and WorkerLostError.

    >>> recipe = reading.complete({"data": {"name": "cifar10"}, "train": {"epochs": 10}})
    >>> train(recipe, "runs/cifar", report=print).scores                               # doctest: +SKIP
    (0.71, 0.78, 0.81, 0.82)
    """
    path = Path(run_dir)
    if resume:
        recipe = run_folder.read(path, changes)[0]
        run_folder.expect_resumable(path)
    elif not isinstance(recipe, Recipe):
        recipe = reading.read(recipe)
    recipe = prepare(recipe, (workers, replicas), resume=resume)
    if starts_processes(workers, replicas):
        launch_workers(recipe, path, (workers, replicas), max_restarts, resume=resume, changes=changes)
        lines = journal.read(path / run_folder.METRICS)
        return Epoch.from_json(lines[-1]) if lines else None
    team = None
    if workers * replicas > 1:
        team = join_team(workers, replicas, device_of(recipe.train.device), recipe.train.wire)
    if team is None or (team.leads and not team.restarted):
        _expect_no_run(recipe, path, resume)
    last_epoch: Epoch | None = None
    events = run.train(recipe, datasets.from_recipe(recipe), path, resume=resume, changes=changes, team=team)
    for event in events if resume or team is not None else with_trial(events, recipe):
        if report is not None:
            report(event)
        last_epoch = event if isinstance(event, Epoch) else last_epoch
    return last_epoch


def prepare(recipe: Recipe, size: tuple[int, int], *, resume: bool = False) -> Recipe:
    """Complete a recipe and check it for `size`, workers and replicas; raises RecipeError and DataError."""
    recipe = checked(recipe if resume else start.with_statistics(recipe))
    if not resume:
        expect_installed(recipe.train.log)
    expect_processes(recipe, *size)
    datasets.expect_known(recipe.data.name)
    return datasets.sized(recipe)


def starts_processes(workers: int, replicas: int) -> bool:
    """Whether `train` has to start these processes, because it is not one of them itself (as under torchrun)."""
    return workers * replicas > 1 and not in_team()


def launch_workers(
    recipe: Recipe,
    path: Path,
    size: tuple[int, int],
    max_restarts: int = 0,
    *,
    resume: bool = False,
    changes: Changes = UNCHANGED,
    options: Sequence[str] = (),
) -> None:
    """Check what can be checked in advance, then run `anytime-lct train` with these `options` in every process."""
    workers, replicas = size
    groups = recipe.cut.groups or DEFAULT_GROUPS
    if workers > groups:
        raise PartitionError(
            f"Expected at most as many workers as layer groups, {groups}, got {workers}; lower --workers or "
            f"raise --groups."
        )
    _expect_no_run(recipe, path, resume)
    with tempfile.TemporaryDirectory() as scratch:
        recipe_file = Path(scratch) / "recipe.toml"
        reading.write(recipe, recipe_file)
        arguments = ["--resume"] if resume else ["--recipe", str(recipe_file)]
        flags = {"--epochs": changes.epochs, "--data-root": changes.data_root, "--model": changes.model}
        for flag, value in flags.items():
            arguments += [] if value is None else [flag, str(value)]
        arguments += ["--run-dir", str(path), "--workers", str(workers), "--replicas", str(replicas)]
        launch(["train", *arguments, *options], workers, replicas, max_restarts)


def _expect_no_run(recipe: Recipe, path: Path, resume: bool) -> None:
    if not resume and recipe.data.name == "imagefolder" and among_images(path, root_of(recipe.data)):
        raise CheckpointError(
            f"Expected a run folder apart from the images, got '{path}' among those of '{root_of(recipe.data)}'; "
            f"choose another --run-dir."
        )
    if not resume and (path / run_folder.RECIPE).exists():
        raise CheckpointError(
            f"The folder '{path}' holds a run already; continue it with --resume --run-dir {path}, or choose another "
            f"--run-dir."
        )
