"""Training methods by name: local critic training, and its alternatives on the same recipe and data."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from anytime_lct.errors import RecipeError
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import Recipe, Section
from anytime_lct.task import TaskName
from anytime_lct.training.method import Method
from anytime_lct.training.methods import admm, backprop, dni, joint, pipeline, posthoc, worker
from anytime_lct.training.processes.team import Team
from anytime_lct.training.schedule import Clock

Processes = Literal["any", "replicas", "pipeline", "one"]
Alive = Literal["group", "all", "critics"]
RUN = frozenset({"data", "model", "train"})
MAIN = RUN | {"groups", "groups_schedule"}
CRITICS = frozenset({"critic", "critics", "critics_schedule"})


@dataclass(frozen=True)
class Row:
    """A training method: its constructor, and its properties.

    `reads` are the tables of the recipe that its result depends on, `options` its own table, named after it.
    `cuts`: it trains through the layer groups of the recipe's cut; `exits`: every group ends in an exit. `processes`
    may be any number of workers and replicas, only replicas, a pipeline of at least two workers, or one process.
    `alive` are the activations that a step holds at a time: those of one group with its critic, all, or those of the
    critics. `fits_exits`: the main network is frozen; `sub_network`: `train.exit` names the sub-network that it trains;
    `tracks_descent`: (16) can be measured during training. `check` raises RecipeError for a recipe that does not fit
    the method.
    """

    make: Callable[[LCTNetwork, Recipe, TaskName, Clock, Team], Method]
    reads: frozenset[str]
    cuts: bool = False
    exits: bool = False
    processes: Processes = "one"
    alive: Alive = "all"
    options: type[Section] | None = None
    check: Callable[[Recipe], None] | None = None
    fits_exits: bool = False
    sub_network: bool = False
    tracks_descent: bool = False


# A training method is a file beside this one and a row here.
METHODS: dict[str, Row] = {
    "lct": Row(worker.Worker.of, MAIN | CRITICS | {"cut", "rule"}, cuts=True, exits=True, processes="any",
               alive="group", tracks_descent=True),
    "bp": Row(backprop.Backprop, MAIN, processes="replicas"),
    "joint": Row(joint.Joint, MAIN | CRITICS | {"cut"}, cuts=True, exits=True),
    "posthoc": Row(posthoc.PostHoc, RUN | CRITICS | {"cut", "rule", "posthoc"}, cuts=True, exits=True,
                   alive="critics", options=posthoc.PostHocRecipe, check=posthoc.check, fits_exits=True),
    "alone": Row(backprop.Backprop, MAIN | {"cut", "critic"}, cuts=True, check=backprop.check_alone, sub_network=True),
    "dni": Row(dni.DNI, MAIN | {"cut", "critics", "critics_schedule", "dni"}, cuts=True,
               alive="group", options=dni.DNIRecipe, check=dni.check),
    "admm": Row(admm.ADMM, RUN | {"admm"}, options=admm.ADMMRecipe, check=admm.check),
    "gpipe": Row(pipeline.Pipeline, MAIN | {"cut"}, cuts=True, processes="pipeline", check=pipeline.check),
    "1f1b": Row(pipeline.Pipeline, MAIN | {"cut"}, cuts=True, processes="pipeline", check=pipeline.check),
}  # fmt: skip


def row_of(method: str) -> Row:
    """Return the row of a method; raises RecipeError for an unknown one."""
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=3)
        raise RecipeError(f"There is no training method '{method}'; did you mean {' or '.join(near or METHODS)}?")
    return METHODS[method]


def checked(recipe: Recipe) -> Recipe:
    """Return a recipe with its method's own table completed; raises RecipeError where it does not fit the method.

    >>> checked(complete({"train": {"method": "dni"}, "data": {"name": "cifar10"}})).section("dni", DNIRecipe).width
    128
    """
    row, method = row_of(recipe.train.method), recipe.train.method
    for table in recipe.model_extra or {}:
        options = METHODS[table].options if table in METHODS else None
        if options is None:
            known = [*Recipe.model_fields, *(name for name, each in METHODS.items() if each.options)]
            near = difflib.get_close_matches(table, known, n=3)
            raise RecipeError(f"The recipe has an unknown key '{table}'; did you mean {' or '.join(near or known)}?")
        recipe.section(table, options)
    if recipe.train.exit is not None and not row.sub_network:
        raise RecipeError(
            f"Expected train.exit with method alone, whose sub-network it names, got it with {method}; leave it out."
        )
    if recipe.train.track_descent and not row.tracks_descent:
        raise RecipeError(
            f"Expected train.track_descent with local critic training, which it compares with backprop, got it with "
            f"method {method}; leave it out."
        )
    if row.check is not None:
        row.check(recipe)
    if row.options is None:
        return recipe
    own = recipe.section(method, row.options).model_dump(mode="json")
    return recipe.model_copy(update={method: own})


def expect_processes(recipe: Recipe, workers: int, replicas: int) -> None:
    """Raise RecipeError where a method, or `train.track_descent`, cannot run in this many processes."""
    method, processes = recipe.train.method, row_of(recipe.train.method).processes
    if processes == "one" and (workers, replicas) != (1, 1):
        raise RecipeError(
            f"Expected one process with method {method}, got {workers} workers and {replicas} replicas; leave "
            f"--workers and --replicas out."
        )
    if processes == "replicas" and workers > 1:
        raise RecipeError(
            f"Expected one worker with method {method}, which has no layer groups to distribute, got {workers}; use "
            f"--replicas (DistributedDataParallel), or --method gpipe or 1f1b."
        )
    if processes == "pipeline" and (workers < 2 or replicas > 1):
        raise RecipeError(
            f"Expected at least 2 workers and one replica with method {method}, got {workers} and {replicas}; set "
            f"--workers, or use --method bp."
        )
    if recipe.train.track_descent and (workers, replicas) != (1, 1):
        raise RecipeError(
            f"Expected one process with train.track_descent, which needs the whole network for the true gradient, got "
            f"{workers} workers and {replicas} replicas; leave --workers and --replicas, or train.track_descent, out."
        )
