"""A folder of class folders, read into memory where it is small, and file by file where it is not."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets

from anytime_lct.data.batches import Images, decode, expect_size
from anytime_lct.data.images import IMAGENET, ImageSet
from anytime_lct.errors import DataError
from anytime_lct.pixels import shorter_side
from anytime_lct.recipes.recipe import DataRecipe

SMALL_SIDE, IN_MEMORY_BYTES = 64, 2**30
IMAGENET_SIDE = 224
MAX_COMPARED = 1000  # files of a folder whose sizes are compared


def read(recipe: DataRecipe, root: Path) -> ImageSet:
    """Read ROOT/train and ROOT/test (or val), each with one folder per class; raises DataError."""
    test_root = next((root / part for part in ("test", "val") if (root / part).is_dir()), None)
    if not (root / "train").is_dir() or test_root is None:
        raise DataError(
            f"Expected an image folder with train/ and test/ (or val/), each with one folder per class, in "
            f"'{root.absolute()}', but they are missing; name another with --data-root."
        )
    try:
        train, test = datasets.ImageFolder(str(root / "train")), datasets.ImageFolder(str(test_root))
    except OSError as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise DataError(f"The image folder '{root.absolute()}' cannot be read: {reason}.") from None
    if train.classes != test.classes:
        single = min(set(train.classes) ^ set(test.classes))
        raise DataError(
            f"Expected the same classes in '{root}/train' and '{test_root}', but '{single}' is in one of them "
            f"only; add or remove its folder."
        )
    first = decode(train.samples[0][0])
    height, width = first.shape[1:]
    small = height == width == recipe.image_size if recipe.image_size else max(height, width) < SMALL_SIDE
    if small and recipe.image_size:  # then compare the other files
        paths = [path for path, _ in (*train.samples, *test.samples)]
        small = all(_size(path) == (width, height) for path in paths[:: -(-len(paths) // MAX_COMPARED)])
    in_memory = small and (len(train.samples) + len(test.samples)) * first.numel() <= IN_MEMORY_BYTES
    side = recipe.image_size or IMAGENET_SIDE
    shape, resize = (tuple(first.shape), None) if small else ((3, side, side), shorter_side(side, side))
    parts = []
    for folder in (train, test):
        files = [path for path, _ in folder.samples]
        pixels = _decoded(files, shape) if in_memory else None
        parts.append(Images(torch.tensor(folder.targets), shape, pixels, files, resize))
    statistics = None if in_memory else IMAGENET
    return ImageSet(parts[0], parts[1], tuple(train.classes), statistics, "imagenet" if resize else "crop-flip")


def _size(path: str) -> tuple[int, int]:
    """Read no more than an image file's width and height; (0, 0) where it is damaged, which `decode` will report."""
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return 0, 0


def _decoded(files: list[str], shape: tuple[int, ...]) -> Tensor:
    images = torch.empty(len(files), *shape, dtype=torch.uint8)
    for number, path in enumerate(files):
        image = decode(path)
        expect_size(path, image, (shape[1], shape[2]))
        images[number] = image
    return images
