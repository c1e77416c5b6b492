"""Start from trained weights: of a run folder, of a file, or those that torchvision and timm ship.

A classifier of another number of classes starts anew, and that is said; everything else has to fit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anytime_lct.errors import CheckpointError
from anytime_lct.models import weights as models
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import Recipe
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder.checkpoint import load_tensors
from anytime_lct.task import Facts

DEFAULT = "default"
COLOURED = ("cifar10", "cifar100", "imagefolder")
WRAPPINGS = ("state_dict", "model_state_dict", "model")  # under which trainers keep a network's weights
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile


def load_weights(network: LCTNetwork, recipe: Recipe, facts: Facts, *, frozen: bool = False) -> str | None:
    """Give a network the weights that `train.weights` names; return a sentence on what starts anew, if anything does.

    A run folder gives its critics too, unless its classes are others. Raises CheckpointError and ModelError where
    weights are missing or do not fit, and where a main network that is to stay as it is (`frozen`) would need a new
    classifier.
    """
    source = recipe.train.weights
    if source is None:
        return None
    critics, theirs, fits = network.critics_state(), dict[str, Tensor](), True
    if source != DEFAULT and not Path(source).is_file():
        given, theirs = run_folder.weights_of(Path(source))
        fits = {name: value.shape for name, value in theirs.items()} == {n: v.shape for n, v in critics.items()}
        critics = theirs if fits else critics
    elif source == DEFAULT:
        given = models.default_weights(recipe.model.name, facts.input_shape, recipe.data.download)
        given = {name: value for name, value in given.items() if name in network.main_state()}  # auxiliary heads go
    else:
        given = read(Path(source))
    fitted, anew = fit(network.main_state(), given, facts.outputs)
    if anew and frozen:
        raise CheckpointError(
            f"The weights '{source}' have a classifier '{anew[0]}' for {given[anew[0]].shape[0]} classes, the data has "
            f"{facts.outputs}, and a new one cannot stay frozen; train it first, for example by --method bp."
        )
    network.load(fitted, network.critics_state() if anew else critics)
    if not anew:
        if theirs and network.critics and not fits:
            return f"The run '{source}' has critics of other shapes or behind other groups: the critics start anew."
        return None
    names = [*anew, *(["the critics"] if Path(source).is_dir() and network.critics else [])]
    return (
        f"The weights '{source}' are for {given[anew[0]].shape[0]} classes, the data has {facts.outputs}: "
        f"{' and '.join(names)} start anew."
    )


def with_statistics(recipe: Recipe) -> Recipe:
    """Return a recipe whose images are normalised as those were that its default weights were trained on.

    What it names itself, by `data.mean` or `data.std`, stays; so does data of one channel.

    >>> given = {"data": {"name": "imagefolder"}, "model": {"name": "timm:vit_tiny_patch16_224"}}
    >>> with_statistics(complete(given | {"train": {"weights": "default"}})).data.mean
    (0.5, 0.5, 0.5)
    """
    if recipe.train.weights != DEFAULT or recipe.data.mean or recipe.data.std or recipe.data.name not in COLOURED:
        return recipe
    found = models.input_statistics(recipe.model.name)
    if found is None:
        return recipe
    told = recipe.data.model_copy(update={"mean": found[0], "std": found[1]})
    return recipe.model_copy(update={"data": told})


def read(path: Path) -> dict[str, Tensor]:
    """Read weights from a safetensors file or a torch state dict, which is loaded with weights_only.

    Weights that a trainer wrapped (`{"state_dict": ..}`, names that begin with `module.`) are unwrapped. Raises
    CheckpointError where the file holds anything else.

    >>> read(Path("resnet18.pth"))["conv1.weight"].shape                                # doctest: +SKIP
    torch.Size([64, 3, 7, 7])
    """
    if path.suffix == ".safetensors":
        return load_tensors(path)
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever bytes that are no state dict make of torch's readers
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"Expected weights in '{path}', a safetensors file or a torch state dict that loads without running code "
            f"(weights_only), but: {reason.rstrip('.')}."
        ) from None
    for key in WRAPPINGS:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(
            f"Expected names and tensors in '{path}', got a {type(found).__name__} of other things; save "
            f"model.state_dict() instead."
        )
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def fit(own: dict[str, Tensor], given: dict[str, Tensor], outputs: int) -> tuple[dict[str, Tensor], list[str]]:
    """Return the given weights, with the own ones where a classifier is for another number than `outputs` classes.

    The second value names those. Counters of batch norms, which old files lack, stay as they are.
    """
    anew = [
        name
        for name, value in own.items()
        if name in given
        and value.shape[:1] == (outputs,)
        and value.shape[:1] != given[name].shape[:1]
        and value.shape[1:] == given[name].shape[1:]
    ]
    counters = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
    return {**counters, **given, **{name: own[name] for name in anew}}, anew
