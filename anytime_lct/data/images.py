"""What every image set shares: a validation split by seed, statistics of its channels, what is missing or damaged."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anytime_lct.data.batches import ImageBatches, Images, Split
from anytime_lct.errors import DataError
from anytime_lct.recipes.recipe import Augment, DataRecipe
from anytime_lct.task import Facts

ROOT_VARIABLE = "ANYTIME_LCT_DATA"
Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of each channel, on [0, 1]
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class ImageSet:
    """An image set as it was read: training and test part, and the names of the classes.

    `statistics` None has those of the training pixels computed; `augment` is what "auto" becomes.
    """

    train: Images
    test: Images
    classes: tuple[str, ...]
    statistics: Statistics | None = None
    augment: Augment = "crop-flip"


Read = Callable[[DataRecipe, Path], ImageSet]


def load_images(read: Read, recipe: DataRecipe, seed: int) -> ImageBatches:
    """Read an image set and hold a validation split out of its training part by seed; raises DataError."""
    if (recipe.mean is None) != (recipe.std is None):
        raise DataError("Expected data.mean and data.std together; leave both out, or name the other.")
    made = read(recipe, Path(recipe.root or os.environ.get(ROOT_VARIABLE) or ".data").expanduser())
    order = torch.randperm(len(made.train.labels), generator=torch.Generator().manual_seed(seed))
    held = round(recipe.validation * len(order))
    if held == len(order):
        raise DataError(
            f"A validation share of {recipe.validation} leaves none of {held} training images to train on; lower it."
        )
    trained = order[held:].sort().values
    parts: dict[Split, tuple[Images, Tensor]] = {
        "train": (made.train, trained),
        "validation": (made.train, order[:held].sort().values),
        "test": (made.test, torch.arange(len(made.test.labels))),
    }
    mean, deviation = _statistics(recipe, made, trained)
    shape = made.train.shape
    facts = Facts(
        recipe.name, "classification", shape, len(made.classes), made.classes, mean, deviation, made.train.resize
    )
    augment = made.augment if recipe.augment == "auto" else recipe.augment
    return ImageBatches(facts, augment, parts, recipe.batch_size, seed, recipe.workers)


def in_memory(pixels: Tensor, labels: Tensor) -> Images:
    """Make a part of an image set from its pixels, uint8 (N, C, H, W)."""
    return Images(labels, tuple(pixels.shape[1:]), pixels)


def missing(name: str, root: Path, elsewhere: str = "", remedy: str = "") -> DataError:
    """Return the error of a data set that is not there; the other two say where else it was looked for, and help."""
    return DataError(
        f"The data set '{name}' was looked for in '{root.absolute()}'{elsewhere} and is not there; name its "
        f"folder with --data-root, or let it be fetched with --set data.download=true{remedy}."
    )


def damaged(name: str, path: Path, reason: str) -> DataError:
    """Return the error of a data set whose files are not what they should be."""
    return DataError(
        f"The data set '{name}' in '{path.absolute()}' is damaged or incomplete ({reason}); remove it "
        f"there and get it anew, for instance with --set data.download=true."
    )


def _statistics(recipe: DataRecipe, made: ImageSet, trained: Tensor) -> Statistics:
    """The recipe's statistics, the set's own, or those of its training pixels; raises DataError."""
    if recipe.mean is not None and recipe.std is not None:
        statistics = (recipe.mean, recipe.std)
    elif made.statistics is None and made.train.pixels is not None:
        statistics = _mean_and_std(made.train.pixels[trained])
    else:
        statistics = made.statistics or IMAGENET
    channels = made.train.shape[0]
    for what, values, above in (("mean", statistics[0], -np.inf), ("std, all above 0", statistics[1], 0.0)):
        if len(values) != channels or not all(above < value < np.inf for value in values):
            raise DataError(
                f"Expected a number for each channel of '{recipe.name}', {channels}, as data.{what}, "
                f"got {', '.join(map(str, values)) or 'none'}."
            )
    return statistics


def _mean_and_std(images: Tensor) -> Statistics:
    """Mean and deviation of every channel on [0, 1], exactly, from counts of the 256 levels."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        mean = (counts * levels).sum() / counts.sum()
        deviation = ((counts * (levels - mean) ** 2).sum() / counts.sum()).sqrt()
        means.append(round(mean.item(), 6))
        deviations.append(round(max(deviation.item(), 1e-3), 6))  # a channel of one level stays finite
    return tuple(means), tuple(deviations)
