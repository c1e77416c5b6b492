"""Data sets by name: images, text, two that need no download (digits and pydoc), and those at the user's paths."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from anytime_lct.data import (
    arrays,
    cifar,
    digits,
    factory,
    folders,
    idx,
    npz,
    own,
    pictures,
    rows,
    saved,
    shards,
    tables,
    text,
)
from anytime_lct.data.batches import Dataset
from anytime_lct.data.images import load_images
from anytime_lct.data.locations import kind_of, root_of
from anytime_lct.errors import DataError
from anytime_lct.models.others import made_for
from anytime_lct.recipes.defaults import BUILT_IN
from anytime_lct.recipes.recipe import DataRecipe, Recipe

FORM = "path/to/file.py:FACTORY"
# What lists image files, which may have any size, is a line here.
LISTED: dict[str, pictures.Lister] = {
    "imagefolder": folders.pictures,
    "hf:PATH": tables.pictures,
    "wds:SHARDS": shards.pictures,
}


def _table(recipe: DataRecipe, seed: int) -> Dataset:
    """Load a table, of images or of arrays; raises DataError."""
    if rows.has_images(recipe, root_of(recipe)):
        return load_images(partial(pictures.read, tables.pictures), recipe, seed)
    return arrays.load(rows.give(recipe, root_of(recipe)), recipe, seed)


# Any other data set is a file beside this one and a line here; one on text is named in `recipes.recipe.TEXT` too.
DATA_SETS: dict[str, Callable[[DataRecipe, int], Dataset]] = {
    "digits": partial(load_images, digits.read),
    "mnist": partial(load_images, idx.read_mnist),
    "fashion-mnist": partial(load_images, idx.read_fashion_mnist),
    "cifar10": partial(load_images, cifar.read_cifar10),
    "cifar100": partial(load_images, cifar.read_cifar100),
    **{name: partial(load_images, partial(pictures.read, listed)) for name, listed in LISTED.items()},
    "hf:PATH": _table,
    FORM: partial(own.load, factory.call),
    "npz:FILE": partial(own.load, npz.give),
    "pydoc": text.load_pydoc,
    "text": text.load_file,
}
GREY: frozenset[str] = frozenset({"digits", "mnist", "fashion-mnist"})  # whose images have one channel


def load(recipe: DataRecipe, seed: int = 0) -> Dataset:
    """Load a data set by name; raises DataError where it is missing or damaged, or where its options are wrong.

    `root` is the folder of the data set, in torchvision's layout; without one, that of the environment variable
    ANYTIME_LCT_DATA, or ./.data. `path` is the file or folder of a text, relative to `root` where there is one, and
    `encoding` is how it is decoded, where it is not UTF-8 and has no byte-order mark. `validation` is the share of the
    training images held out by `seed`, or of a text before its test part. With `image_size`, a side or (height, width),
    image files get that size; without, one that suits them (`pictures.network_size`). `mean` and `std` of
    each channel, on pixels scaled to [0, 1], are by default the data set's own, or ImageNet's where files are read on
    demand.

    >>> load(DataRecipe(name="digits", batch_size=64)).num_batches("train")
    21
    """
    if recipe.name == saved.NAME:
        return saved.load(recipe)
    if recipe.name in BUILT_IN and recipe.root is not None:
        raise DataError(
            f"Expected no folder for the data set '{recipe.name}', which is built in, got '{recipe.root}'; name the "
            f"data set that is there, for example --data imagefolder, or leave --data-root out."
        )
    return DATA_SETS[_row(recipe.name)](recipe, seed)


def from_recipe(recipe: Recipe) -> Dataset:
    """Load the data of a recipe; raises DataError as `load` does."""
    return load(sized(recipe).data, recipe.train.seed)


def sized(recipe: Recipe) -> Recipe:
    """Return a recipe that names the size of its images, where they are files of any size; raises DataError.

    It is the size that the recipe names, or one that suits images and network, and never enlarges them.
    """
    if not has_sizes(recipe.data.name) or recipe.data.image_size is not None:
        return recipe
    if kind_of(recipe.data.name) == "hf:" and not rows.has_images(recipe.data, root_of(recipe.data)):
        return recipe
    listed, largest = LISTED[_row(recipe.data.name)], made_for(recipe.model.name)
    height, width = pictures.network_size(listed, recipe.data, root_of(recipe.data), largest)
    size = height if height == width else (height, width)
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"image_size": size})})


def has_sizes(name: str) -> bool:
    """Whether the images of a data set may have any size, so that data.image_size counts."""
    return kind_of(name) in map(kind_of, LISTED)


def expect_known(name: str) -> None:
    """Raise DataError unless there is a data set of that name, which may have a path, as hf:PATH has."""
    _row(name)


def _row(name: str) -> str:
    """Return the key of DATA_SETS for a name, which may have a path; raises DataError."""
    kind = kind_of(name)
    row = next((form for form in DATA_SETS if kind_of(form) == kind), None)
    if row is None:
        near = difflib.get_close_matches(name, DATA_SETS, n=3)
        if Path(name).expanduser().is_dir():
            near = [f"imagefolder, as in --data imagefolder --data-root {name}"]
        raise DataError(f"There is no data set '{name}'; did you mean {' or '.join(near or DATA_SETS)}?")
    return row
