"""Image files of any size: the size at which a network reads them, and whether they are read on demand or at once."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils import data

from anytime_lct.data.batches import Files, Images, ImageSource, ImageSources, opened
from anytime_lct.data.images import IMAGENET, ImageSet
from anytime_lct.errors import DataError
from anytime_lct.pixels import picture_size, read_picture, shorter_side
from anytime_lct.recipes.recipe import DataRecipe

LARGEST = 224  # side of a network's input, where nothing names another
ALIKE = 0.9  # share of the images that have one size
SMALL_SIDE, IN_MEMORY_BYTES = 128, 2**30  # images up to this side are moved, larger ones zoomed
MAX_COMPARED = 1000  # files whose sizes are compared
# The names under which data sets have each part; the first that is there counts.
PART_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


@dataclass(frozen=True)
class PicturePart:
    """The image files of one part of a data set, and the number of each one's class."""

    sources: ImageSources
    labels: Sequence[int]

    def without(self, numbers: Collection[int]) -> PicturePart:
        """Return the part without the files of these numbers."""
        rest = [number for number in range(len(self.labels)) if number not in numbers]
        sources: Any = self.sources
        return PicturePart(data.Subset(sources, rest), [self.labels[number] for number in rest])


@dataclass(frozen=True)
class Pictures:
    """The image files of a data set, the names of its classes, and notes; parts that it does not have are None."""

    classes: tuple[str, ...]
    train: PicturePart
    validation: PicturePart | None = None
    test: PicturePart | None = None
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> dict[str, PicturePart]:
        """The parts that are there, by name."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}


Lister = Callable[[DataRecipe, Path], Pictures]


def read(listed: Lister, recipe: DataRecipe, root: Path) -> ImageSet:
    """Read the image files that `listed` gives, into memory where they are alike and few; raises DataError."""
    pictures, notes = _readable(listed(recipe, root), recipe.skip_unreadable)
    size, alike = choose_size(_sample(pictures), recipe.image_size, LARGEST)
    shape, resize = (3, *size), None if alike else shorter_side(*size)
    count = sum(len(part.labels) for part in pictures.parts.values())
    in_memory = alike and count * math.prod(shape) <= IN_MEMORY_BYTES
    parts = dict[str, Images]()
    for name, part in pictures.parts.items():
        images = Images(torch.tensor(part.labels), shape, None, Files(part.sources), resize)
        parts[name] = dataclasses.replace(images, pixels=_decoded(images)) if in_memory else images
    augment = "crop-flip" if alike and max(size) <= SMALL_SIDE else "imagenet"
    return ImageSet(
        parts["train"], parts.get("test"), pictures.classes, None if in_memory else IMAGENET, augment,
        parts.get("validation"), pictures.notes + notes,
    )  # fmt: skip


def network_size(listed: Lister, recipe: DataRecipe, root: Path, largest: int | None = None) -> tuple[int, int]:
    """Return the (height, width) at which a network reads the image files that `listed` gives: one that suits them.

    Images that are alike keep their size, if that is at most `largest` (by default 224). Others become squares of that
    side, or of the median of their shorter sides, rounded down to a multiple of 32 where it is large, or of 16. Raises
    DataError.
    """
    sizes = _sample(listed(recipe, root), recipe.skip_unreadable)
    return choose_size(sizes, recipe.image_size, largest or LARGEST)[0]


def choose_size(
    sizes: list[tuple[int, int]], image_size: int | tuple[int, int] | None, largest: int
) -> tuple[tuple[int, int], bool]:
    """Return the size (height, width) of a network's input for images of `sizes`, and whether nearly all have it.

    >>> choose_size([(64, 64)] * 9 + [(50, 80)], None, 224)
    ((64, 64), True)
    >>> choose_size([(64, 64), (170, 200), (150, 100)], None, 224)  # 100 is the median of the shorter sides
    ((96, 96), False)
    """
    common, count = Counter(sizes).most_common(1)[0]
    uniform = count >= ALIKE * len(sizes)
    if image_size is not None:
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
    elif uniform and max(common) <= largest:
        size = common
    else:
        side = int(median(min(size) for size in sizes))
        step = 32 if side >= 128 else 16 if side >= 32 else 1
        side = min(largest, side - side % step)
        size = (side, side)
    return size, uniform and size == common


def _sample(pictures: Pictures, skipped: int = 0) -> list[tuple[int, int]]:
    """Return the sizes of at most so many images, evenly spread, without `skipped` at most that cannot be read.

    Raises DataError where more of them cannot be read.
    """
    sources = _sources(pictures)
    sizes = list[tuple[int, int]]()
    for number in range(0, len(sources), -(-len(sources) // MAX_COMPARED)):
        try:
            sizes.append(picture_size(*opened(sources[number])))
        except DataError:
            skipped -= 1
            if skipped < 0:
                raise
    if not sizes:
        raise _nothing_readable(sources)
    return sizes


def _readable(pictures: Pictures, most: int) -> tuple[Pictures, tuple[str, ...]]:
    """Leave out files that cannot be read, `most` at most over all parts; return a note that names them, if any.

    With `most` at 0 nothing is read. Raises DataError where more cannot be read, or nothing else is left of a part.
    """
    if not most:
        return pictures, ()
    damaged = {name: _damaged(part) for name, part in pictures.parts.items()}
    reasons = [reason for part in damaged.values() for reason in part.values()]
    if len(reasons) > most:
        raise DataError(
            f"Expected at most data.skip_unreadable = {most} files that cannot be read, got {len(reasons)}; the first: "
            f"{reasons[0]}"
        )
    if not reasons:
        return pictures, ()
    for name, part in pictures.parts.items():
        if len(damaged[name]) == len(part.labels):
            raise _nothing_readable(part.sources)
    names = [opened(part.sources[number])[1] for name, part in pictures.parts.items() for number in damaged[name]]
    rest = {name: part.without(damaged[name]) for name, part in pictures.parts.items()}
    note = f"Skipped files that cannot be read, {len(names)}: {', '.join(names)}."
    return dataclasses.replace(pictures, **rest), (note,)


def _damaged(part: PicturePart) -> dict[int, str]:
    """Return why files of a part cannot be read, by number."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reasons = pool.map(lambda number: _reason(part.sources[number]), range(len(part.labels)))
        return {number: reason for number, reason in enumerate(reasons) if reason}


def _reason(source: ImageSource) -> str | None:
    """Return why an image file cannot be read, None where it can."""
    try:
        read_picture(*opened(source), 3)
    except DataError as error:
        return str(error)
    return None


def _nothing_readable(sources: ImageSources) -> DataError:
    name = opened(sources[0])[1]
    return DataError(f"Expected images, got none that can be read, among them '{name}'; repair them.")


def _sources(pictures: Pictures) -> ImageSources:
    """Return the files of all parts, one part after another."""
    parts: list[Any] = [part.sources for part in pictures.parts.values()]
    whole: Any = data.ConcatDataset(parts)
    return whole


def _decoded(images: Images) -> Tensor:
    pixels = torch.empty(len(images.labels), *images.shape, dtype=torch.uint8)
    for number in range(len(pixels)):
        pixels[number] = images.view(torch.tensor([number]))[0]
    return pixels
