"""A folder of class folders, read into memory where it is small, and file by file where it is not."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from anytime_lct.data.batches import Files, Images
from anytime_lct.data.images import IMAGENET, ImageSet
from anytime_lct.errors import DataError
from anytime_lct.pixels import picture_size, read_picture, shorter_side
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
    """Read ROOT/train and, where it is there, ROOT/test (or val), each with one folder per class; raises DataError."""
    folders, notes = _readable(_parts(root), recipe.skip_unreadable)
    paths = [path for folder in folders for path in folder.files]
    size, alike = choose_size(_sample(paths), recipe.image_size, LARGEST)
    shape, resize = (3, *size), None if alike else shorter_side(*size)
    in_memory = alike and len(paths) * math.prod(shape) <= IN_MEMORY_BYTES
    parts = list[Images]()
    for folder in folders:
        images = Images(torch.tensor(folder.labels), shape, None, Files(folder.files), resize)
        parts.append(dataclasses.replace(images, pixels=_decoded(images)) if in_memory else images)
    augment = "crop-flip" if alike and max(size) <= SMALL_SIDE else "imagenet"
    test = parts[1] if len(parts) > 1 else None
    statistics = None if in_memory else IMAGENET
    return ImageSet(parts[0], test, folders[0].classes, statistics, augment, notes=notes)


def network_size(recipe: DataRecipe, root: Path, largest: int | None = None) -> tuple[int, int]:
    """Return the (height, width) at which a network reads the images of a folder: the recipe's, or what suits them.

    Images that are alike keep their size, if that is at most `largest` (by default 224). Others become squares of that
    side, or of the median of their shorter sides, rounded down to a multiple of 32 where it is large, or of 16. Raises
    DataError.
    """
    paths = [path for folder in _parts(root) for path in folder.files]
    return choose_size(_sample(paths, recipe.skip_unreadable), recipe.image_size, largest or LARGEST)[0]


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


def _sample(paths: list[str], skipped: int = 0) -> list[tuple[int, int]]:
    """Return the sizes of at most so many images, evenly spread, without `skipped` at most that cannot be read.

    Raises DataError where more of them cannot be read.
    """
    sizes = list[tuple[int, int]]()
    for path in paths[:: -(-len(paths) // MAX_COMPARED)]:
        try:
            sizes.append(picture_size(path))
        except DataError:
            skipped -= 1
            if skipped < 0:
                raise
    if not sizes:
        raise DataError(f"Expected images, got none that can be read, among them '{paths[0]}'; repair them.")
    return sizes


def _readable(folders: list[ClassFolders], most: int) -> tuple[list[ClassFolders], tuple[str, ...]]:
    """Leave out files that cannot be read, `most` at most over all parts; return a note that names them, if any.

    With `most` at 0 nothing is read. Raises DataError where more cannot be read, or nothing else is left of a part.
    """
    if not most:
        return folders, ()
    paths = [path for folder in folders for path in folder.files]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        errors = {path: error for path, error in zip(paths, pool.map(_error, paths), strict=True) if error}
    if len(errors) > most:
        raise DataError(
            f"Expected at most data.skip_unreadable = {most} files that cannot be read, got {len(errors)}; the first: "
            f"{next(iter(errors.values()))}"
        )
    rest = list[ClassFolders]()
    for folder in folders:
        pairs = [pair for pair in zip(folder.files, folder.labels, strict=True) if pair[0] not in errors]
        if not pairs:
            raise DataError(f"Expected images, got none that can be read, among them '{folder.files[0]}'; repair them.")
        rest.append(ClassFolders(folder.classes, [path for path, _ in pairs], [label for _, label in pairs]))
    names = ", ".join(errors)
    return rest, (f"Skipped files that cannot be read, {len(errors)}: {names}.",) if errors else ()


def _error(path: str) -> str | None:
    """Return why an image file cannot be read, None where it can."""
    try:
        read_picture(path, path, 3)
    except DataError as error:
        return str(error)
    return None


def _parts(root: Path) -> list[ClassFolders]:
    """List the class folders of the training part and of the test part, if there is one.

    Raises DataError where they are missing or have other classes.
    """
    test_root = next((root / part for part in ("test", "val") if (root / part).is_dir()), None)
    if not (root / "train").is_dir():
        raise DataError(
            f"Expected an image folder with train/, and perhaps test/ (or val/), each with one folder per class, in "
            f"'{root.absolute()}', but train/ is missing; name another with --data-root."
        )
    try:
        train = list_images(root / "train")
        test = train if test_root is None else list_images(test_root)
    except OSError as error:
        raise DataError(f"The image folder '{root.absolute()}' cannot be read: {error.strerror or error}.") from None
    if train.classes != test.classes:
        single = min(set(train.classes) ^ set(test.classes))
        raise DataError(
            f"Expected the same classes in '{root}/train' and '{test_root}', but '{single}' is in one of them "
            f"only; add or remove its folder."
        )
    return [train] if test_root is None else [train, test]


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
