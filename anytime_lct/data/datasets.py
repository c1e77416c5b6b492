"""Data sets by name: images, text, and the two that need nothing (digits and pydoc)."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from anytime_lct.data import images, text
from anytime_lct.data.batches import Dataset
from anytime_lct.errors import DataError
from anytime_lct.recipes.recipe import TEXT, Recipe

NAMES = (*images.SOURCES, *sorted(TEXT))
ROOT_VARIABLE = "ANYTIME_LCT_DATA"


def load(
    name: str,
    *,
    root: Path | None = None,
    seed: int = 0,
    validation: float = 0.1,
    batch_size: int = 128,
    augment: str = "auto",
    download: bool = False,
    sequence_length: int = 150,
    workers: int = 0,
    path: Path | None = None,
    image_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Dataset:
    """Load a data set by name; raises DataError where it is missing, damaged or asked for wrongly.

    `root` is the folder that holds it, in torchvision's layout; without one, that of the environment variable
    ANYTIME_LCT_DATA, or ./.data. `path` is the file or folder of a text, under `root` where that is given.
    `validation` is the share of the training images held out by `seed`, or of a text before its test part.
    With `image_size`, an image folder of any sizes becomes squares of that side. `mean` and `std` of each channel, on
    pixels scaled to [0, 1], are by default the data set's own, or ImageNet's where files are read one by one.

    >>> load("digits", batch_size=64).num_batches("train")
    21
    """
    _check(name, validation, batch_size, sequence_length, workers, image_size)
    if (mean is None) != (std is None) or (name in TEXT and mean is not None):
        raise DataError(
            "Expected data.mean and data.std together, for images alone; leave both out, or name the other."
        )
    if name in TEXT:
        if path is not None:
            path = (root / path if root is not None else path).expanduser()
        return text.load(name, path, validation=validation, batch_size=batch_size, sequence_length=sequence_length)
    return images.load(
        name,
        (root or Path(os.environ.get(ROOT_VARIABLE) or ".data")).expanduser(),
        seed=seed,
        validation=validation,
        batch_size=batch_size,
        augment=augment,
        download=download,
        workers=workers,
        image_size=image_size,
        mean=mean,
        std=std,
    )


def from_recipe(recipe: Recipe) -> Dataset:
    """Load the data that a recipe names; raises DataError as `load` does."""
    told = recipe.data
    return load(
        told.name,
        root=Path(told.root) if told.root else None,
        seed=recipe.train.seed,
        validation=told.validation,
        batch_size=told.batch_size,
        augment=told.augment,
        download=told.download,
        sequence_length=told.sequence_length,
        workers=told.workers,
        path=Path(told.path) if told.path else None,
        image_size=told.image_size,
        mean=told.mean,
        std=told.std,
    )


def _check(
    name: str, validation: float, batch_size: int, sequence_length: int, workers: int, image_size: int | None
) -> None:
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=3)
        raise DataError(f"There is no data set '{name}'; did you mean {' or '.join(near or NAMES)}?")
    if not 0 <= validation < 1:
        raise DataError(f"Expected a validation share from 0 up to below 1, got {validation}.")
    least = {"batch_size": (batch_size, 1), "sequence_length": (sequence_length, 1), "workers": (workers, 0)}
    if image_size is not None:
        least["image_size"] = (image_size, 1)
    for option, (value, smallest) in least.items():
        if value < smallest:
            raise DataError(f"Expected {option} of at least {smallest}, got {value}.")
