"""Start from trained weights: those of a run folder, of a file, or those that torchvision and timm ship.

A classifier that is missing or for another number of classes starts from scratch, and a note says so; everything else
has to fit.
"""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

from torch import Tensor

from anytime_lct.data.datasets import GREY
from anytime_lct.errors import CheckpointError
from anytime_lct.models.weights import default_weights, input_statistics
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import TEXT, Recipe
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder import state_dicts
from anytime_lct.run_folder.paths import DEFAULT_WEIGHTS
from anytime_lct.task import Facts

SHOWN_NAMES = 3


def load_weights(network: LCTNetwork, recipe: Recipe, facts: Facts, *, frozen: bool = False) -> str | None:
    """Load the weights that `train.weights` names; return sentences on what is left out or starts from scratch, if any.

    A run folder has critics too, which are loaded unless its classes are others. Raises CheckpointError and ModelError
    where weights are missing, do not fit or are not finite, and where a `frozen` main network would need a new
    classifier.
    """
    source = recipe.train.weights
    if source is None:
        return None
    own, critics, notes = network.main_state(), network.critics_state(), list[str]()
    run_critics = dict[str, Tensor]()
    if source != DEFAULT_WEIGHTS and not Path(source).is_file():
        main, run_critics = run_folder.read_weights(Path(source))
    elif source == DEFAULT_WEIGHTS:
        main = default_weights(recipe.model.name, facts.input_shape, recipe.data.download)
        main = {name: value for name, value in main.items() if name in own}  # no auxiliary classifiers
    else:
        main, extras = state_dicts.rename(own, state_dicts.read(Path(source)))
        if extras:
            notes.append(f"The file '{source}' holds more than the network, which is left out: {_listed(extras)}.")
    expect_finite(source, own, main)
    fitted, new = fit(own, main, facts.outputs)
    if new:
        classes = main[new[0]].shape[0] if new[0] in main else None
        state = f"a classifier '{new[0]}' for {classes} classes" if classes else f"no classifier '{new[0]}'"
        if frozen:
            raise CheckpointError(
                f"The weights '{source}' have {state}, the data has {facts.outputs}, and a new one cannot stay frozen; "
                f"train it first, for example by --method bp."
            )
        names = [*new, *(["the critics"] if Path(source).is_dir() and network.critics else [])]
        state = f"are for {classes} classes" if classes else "have no classifier"
        notes.append(
            f"The weights '{source}' {state}, the data has {facts.outputs}: {_listed(names)} start from scratch."
        )
    elif run_critics:
        if {name: value.shape for name, value in run_critics.items()} == {n: v.shape for n, v in critics.items()}:
            critics = run_critics
        elif network.critics:
            notes.append(
                f"The run '{source}' has critics of other shapes or behind other groups: the critics start from "
                f"scratch."
            )
    network.load(fitted, critics)
    return " ".join(notes) or None


def with_statistics(recipe: Recipe) -> Recipe:
    """Return a recipe whose images are normalised like those that its default weights were trained on.

    A recipe with `data.mean` or `data.std` keeps them; data of one channel keeps its own statistics.

    >>> tables = {"data": {"name": "imagefolder"}, "model": {"name": "timm:vit_tiny_patch16_224"}}
    >>> with_statistics(complete(tables | {"train": {"weights": "default"}})).data.mean
    (0.5, 0.5, 0.5)
    """
    if (
        recipe.train.weights != DEFAULT_WEIGHTS
        or recipe.data.mean
        or recipe.data.std
        or recipe.data.name in GREY | TEXT
    ):
        return recipe
    statistics = input_statistics(recipe.model.name)
    if statistics is None:
        return recipe
    data = recipe.data.model_copy(update={"mean": statistics[0], "std": statistics[1]})
    return recipe.model_copy(update={"data": data})


def fit(own: dict[str, Tensor], weights: dict[str, Tensor], outputs: int) -> tuple[dict[str, Tensor], list[str]]:
    """Return `weights`, with the network's `own` for a classifier that is missing or for another number of classes.

    The second value names these. `outputs` is the number of classes. Counters of batch norms, which old files lack,
    stay as they are.
    """
    counters = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
    new = [
        name
        for name, value in own.items()
        if name in weights
        and value.shape[:1] == (outputs,)
        and value.shape[:1] != weights[name].shape[:1]
        and value.shape[1:] == weights[name].shape[1:]
    ]
    missing = [name for name in own if name not in weights and name not in counters]
    # A classifier is a module of which the weights have nothing, and that ends in one output a class.
    parents = zip(*(name.split(".")[:-1] for name in missing), strict=False)
    classifier = ".".join(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, parents))
    is_absent = classifier != "" and not any(name.startswith(f"{classifier}.") for name in weights)
    if is_absent and own.keys() & weights.keys() and any(own[name].shape[:1] == (outputs,) for name in missing):
        new += missing
    return {**counters, **weights, **{name: own[name] for name in new}}, new


def expect_finite(source: str, own: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    """Raise CheckpointError for NaN or infinity, except where the network itself has them, as in masks."""
    for name, value in weights.items():
        if not value.isfinite().all() and (name not in own or own[name].isfinite().all()):
            raise CheckpointError(
                f"Expected finite numbers in the weights '{source}', got NaN or infinity in '{name}'; take the weights "
                f"of an earlier epoch."
            )


def _listed(names: list[str]) -> str:
    """List a few names, as in "a, b, c and 4 more"; where they are few, all of them."""
    if len(names) <= SHOWN_NAMES + 1:
        return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return f"{', '.join(names[:SHOWN_NAMES])} and {len(names) - SHOWN_NAMES} more"
