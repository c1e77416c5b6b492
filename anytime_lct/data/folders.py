"""A folder of images: parts, each with one folder per class, or one folder per class alone."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from anytime_lct.data.pictures import PART_NAMES, PicturePart, Pictures
from anytime_lct.errors import DataError
from anytime_lct.pixels import EXTENSIONS
from anytime_lct.recipes.recipe import DataRecipe

FORM = "with train/, and perhaps test/ (or val/), each with one folder per class,"
HIDDEN = (".", "__MACOSX", "@eaDir")  # the beginnings of what people do not see, or what archives and disks add


@dataclass(frozen=True)
class ClassFolders:
    """The classes of a folder by name, its image files, the number of each file's class, and counts of other files."""

    classes: tuple[str, ...]
    files: list[str]
    labels: list[int]
    others: Counter[str] = field(default_factory=Counter)


def pictures(recipe: DataRecipe, root: Path) -> Pictures:
    """List the images of ROOT/train and, where they are there, of ROOT/val and ROOT/test; val alone is the test part.

    Without these, folders of images in ROOT are the classes. Other parts may lack classes of the training part. Raises
    DataError where folders are missing or have classes that the training part lacks.
    """
    try:
        roots = _parts(root)
        folders = {"train": list_images(roots["train"])}
        classes = folders["train"].classes
        folders |= {part: list_images(path, classes) for part, path in roots.items() if part != "train"}
    except OSError as error:
        raise DataError(f"The image folder '{root.absolute()}' cannot be read: {error.strerror or error}.") from None
    parts = {part: PicturePart(folder.files, folder.labels) for part, folder in folders.items()}
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    notes = tuple(note for part, folder in folders.items() if (note := _absent(roots[part], folder)))
    if others := sum((folder.others for folder in folders.values()), Counter[str]()):
        notes += (f"Left out files whose extension is not that of an image: {_counts(others)}.",)
    return Pictures(classes, parts["train"], parts.get("validation"), parts.get("test"), notes)


def among_images(path: Path, root: Path) -> bool:
    """Return whether a folder would be listed with the images of a data set: it is `root`, or in one of its parts."""
    path, root = path.resolve(), root.resolve()
    first = path.relative_to(root).parts[:1] if path.is_relative_to(root) else ("..",)
    parts = {name for names in PART_NAMES.values() for name in names}
    return not first or first[0] in parts or (first[0] != ".." and not (root / "train").is_dir())


def list_images(root: Path, classes: tuple[str, ...] | None = None) -> ClassFolders:
    """List the class folders of `root`, and the image files below them, in torchvision's order.

    Hidden folders and files, such as .ipynb_checkpoints and ._0.png, are left out, and so are pipes. `classes` are
    those of the training part, of which others may lack some. Raises DataError for a class without images, unknown, or
    with a name that is not UTF-8, and OSError.
    """
    names = _folders(root)
    files, labels, others = list[str](), list[int](), Counter[str]()
    for name in names:
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        if shown != name:
            raise DataError(f"Expected class folders named in UTF-8, got '{shown}' in '{root}'; rename it.")
        images, other = _files(root, name)
        others += other
        if classes is None and not images:
            kinds = f", but files of other kinds than {' '.join(EXTENSIONS)}: {_counts(other)}" if other else ""
            raise DataError(
                f"Expected images in every class folder of '{root}', got none in '{name}'{kinds}; add some, or remove "
                f"the folder."
            )
        if classes is not None and images and name not in classes:
            raise DataError(
                f"Expected in '{root}' the classes of the training part, {', '.join(classes[:5])}"
                f"{' ..' * (len(classes) > 5)}, but '{name}' is not among them; rename or remove its folder, or add "
                f"training images."
            )
        files += images
        labels += [(classes or names).index(name)] * len(images)
    if not files:
        raise DataError(f"Expected one folder per class in '{root}', got none; add them.")
    return ClassFolders(classes or names, files, labels, others)


def _parts(root: Path) -> dict[str, Path]:
    """Return the folder of every part that is there, by the name of the part; raises DataError without training."""
    there = {part: next((root / n for n in names if (root / n).is_dir()), None) for part, names in PART_NAMES.items()}
    roots = {part: path for part, path in there.items() if path is not None}
    if "train" in roots:
        return roots
    if not root.is_dir():
        got = "a file; unpack it, or name" if root.exists() else "nothing; name"
        raise DataError(f"Expected an image folder {FORM} at '{root.absolute()}', got {got} another with --data-root.")
    folders, above = _folders(root), root.absolute().parent
    near = [path for path in (above, *(root.absolute() / name for name in folders)) if (path / "train").is_dir()]
    bare = [name for name in folders if not _has_images(root / name)]
    if not roots and not near and len(folders) > 1 and not bare:
        return {"train": root}
    remedy = f"did you mean --data-root {near[0]}?" if near else "rename a folder, or name another with --data-root."
    if bare and len(folders) - len(bare) > 1:
        remedy = f"move the folders of classes into train/, or {bare[0]}, which has no images of its own, elsewhere."
    raise DataError(
        f"Expected an image folder {FORM} or with folders of images, one per class, in '{root.absolute()}', but train/ "
        f"is missing, beside {', '.join(folders[:5]) or 'no other folder'}{' ..' * (len(folders) > 5)}; {remedy}"
    )


def _absent(root: Path, folder: ClassFolders) -> str | None:
    """Return a note of the classes that a part has no images of, None where there is none."""
    present = set(folder.labels)
    absent = [name for label, name in enumerate(folder.classes) if label not in present]
    shown = f"{', '.join(absent[:5])}{' ..' * (len(absent) > 5)}"
    return f"'{root}' has no images of {len(absent):,} of the classes: {shown}." if absent else None


def _folders(root: Path) -> tuple[str, ...]:
    return tuple(sorted(each.name for each in os.scandir(root) if each.is_dir() and not each.name.startswith(HIDDEN)))


def _files(root: Path, name: str) -> tuple[list[str], Counter[str]]:
    """Return the image files below a class folder, in torchvision's order, and counts of its other files' suffixes."""
    images, others = list[str](), Counter[str]()
    for folder, _, names in sorted(os.walk(root / name, followlinks=True)):
        if any(part.startswith(HIDDEN) for part in Path(folder).relative_to(root).parts):
            continue
        for path in (Path(folder, file) for file in sorted(names) if not file.startswith(HIDDEN)):
            if path.is_file() and _is_image(path.name):
                images.append(str(path))
            elif path.is_file():
                others[path.suffix.lower()] += 1
    return images, others


def _counts(others: Counter[str]) -> str:
    return ", ".join(f"{count:,} {suffix or 'without one'}" for suffix, count in others.most_common(5))


def _has_images(folder: Path) -> bool:
    return any(_is_image(path.name) for path in folder.iterdir())


def _is_image(name: str) -> bool:
    return not name.startswith(HIDDEN) and name.lower().endswith(EXTENSIONS)
