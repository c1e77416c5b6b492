"""What all image sets share: the validation split, the statistics of channels, errors for missing or damaged files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anytime_lct.data.augment import policy_of
from anytime_lct.data.batches import ImageBatches, Images, Split
from anytime_lct.data.locations import root_of, shown
from anytime_lct.data.mixing import Mixing
from anytime_lct.data.splits import drawn_note, hold_out, in_unit, unit_of
from anytime_lct.errors import DataError
from anytime_lct.recipes.fitting import batch_size
from anytime_lct.recipes.recipe import Augment, DataRecipe
from anytime_lct.task import Facts, TaskName

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of each channel, on [0, 1]
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class ImageSet:
    """An image set: its parts, and the names of the classes.

    Where it has no test part, or no validation part, these are split from the training part. Where `statistics` is
    None, those of the training pixels are computed; `augment` is used for "auto".
    """

    train: Images
    test: Images | None
    classes: tuple[str, ...]
    statistics: Statistics | None = None
    augment: Augment = "crop-flip"
    validation: Images | None = None
    notes: tuple[str, ...] = ()


Reader = Callable[[DataRecipe, Path], ImageSet]


def load_images(read: Reader, recipe: DataRecipe, seed: int) -> ImageBatches:
    """Read an image set, and split the parts that it does not have from its training part by `seed`.

    Raises DataError.
    """
    if (recipe.mean is None) != (recipe.std is None):
        raise DataError("Expected data.mean and data.std together, got one of them; set both or leave both out.")
    images = read(recipe, root_of(recipe))
    count = len(images.train.labels)
    held_out = hold_out(recipe, count, seed, validation=not images.validation, test=not images.test)
    task: TaskName = "classification"
    centers, scale = (), 1.0
    if images.train.labels.is_floating_point():
        task, (centers, scale) = "regression", unit_of(images.train.labels[held_out.train], recipe.name)
        images = _in_unit(images, centers, scale)
        if recipe.mixup or recipe.cutmix:
            raise DataError(
                f"Expected classes to mix images of, got the targets of '{recipe.name}', which are numbers; leave "
                f"data.mixup and data.cutmix out."
            )
    parts: dict[Split, tuple[Images, Tensor]] = {
        "train": (images.train, held_out.train),
        "validation": _whole_or(images.validation, images.train, held_out.validation),
        "test": _whole_or(images.test, images.train, held_out.test),
    }
    notes = images.notes
    if images.test is None:
        notes += (drawn_note(len(held_out.test), count),)
    mean, deviation = _statistics(recipe, images, held_out.train)
    facts = Facts(
        shown(recipe.name), task, images.train.shape, len(images.classes), images.classes, mean,
        deviation, images.train.resize, counts=tuple(len(indices) for _, indices in parts.values()),
        centers=centers, scale=scale,
    )  # fmt: skip
    augment = images.augment if recipe.augment == "auto" else recipe.augment
    rows = recipe.batch_size or batch_size(len(held_out.train))
    policy = policy_of(recipe.policy, facts.input_shape)
    return ImageBatches(
        facts, augment, parts, rows, seed, recipe.workers, notes=notes, policy=policy, erased=recipe.erase,
        mixing=Mixing.of(recipe, facts),
    )  # fmt: skip


def _in_unit(images: ImageSet, centers: tuple[float, ...], scale: float) -> ImageSet:
    """Return an image set with targets as the network answers them, float32 (`Facts`)."""

    def part(images: Images) -> Images:
        return replace(images, labels=in_unit(images.labels, centers, scale))

    validation, test = images.validation and part(images.validation), images.test and part(images.test)
    return replace(images, train=part(images.train), validation=validation, test=test)


def _whole_or(part: Images | None, other: Images, indices: Tensor) -> tuple[Images, Tensor]:
    """Return all images of a part, or where there is none some of another one."""
    return (other, indices) if part is None else (part, torch.arange(len(part.labels)))


def in_memory(pixels: Tensor, labels: Tensor) -> Images:
    """Make a part of an image set from its pixels, uint8 (N, C, H, W)."""
    return Images(labels, tuple(pixels.shape[1:]), pixels)


def missing_error(name: str, root: Path, other_folders: str = "", remedy: str = "") -> DataError:
    """Return the error for a data set that is missing in `root` and `other_folders`, with another remedy if any."""
    return DataError(
        f"Expected the data set '{name}' in '{root.absolute()}'{other_folders}, but it is missing; name its folder "
        f"with --data-root, or download it by train with --set data.download=true{remedy}."
    )


def damage_error(name: str, path: Path, reason: str) -> DataError:
    """Return the error for a data set whose files are damaged or incomplete."""
    return DataError(
        f"The data set '{name}' in '{path.absolute()}' is damaged or incomplete ({reason}); remove it "
        f"and get it again, for example by train with --set data.download=true."
    )


def _statistics(recipe: DataRecipe, images: ImageSet, train_indices: Tensor) -> Statistics:
    """Return the recipe's statistics, the set's own, or those of its training pixels; raises DataError."""
    if recipe.mean is not None and recipe.std is not None:
        statistics = (recipe.mean, recipe.std)
    elif images.statistics is None and images.train.pixels is not None:
        statistics = mean_and_std(images.train.pixels[train_indices])
    else:
        statistics = images.statistics or IMAGENET
    channels = images.train.shape[0]
    for key, values, above in (("mean", statistics[0], -np.inf), ("std, all above 0", statistics[1], 0.0)):
        if len(values) != channels or not all(above < value < np.inf for value in values):
            raise DataError(
                f"Expected a number for each channel of '{recipe.name}', {channels}, as data.{key}, "
                f"got {', '.join(map(str, values)) or 'none'}."
            )
    return statistics


def mean_and_std(images: Tensor) -> Statistics:
    """Return mean and deviation of every channel on [0, 1], exactly, from counts of the 256 levels."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        mean = (counts * levels).sum() / counts.sum()
        deviation = ((counts * (levels - mean) ** 2).sum() / counts.sum()).sqrt()
        means.append(round(mean.item(), 6))
        deviations.append(round(max(deviation.item(), 1e-3), 6))  # a channel of one level stays finite
    return tuple(means), tuple(deviations)
