"""Training of the user's own network on the user's own minibatches, in a run folder or without one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from anytime_lct.data import saved
from anytime_lct.data.loaders import OWN, LoadedBatches, Parts
from anytime_lct.errors import RecipeError
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.fitting import USUAL_ROWS, fit
from anytime_lct.recipes.reading import complete
from anytime_lct.recipes.recipe import DataRecipe, LogName, Recipe
from anytime_lct.run_folder import checkpoint, own
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder.build import traits
from anytime_lct.run_folder.paths import Changes
from anytime_lct.task import TASKS, TaskName
from anytime_lct.training.events import Epoch
from anytime_lct.training.interruption import interruptible
from anytime_lct.training.learner import averaged
from anytime_lct.training.logs import Log, expect_installed
from anytime_lct.training.loop import Loop
from anytime_lct.training.methods.worker import Worker
from anytime_lct.training.prepare import device_of, suit_device
from anytime_lct.training.processes.team import Team
from anytime_lct.training.saving import Saving
from anytime_lct.training.schedule import Clock

TABLES = ("groups", "groups_schedule", "critics", "critics_schedule", "rule")
TRAIN_KEYS = (
    "seed",
    "device",
    "clip_norm",
    "label_smoothing",
    "precision",
    "compile",
    "average",
    "accumulate",
    "class_weights",
)
FOLDER_KEYS = (
    "model",
    "train.keep",
    "train.keep_optimizer",
    "train.checkpoint_minutes",
    "train.track_descent",
    "train.log",
)


def train(
    network: LCTNetwork,
    data: Parts,
    *,
    epochs: int = 1,
    task: TaskName = "classification",
    run_dir: Path | str | None = None,
    resume: bool = False,
    log: Sequence[LogName | Log] = ("tensorboard",),
    report: Callable[[Epoch], object] | None = None,
    **tables: dict[str, Any],
) -> list[Epoch]:
    """Train a network by local critic training; return the result of every epoch, losses and metric of each exit.

    `data` is iterated once per epoch and has a length: a DataLoader, a list of minibatches (x, y), or {"train": ..,
    "validation": .., "test": .., "classes": ..} of these; classification takes y (B,), a language model x and y (B, T),
    regression y (B, K), best of mean 0 and deviation 1. `tables` are those of a recipe (`groups={"lr": 0.05}`,
    `critics`, `groups_schedule`, `critics_schedule`, `rule`, `train={"seed": 1, "average": 0.99}`), with the defaults
    of `anytime-lct train`; the rest of a recipe follows from the network and the data. `report` is called after every
    epoch. The network ends on its device, in evaluation mode. Raises DataError, RecipeError, CheckpointError and
    DivergenceError.

    With `run_dir` this writes a run folder: checkpoints, metrics, weights, and the validation and the test part. A pass
    over the data then follows from seed and epoch (`loaders.LoadedBatches`), so that the same call with `resume` goes
    on after an interruption, to the bit on a CPU; more `epochs` extend the run. `model={"name": make}` names what makes
    the network, as `run_folder.own.save` takes it. `log` are loggers by name, `tensorboard`, `jsonl`, `mlflow` and
    `wandb`, or objects of your own (`logs.Log`).

    >>> network = LCTNetwork.cut(model, torch.zeros(2, 3, 64, 64))                      # doctest: +SKIP
    >>> train(network, {"train": loader, "validation": held_out}, epochs=10)[-1].scores # doctest: +SKIP
    """
    folder = None if run_dir is None else Path(run_dir)
    names, loggers = (
        [each for each in log if isinstance(each, str)],
        [each for each in log if not isinstance(each, str)],
    )
    tables["train"] = tables.get("train", {}) | ({"log": names} if folder is not None else {})
    recipe = _recipe(tables, task, epochs, in_folder=folder is not None)
    batches = LoadedBatches(data, "train", task, None if folder is None else recipe.train.seed)
    batches.expect_length()
    team, per_epoch = Team(device_of(recipe.train.device), bounds=(0, network.num_groups)), batches.num_batches("train")
    recipe = suit_device(fit(recipe, traits(network), batches.rows or USUAL_ROWS), team.device)
    if folder is not None:
        batches = batches.described(network)
        if resume:
            _continue(folder, recipe, batches)
        else:
            expect_installed(recipe.train.log)
            _create(folder, recipe, network, batches, tables.get("model", {}))
    elif resume:
        raise RecipeError("Expected run_dir with resume, got none; name the run folder to continue.")
    fresh_start = checkpoint.fresh_start(folder / run_folder.CHECKPOINTS) if folder is not None and resume else 0
    clock = Clock(epochs * per_epoch, per_epoch, fresh_start=fresh_start, accumulate=recipe.train.accumulate)
    history = list[Epoch]()
    network.to(team.device).train()
    method = Worker.of(network, recipe, task, clock, team)
    with ExitStack() as stack:
        stack.callback(network.eval)
        saving = interrupted = None
        if folder is not None:
            stack.enter_context(run_folder.locked(folder))
            interrupted = stack.enter_context(interruptible())
            saving = Saving(folder, recipe, batches.facts.metric, method, clock, team, network.num_groups, loggers)
            stack.enter_context(closing(saving))
        loop = Loop(method, batches, recipe.train, clock, team, network.num_groups, saving, interrupted)
        for event in loop.events(resume):
            if isinstance(event, Epoch):
                history.append(event)
                if report is not None:
                    report(event)
    if folder is not None:
        network.load(*run_folder.read_weights(folder))
    elif recipe.train.average:
        with averaged(method.learners):
            average = {name: value.clone() for name, value in network.state_dict().items()}
        network.load_state_dict(average)
    return history


def _recipe(tables: dict[str, dict[str, Any]], task: TaskName, epochs: int, *, in_folder: bool) -> Recipe:
    """Return a recipe of these tables; raises RecipeError for keys that the network and the data determine."""
    train = tables.get("train", {})
    keys = [*(f"train.{key}" for key in train), *(table for table in tables if table != "train")]
    known = [*TABLES, *(f"train.{key}" for key in TRAIN_KEYS), *(FOLDER_KEYS if in_folder else ())]
    if unknown := next((key for key in keys if key not in known), None):
        if unknown in FOLDER_KEYS:
            raise RecipeError(f"Expected run_dir with '{unknown}', got none; name a run folder, or leave it out.")
        raise RecipeError(
            f"Expected {', '.join(known)} of a recipe, got '{unknown}', which follows from the network and the data; "
            f"leave it out, or train by a recipe."
        )
    name = "text" if TASKS[task].is_text else "cifar10"
    own_tables = {"model": {"name": OWN}, "train": {**train, "epochs": epochs, "channels_last": False}}
    return complete({"data": {"name": name}, **tables, **own_tables})


def _create(folder: Path, recipe: Recipe, network: LCTNetwork, data: LoadedBatches, model: Mapping[str, Any]) -> None:
    """Make the run folder, with the parts that the network is measured on; raises CheckpointError and DataError."""
    own.expect_free(folder)
    own.expect_statistics(data)
    options = {key: value for key, value in model.items() if key != "name"}
    parts = own.recipe_of(network, DataRecipe(name=saved.NAME), model.get("name"), options)
    own.expect_same(network, parts, data.facts)
    folder.mkdir(parents=True, exist_ok=True)
    saved.save(data, folder)
    described = {table: getattr(parts, table) for table in ("data", "model", "cut", "critic")}
    run_folder.create(folder, recipe.model_copy(update=described), data.facts)


def _continue(folder: Path, recipe: Recipe, data: LoadedBatches) -> None:
    """Check that a run is continued as it started, but for more epochs; raises RecipeError and CheckpointError."""
    earlier, facts = run_folder.read(folder)
    run_folder.expect_same_data(folder, facts, data.facts)
    for table in (*TABLES, "train"):
        ours, theirs = (getattr(each, table).model_dump(exclude={"epochs", "log"}) for each in (recipe, earlier))
        for key, value in theirs.items():
            if ours[key] != value:
                raise RecipeError(
                    f"Expected the settings of the run '{folder}' to continue it, with {table}.{key} = {value!r}, got "
                    f"{ours[key]!r}; pass the former, or start another run."
                )
    run_folder.rewrite(folder, Changes(epochs=recipe.train.epochs))
