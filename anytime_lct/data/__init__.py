"""Data sets by name: images, text, and the two that need nothing (digits and pydoc)."""

from __future__ import annotations

import os
from pathlib import Path

from anytime_lct.data import images, text
from anytime_lct.data.batches import Dataset, Split
from anytime_lct.recipe import TEXT, Recipe

__all__ = ["ROOT_VARIABLE", "Dataset", "Split", "from_recipe"]

ROOT_VARIABLE = "ANYTIME_LCT_DATA"


def from_recipe(recipe: Recipe) -> Dataset:
    """Load the data that a recipe names; raises DataError in one sentence where it is missing or damaged.

    Without data.root, the folder named by the environment variable ANYTIME_LCT_DATA is used, or ./.data.
    """
    told = recipe.data
    root = Path(told.root or os.environ.get(ROOT_VARIABLE) or ".data").expanduser()
    if told.name in TEXT:
        path = Path(told.path).expanduser() if told.path else None
        if path is not None and told.root and not path.is_absolute():
            path = root / path
        return text.load(
            told.name,
            path,
            validation=told.validation,
            batch_size=told.batch_size,
            sequence_length=told.sequence_length,
        )
    return images.load(
        told.name,
        root,
        seed=recipe.train.seed,
        validation=told.validation,
        batch_size=told.batch_size,
        augment=told.augment,
        download=told.download,
        workers=told.workers,
    )
