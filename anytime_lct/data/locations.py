"""Where a data set is: in a folder, or at the path in its name, as file.py:FACTORY, hf:PATH, wds:SHARDS, npz:FILE."""

from __future__ import annotations

import os
from pathlib import Path

from anytime_lct.errors import DataError
from anytime_lct.models.files import file_of, with_file, without_folder
from anytime_lct.recipes.recipe import DataRecipe

ROOT_VARIABLE = "ANYTIME_LCT_DATA"
KINDS = ("hf:", "wds:", "npz:")
PATTERN = frozenset("*?[{")


def kind_of(name: str) -> str:
    """Return the kind of data set that a name with a path is of, and any other name as it is.

    >>> kind_of("hf:birds"), kind_of("my/data.py:make"), kind_of("mnist")
    ('hf:', '.py:', 'mnist')
    """
    return ".py:" if file_of(name) is not None else next((kind for kind in KINDS if name.startswith(kind)), name)


def path_of(name: str) -> str:
    """Return PATH of hf:PATH, wds:PATH or npz:PATH."""
    return name.partition(":")[2]


def root_of(recipe: DataRecipe) -> Path:
    """Return the folder of a data set: the recipe's, that of its own file, of the environment variable, or ./.data.

    The path in a name such as hf:PATH is relative to the recipe's folder, or to the working directory.
    """
    own = file_of(recipe.name)
    if own is not None and recipe.root is None:
        return own.absolute().parent
    other = "" if kind_of(recipe.name) in KINDS else os.environ.get(ROOT_VARIABLE) or ".data"
    return Path(recipe.root or other).expanduser()


def located(recipe: DataRecipe, folder: Path) -> DataRecipe:
    """Return a recipe whose paths are absolute instead of relative to `folder`.

    Of hf:PATH, wds:SHARDS and npz:FILE the name keeps the last part, and patterns: `root`, which --data-root replaces,
    is the rest.
    """
    name, root, path, tokenizer = recipe.name, recipe.root, recipe.path, recipe.tokenizer
    tokenizer = None if tokenizer is None else absolute(tokenizer, folder)
    root = None if root is None else absolute(root, folder)
    if kind_of(name) in KINDS:
        whole = Path(os.path.normpath(Path(root or folder, Path(path_of(name)).expanduser())))
        fixed = next((k for k, part in enumerate(whole.parts) if PATTERN & set(part)), len(whole.parts))
        start = min(fixed, len(whole.parts) - 1)
        root, name = str(Path(*whole.parts[:start])), f"{kind_of(name)}{Path(*whole.parts[start:])}"
    elif path is not None and (root is None or Path(path).is_absolute()):
        file = Path(absolute(path, folder))
        root, path = str(file.parent), file.name
    if (own := file_of(name)) is not None:
        name = with_file(name, Path(absolute(str(own), folder)))
    return recipe.model_copy(update={"name": name, "root": root, "path": path, "tokenizer": tokenizer})


def shown(name: str) -> str:
    """Return the name of a data set without the folder of its path, as a bundle shows it to others.

    >>> shown("hf:/home/me/birds"), shown("my/data.py:make"), shown("mnist")
    ('hf:birds', 'data.py:make', 'mnist')
    """
    return f"{kind_of(name)}{Path(path_of(name)).name}" if kind_of(name) in KINDS else without_folder(name)


def absolute(path: str, folder: Path | None = None) -> str:
    """Return a path as an absolute one, relative to `folder` or the working directory until then."""
    return str(((folder or Path.cwd()) / Path(path).expanduser()).resolve())


def missing(path: Path, get: str) -> DataError:
    """Return the error for hf:PATH, wds:PATH or npz:PATH where nothing is; `get` says how to come by one."""
    return DataError(f"Expected data on this machine, but '{path}' is not there, and nothing is downloaded; {get}.")
