"""Start from trained weights: those of a run folder, of a file, or those that torchvision and timm ship.

A classifier for another number of classes starts from scratch, and a note says so; everything else has to fit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anytime_lct.errors import CheckpointError
from anytime_lct.models.weights import default_weights, input_statistics
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import Recipe
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder.checkpoint import load_tensors
from anytime_lct.task import Facts

DEFAULT = "default"
RGB_DATA_SETS = ("cifar10", "cifar100", "imagefolder")
WRAPPER_KEYS = ("state_dict", "model_state_dict", "model")  # under which trainers save a network's weights
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile


def load_weights(network: LCTNetwork, recipe: Recipe, facts: Facts, *, frozen: bool = False) -> str | None:
    """Load the weights that `train.weights` names; return a sentence on what starts from scratch, None if nothing does.

    A run folder has critics too, which are loaded unless its classes are others. Raises CheckpointError and ModelError
    where weights are missing or do not fit, and where a `frozen` main network would need a new classifier.
    """
    source = recipe.train.weights
    if source is None:
        return None
    critics, run_critics, fits = network.critics_state(), dict[str, Tensor](), True
    if source != DEFAULT and not Path(source).is_file():
        main, run_critics = run_folder.read_weights(Path(source))
        fits = {name: value.shape for name, value in run_critics.items()} == {n: v.shape for n, v in critics.items()}
        critics = run_critics if fits else critics
    elif source == DEFAULT:
        main = default_weights(recipe.model.name, facts.input_shape, recipe.data.download)
        main = {name: value for name, value in main.items() if name in network.main_state()}  # no auxiliary classifiers
    else:
        main = read(Path(source))
    fitted, new = fit(network.main_state(), main, facts.outputs)
    if new and frozen:
        raise CheckpointError(
            f"The weights '{source}' have a classifier '{new[0]}' for {main[new[0]].shape[0]} classes, the data has "
            f"{facts.outputs}, and a new one cannot stay frozen; train it first, for example by --method bp."
        )
    network.load(fitted, network.critics_state() if new else critics)
    if not new:
        if run_critics and network.critics and not fits:
            return (
                f"The run '{source}' has critics of other shapes or behind other groups: the critics start from "
                f"scratch."
            )
        return None
    names = [*new, *(["the critics"] if Path(source).is_dir() and network.critics else [])]
    return (
        f"The weights '{source}' are for {main[new[0]].shape[0]} classes, the data has {facts.outputs}: "
        f"{' and '.join(names)} start from scratch."
    )


def with_statistics(recipe: Recipe) -> Recipe:
    """Return a recipe whose images are normalised like those that its default weights were trained on.

    A recipe with `data.mean` or `data.std` keeps them; data of one channel keeps its own statistics.

    >>> tables = {"data": {"name": "imagefolder"}, "model": {"name": "timm:vit_tiny_patch16_224"}}
    >>> with_statistics(complete(tables | {"train": {"weights": "default"}})).data.mean
    (0.5, 0.5, 0.5)
    """
    if recipe.train.weights != DEFAULT or recipe.data.mean or recipe.data.std or recipe.data.name not in RGB_DATA_SETS:
        return recipe
    statistics = input_statistics(recipe.model.name)
    if statistics is None:
        return recipe
    data = recipe.data.model_copy(update={"mean": statistics[0], "std": statistics[1]})
    return recipe.model_copy(update={"data": data})


def read(path: Path) -> dict[str, Tensor]:
    """Read weights from a safetensors file or a torch state dict, which is loaded with weights_only.

    Weights that a trainer wrapped (`{"state_dict": ..}`, names that start with `module.`) are unwrapped. Raises
    CheckpointError where the file holds anything else.

    >>> read(Path("resnet18.pth"))["conv1.weight"].shape                                # doctest: +SKIP
    torch.Size([64, 3, 7, 7])
    """
    if path.suffix == ".safetensors":
        return load_tensors(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is no state dict makes torch raise errors of many types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"Expected weights in '{path}', a safetensors file or a torch state dict that loads without running code "
            f"(weights_only), but: {reason.rstrip('.')}."
        ) from None
    for key in WRAPPER_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(
            f"Expected names and tensors in '{path}', got a {type(content).__name__} of other things; save "
            f"model.state_dict() instead."
        )
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): value for name, value in content.items()}
    return content


def fit(own: dict[str, Tensor], weights: dict[str, Tensor], outputs: int) -> tuple[dict[str, Tensor], list[str]]:
    """Return `weights`, with the network's `own` where a classifier is for another number than `outputs` classes.

    The second value names these. Counters of batch norms, which old files lack, stay as they are.
    """
    new = [
        name
        for name, value in own.items()
        if name in weights
        and value.shape[:1] == (outputs,)
        and value.shape[:1] != weights[name].shape[:1]
        and value.shape[1:] == weights[name].shape[1:]
    ]
    counters = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
    return {**counters, **weights, **{name: own[name] for name in new}}, new
