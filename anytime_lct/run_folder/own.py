"""A run folder of the user's own loop: the network that it trained, and the data to measure it on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from anytime_lct.data import datasets, saved
from anytime_lct.data.loaders import OWN, LoadedBatches, Parts
from anytime_lct.errors import CheckpointError, DataError, ModelError
from anytime_lct.exits.thresholds import NAME as THRESHOLDS
from anytime_lct.models.files import name_of
from anytime_lct.modes import probing
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes import reading
from anytime_lct.recipes.recipe import DataRecipe, Recipe
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder.build import build_network, example_input
from anytime_lct.task import Facts, TaskName

Factory = str | Callable[..., Any]


def save(
    path: Path | str,
    network: LCTNetwork,
    data: Parts | DataRecipe | str,
    *,
    model: Factory | None = None,
    options: dict[str, Any] | None = None,
    task: TaskName = "classification",
    replace: bool = False,
) -> Path:
    """Write a trained network as a run folder, which every verb takes; return the folder.

    `data` are its parts, of which validation and test are stored as they are, or the name of a data set,
    path/to/file.py:FACTORY for example. `model` makes the network before it was cut, with `options`: a function or a
    class in a file, which is copied into the run, or a name as `anytime-lct train --model` takes it; the network of it
    is compared with this one. Without `model` the verbs need `--model`. `replace` overwrites what `save` wrote there
    before. Raises CheckpointError, DataError and ModelError.

    >>> save("runs/own", network, {"validation": held_out, "test": test}, model=make)       # doctest: +SKIP
    >>> analyze("runs/own").exits[0].test.value                                             # doctest: +SKIP
    """
    path, network = Path(path), copy.deepcopy(network).cpu().eval()
    expect_free(path, replace)
    if isinstance(data, str | DataRecipe):
        table = DataRecipe(name=data) if isinstance(data, str) else data
        dataset = datasets.load(table)
    else:
        table, dataset = DataRecipe(name=saved.NAME), LoadedBatches(data, "test", task).described(network)
        expect_statistics(dataset)
    recipe, facts = recipe_of(network, table, model, options), dataset.facts
    expect_same(network, recipe, facts)
    path.mkdir(parents=True, exist_ok=True)
    for name in (run_folder.RECIPE, run_folder.PROFILE, THRESHOLDS):
        (path / name).unlink(missing_ok=True)
    if table.name == saved.NAME:
        saved.save(dataset, path)
    run_folder.save_weights(path, network.main_state(), network.critics_state())
    run_folder.create(path, recipe, facts)
    return path


def recipe_of(
    network: LCTNetwork, data: DataRecipe, model: Factory | None = None, options: dict[str, Any] | None = None
) -> Recipe:
    """Return a recipe that cuts a network of `model` as this one is cut."""
    name = OWN if model is None else model if isinstance(model, str) else name_of(model, "network", ModelError)
    tables: dict[str, Any] = {"data": data.model_dump(exclude_unset=True), "model": {"name": name, **(options or {})}}
    if network.recipes is not None:
        cut, critic = network.recipes
        tables |= {"cut": cut.model_dump(), "critic": critic.model_dump()}
    return reading.complete({**tables, "train": {"epochs": 1}})


def expect_statistics(data: LoadedBatches) -> None:
    """Raise DataError for images that are normalised in a way that is not known, which image files need later."""
    facts = data.facts
    if (facts.mean and facts.std) or facts.inputs != "image":
        return
    least, most = 0.0, 1.0
    for x, _ in data.batches(data.typical):
        least, most = min(least, x.min().item()), max(most, x.max().item())
        if (least, most) == (0.0, 1.0):
            continue
        raise DataError(
            f"Expected pixels in [0, 1], or the mean and the std of every channel that they were normalised by, got "
            f'values from {least:.3g} to {most:.3g}; add "mean" and "std" to the data: image files that are '
            f"answered later are normalised by them."
        )


def expect_free(path: Path, replace: bool = False) -> None:
    """Raise CheckpointError where a folder has a run, unless `save` wrote it and it may `replace` it."""
    if not (path / run_folder.RECIPE).exists():
        return
    if not replace or (path / run_folder.CHECKPOINTS).exists():
        own = "" if (path / run_folder.CHECKPOINTS).exists() else ", or overwrite it by replace=True"
        raise CheckpointError(f"The folder '{path}' holds a run already; choose another folder{own}.")


def expect_same(network: LCTNetwork, recipe: Recipe, facts: Facts) -> None:
    """Raise CheckpointError where the factory that a recipe names, if any, makes another network than this one."""
    if recipe.model.name == OWN:
        return
    if network.recipes is None:
        raise CheckpointError(
            "Expected a network that LCTNetwork.cut has cut, so that another of its factory is cut alike, got groups "
            "and critics of another origin; leave `model` out, or cut it."
        )
    again = build_network(recipe, facts, compare=False).eval()
    again.load(network.main_state(), network.critics_state())
    x = example_input(facts)
    if x.is_floating_point():
        x = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    with probing(network), probing(again):
        same = all(torch.equal(ours, theirs) for ours, theirs in zip(network(x), again(x), strict=True))
    if not same:
        raise CheckpointError(
            f"Expected '{recipe.model.name}' to make the network that was trained, got another one, with other outputs "
            f"by the same weights; name the factory and the options that made it."
        )
