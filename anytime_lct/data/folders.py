"""A folder of class folders, read into memory where it is small, and file by file where it is not."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from anytime_lct.data.batches import Files, Images
from anytime_lct.data.images import IMAGENET, ImageSet
from anytime_lct.errors import DataError
from anytime_lct.pixels import picture_size, shorter_side
from anytime_lct.recipes.recipe import DataRecipe

EXTENSIONS = (*IMG_EXTENSIONS, ".gif", ".jfif", ".avif")
LARGEST = 224  # side of a network's input, where nothing names another
ALIKE = 0.9  # share of the images that have one size
SMALL_SIDE, IN_MEMORY_BYTES = 128, 2**30  # images up to this side are moved, larger ones zoomed
MAX_COMPARED = 1000  # files of a folder whose sizes are compared


@dataclass(frozen=True)
class ClassFolders:
    """The classes of a folder by name, its image files, and the number of each file's class."""

    classes: tuple[str, ...]
    files: list[str]
    labels: list[int]


def read(recipe: DataRecipe, root: Path) -> ImageSet:
    """Read ROOT/train and ROOT/test (or val), each with one folder per class; raises DataError."""
    train, test = _parts(root)
    paths = [*train.files, *test.files]
    size, alike = choose_size(_sample(paths), recipe.image_size, LARGEST)
    shape, resize = (3, *size), None if alike else shorter_side(*size)
    in_memory = alike and len(paths) * math.prod(shape) <= IN_MEMORY_BYTES
    parts = []
    for folder in (train, test):
        images = Images(torch.tensor(folder.labels), shape, None, Files(folder.files), resize)
        parts.append(dataclasses.replace(images, pixels=_decoded(images)) if in_memory else images)
    augment = "crop-flip" if alike and max(size) <= SMALL_SIDE else "imagenet"
    return ImageSet(parts[0], parts[1], train.classes, None if in_memory else IMAGENET, augment)


def network_size(recipe: DataRecipe, root: Path, largest: int | None = None) -> tuple[int, int]:
    """Return the (height, width) at which a network reads the images of a folder: the recipe's, or what suits them.

    Images that are alike keep their size, if that is at most `largest` (by default 224). Others become squares of that
    side, or of the median of their shorter sides, rounded down to a multiple of 32 where it is large, or of 16. Raises
    DataError.
    """
    train, test = _parts(root)
    return choose_size(_sample([*train.files, *test.files]), recipe.image_size, largest or LARGEST)[0]


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


def _sample(paths: list[str]) -> list[tuple[int, int]]:
    """Return the sizes of at most so many images, evenly spread; raises DataError where one of them cannot be read."""
    return [picture_size(path) for path in paths[:: -(-len(paths) // MAX_COMPARED)]]


def _parts(root: Path) -> tuple[ClassFolders, ClassFolders]:
    """List the class folders of both parts; raises DataError where they are missing or have other classes."""
    test_root = next((root / part for part in ("test", "val") if (root / part).is_dir()), None)
    if not (root / "train").is_dir() or test_root is None:
        raise DataError(
            f"Expected an image folder with train/ and test/ (or val/), each with one folder per class, in "
            f"'{root.absolute()}', but they are missing; name another with --data-root."
        )
    try:
        train, test = list_images(root / "train"), list_images(test_root)
    except OSError as error:
        raise DataError(f"The image folder '{root.absolute()}' cannot be read: {error.strerror or error}.") from None
    if train.classes != test.classes:
        single = min(set(train.classes) ^ set(test.classes))
        raise DataError(
            f"Expected the same classes in '{root}/train' and '{test_root}', but '{single}' is in one of them "
            f"only; add or remove its folder."
        )
    return train, test


def list_images(root: Path) -> ClassFolders:
    """List the class folders of `root`, and the image files below them, in torchvision's order.

    Hidden folders and files, such as .ipynb_checkpoints and ._0.png, are left out, and so are pipes. Raises DataError
    for a class without images or with a name that is not UTF-8, and OSError.
    """
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    files, labels = list[str](), list[int]()
    for label, name in enumerate(classes):
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        if shown != name:
            raise DataError(f"Expected class folders named in UTF-8, got '{shown}' in '{root}'; rename it.")
        images = [
            path
            for folder, _, names in sorted(os.walk(root / name, followlinks=True))
            if f"{os.sep}." not in folder.removeprefix(str(root))
            for path in (f"{folder}{os.sep}{file}" for file in sorted(names) if _is_image(file))
            if Path(path).is_file()
        ]
        if not images:
            raise DataError(f"Expected images in every class folder of '{root}', got none in '{name}'; add some.")
        files += images
        labels += [label] * len(images)
    if not classes:
        raise DataError(f"Expected one folder per class in '{root}', got none; add them.")
    return ClassFolders(tuple(classes), files, labels)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(EXTENSIONS)


def _decoded(images: Images) -> Tensor:
    pixels = torch.empty(len(images.labels), *images.shape, dtype=torch.uint8)
    for number in range(len(pixels)):
        pixels[number] = images.view(torch.tensor([number]))[0]
    return pixels
