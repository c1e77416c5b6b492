"""A folder of class folders, read into memory where it is small, and file by file where it is not."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from anytime_lct.data.batches import Images, decode, expect_size
from anytime_lct.data.images import IMAGENET, ImageSet
from anytime_lct.errors import DataError
from anytime_lct.pixels import picture_size, shorter_side
from anytime_lct.recipes.recipe import DataRecipe

SMALL_SIDE, IN_MEMORY_BYTES = 64, 2**30
IMAGENET_SIDE = 224
MAX_COMPARED = 1000  # files of a folder whose sizes are compared


@dataclass(frozen=True)
class ClassFolders:
    """The classes of a folder by name, its image files, and the number of each file's class."""

    classes: tuple[str, ...]
    files: list[str]
    labels: list[int]


def read(recipe: DataRecipe, root: Path) -> ImageSet:
    """Read ROOT/train and ROOT/test (or val), each with one folder per class; raises DataError."""
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
    first = decode(train.files[0])
    height, width = first.shape[1:]
    small = height == width == recipe.image_size if recipe.image_size else max(height, width) < SMALL_SIDE
    if small and recipe.image_size:  # then compare the other files
        paths = [*train.files, *test.files]
        small = all(_size(path) == (width, height) for path in paths[:: -(-len(paths) // MAX_COMPARED)])
    in_memory = small and (len(train.files) + len(test.files)) * first.numel() <= IN_MEMORY_BYTES
    side = recipe.image_size or IMAGENET_SIDE
    shape, resize = (tuple(first.shape), None) if small else ((3, side, side), shorter_side(side, side))
    parts = []
    for folder in (train, test):
        pixels = _decoded(folder.files, shape) if in_memory else None
        parts.append(Images(torch.tensor(folder.labels), shape, pixels, folder.files, resize))
    statistics = None if in_memory else IMAGENET
    return ImageSet(parts[0], parts[1], train.classes, statistics, "imagenet" if resize else "crop-flip")


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
    return not name.startswith(".") and name.lower().endswith(IMG_EXTENSIONS)


def _size(path: str) -> tuple[int, int]:
    """Return an image file's width and height; (0, 0) where it is damaged, which `decode` will report."""
    try:
        return picture_size(path)
    except DataError:
        return 0, 0


def _decoded(files: list[str], shape: tuple[int, ...]) -> Tensor:
    images = torch.empty(len(files), *shape, dtype=torch.uint8)
    for number, path in enumerate(files):
        image = decode(path)
        expect_size(path, image, (shape[1], shape[2]))
        images[number] = image
    return images
