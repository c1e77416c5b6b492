"""A folder of images: parts, each with one folder per class."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from anytime_lct.data.pictures import PicturePart, Pictures
from anytime_lct.errors import DataError
from anytime_lct.recipes.recipe import DataRecipe

EXTENSIONS = (*IMG_EXTENSIONS, ".gif", ".jfif", ".avif")


@dataclass(frozen=True)
class ClassFolders:
    """The classes of a folder by name, its image files, and the number of each file's class."""

    classes: tuple[str, ...]
    files: list[str]
    labels: list[int]


def pictures(recipe: DataRecipe, root: Path) -> Pictures:
    """List the images of ROOT/train and, where they are there, of ROOT/val and ROOT/test; val alone is the test part.

    Raises DataError where folders are missing or have other classes.
    """
    roots = {part: root / part for part in ("train", "val", "test") if (root / part).is_dir()}
    if "train" not in roots:
        raise DataError(
            f"Expected an image folder with train/, and perhaps test/ (or val/), each with one folder per class, in "
            f"'{root.absolute()}', but train/ is missing; name another with --data-root."
        )
    try:
        folders = {part: list_images(path) for part, path in roots.items()}
    except OSError as error:
        raise DataError(f"The image folder '{root.absolute()}' cannot be read: {error.strerror or error}.") from None
    classes = folders["train"].classes
    for part, folder in folders.items():
        if folder.classes != classes:
            single = min(set(folder.classes) ^ set(classes))
            raise DataError(
                f"Expected the same classes in '{roots['train']}' and '{roots[part]}', but '{single}' is in one of "
                f"them only; add or remove its folder."
            )
    parts = {part: PicturePart(folder.files, folder.labels) for part, folder in folders.items()}
    if "test" in parts:
        return Pictures(classes, parts["train"], parts.get("val"), parts["test"])
    return Pictures(classes, parts["train"], test=parts.get("val"))


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
