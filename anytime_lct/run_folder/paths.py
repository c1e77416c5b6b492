"""Where the files of a run are, so that it works from any working directory, and after a file or itself has moved.

The recipe in a run folder names files by absolute paths, or relative to the run folder. The files of the user's network
and of the user's data set, with the modules beside them that they import, are copied into the run; weights to start
from are not, but their sums are stored.

RUN/network/  data/  sources.json    the copies; where they were, and sha256 sums by path
RUN/data/tokenizer.json              what makes tokens of texts
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from anytime_lct import disk
from anytime_lct.data import locations
from anytime_lct.data.saved import NAME as SAVED
from anytime_lct.errors import CheckpointError, RecipeError
from anytime_lct.exits.profile import WEIGHTS
from anytime_lct.models.files import file_of, with_file
from anytime_lct.models.imports import import_root, local_files
from anytime_lct.recipes.defaults import BUILT_IN
from anytime_lct.recipes.recipe import Recipe

NETWORK, DATA, TOKENIZER, SOURCES, DEFAULT_ROOT, DEFAULT_WEIGHTS = (
    "network",
    "data",
    "tokenizer.json",
    "sources.json",
    ".data",
    "default",
)


class Sources(disk.Record):
    """The files that a run depends on: sha256 sums by path, which is relative to the run folder for those in it.

    `network` and `data` are the names of the user's network and data set where they were when they were copied.
    """

    format: Literal[1] = 1
    network: str | None = None
    data: str | None = None
    sums: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class Changes:
    """What may change when a run is used again: its epochs in total, and where its data and its network are now."""

    epochs: int | None = None
    data_root: str | None = None
    model: str | None = None


UNCHANGED = Changes()


def changed(recipe: Recipe, changes: Changes) -> Recipe:
    """Return a run's recipe with changes, whose paths are relative to the working directory; raises RecipeError."""
    data, model, train = recipe.data, recipe.model, recipe.train
    if changes.data_root is not None:
        data = data.model_copy(update={"root": locations.absolute(changes.data_root)})
    if changes.model is not None:
        model = model.model_copy(update={"name": _located(changes.model, Path.cwd())})
    if changes.epochs is not None:
        if changes.epochs < train.epochs:
            raise RecipeError(
                f"Expected --epochs of at least {train.epochs}, the epochs of the whole run, got {changes.epochs}; "
                f"leave it out to finish the run as it is, or give more to extend it."
            )
        train = train.model_copy(update={"epochs": changes.epochs})
    return recipe.model_copy(update={"data": data, "model": model, "train": train})


def absolute(recipe: Recipe, folder: Path) -> Recipe:
    """Return a recipe whose paths are absolute instead of relative to `folder`."""
    data, model, weights = locations.located(recipe.data, folder), recipe.model, recipe.train.weights
    if weights is not None and weights != DEFAULT_WEIGHTS:
        weights = locations.absolute(weights, folder)
    train = recipe.train.model_copy(update={"weights": weights})
    model = model.model_copy(update={"name": _located(model.name, folder)})
    return recipe.model_copy(update={"data": data, "model": model, "train": train})


def store(recipe: Recipe, run: Path) -> Recipe:
    """Copy the user's network and data set into a run, write sources.json, and return the recipe to store.

    A data set whose folder is neither in the recipe nor in the environment is where it is now: in ./.data, or beside
    its own file. Raises CheckpointError.
    """
    recipe = absolute(recipe, Path.cwd())
    if recipe.data.name == SAVED:
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"root": "."})})
    data, weights = recipe.data, recipe.train.weights or DEFAULT_WEIGHTS
    own = file_of(data.name)
    if data.root is None and own is not None:
        data = data.model_copy(update={"root": str(own.parent)})
    elif data.root is None and data.name not in BUILT_IN and not os.environ.get(locations.ROOT_VARIABLE):
        data = data.model_copy(update={"root": locations.absolute(DEFAULT_ROOT)})
    files = [] if weights == DEFAULT_WEIGHTS else [Path(weights)]
    if files and files[0].is_dir():
        files = [files[0] / name for name in WEIGHTS]
    sums = {str(file): _sum(file) for file in files if file.is_file()}
    data_name, data_sums = _copied(data.name, run, DATA)
    if data_sums:
        data = data.model_copy(update={"name": data_name})
    if sums or data_sums:
        _write(run, Sources(data=recipe.data.name if data_sums else None, sums=sums | data_sums))
    return copy_network(recipe.model_copy(update={"data": data}), run)


def store_tokenizer(recipe: Recipe, tokenizer: str, length: int, run: Path) -> Recipe:
    """Write the tokenizer of a run's texts, as its JSON, into the run, and return the recipe that names it.

    So the run makes the same tokens of its texts, `length` of each, wherever it came from. Raises CheckpointError.
    """
    (run / DATA).mkdir(exist_ok=True)
    disk.write(run / DATA / TOKENIZER, tokenizer, CheckpointError)
    update = {"tokenizer": f"{DATA}/{TOKENIZER}", "tokens": length}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=update)})


def copy_network(recipe: Recipe, run: Path) -> Recipe:
    """Copy the user's network into a run, note it in sources.json, and return the recipe with the copy."""
    name, sums = _copied(recipe.model.name, run, NETWORK)
    if not sums:
        return recipe
    sources = read_sources(run)
    others = {path: digest for path, digest in sources.sums.items() if Path(path).parts[0] != NETWORK}
    _write(run, sources.model_copy(update={"network": recipe.model.name, "sums": others | sums}))
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": name})})


def _copied(name: str, run: Path, folder: str) -> tuple[str, dict[str, str]]:
    """Copy the file of a factory, and what it imports beside it, into a folder of the run; return its name and sums."""
    file = file_of(name)
    if file is None:
        return name, {}
    file, root, sums = file.resolve(), import_root(file), dict[str, str]()
    contents = {source.relative_to(root): source.read_bytes() for source in local_files(file)}
    shutil.rmtree(run / folder, ignore_errors=True)
    for path, content in contents.items():
        copy = run / folder / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        sums[f"{folder}/{path.as_posix()}"] = disk.write(copy, content, CheckpointError)
    return with_file(name, Path(folder, file.relative_to(root))), sums


def read_sources(run: Path) -> Sources:
    """Read a run's sources.json; empty where it has none. Raises CheckpointError."""
    path = run / SOURCES
    if not path.exists():
        return Sources()
    return disk.parse(Sources, disk.read_text(path, CheckpointError, REMEDY), path, CheckpointError, REMEDY)


def expect_unaltered(run: Path, folders: tuple[str, ...]) -> None:
    """Raise CheckpointError where the copies of files in these folders of a run have changed since."""
    sources = read_sources(run)
    remedies = {
        NETWORK: f"restore it from '{sources.network}', or {REMEDY}",
        DATA: f"restore it from '{sources.data}', or train a new run",
    }
    for path, digest in sources.sums.items():
        if (folder := Path(path).parts[0]) in folders:
            _expect_sum(run / path, digest, run, remedies[folder])


def expect_weights_unaltered(run: Path) -> None:
    """Raise CheckpointError where the weights that a run starts from have changed since."""
    for path, digest in read_sources(run).sums.items():
        if Path(path).is_absolute():
            _expect_sum(Path(path), digest, run, "restore it or train a new run")


def _expect_sum(file: Path, digest: str, run: Path, remedy: str) -> None:
    if not file.is_file() or _sum(file) != digest:
        raise CheckpointError(
            f"Expected '{file}' as it was when the run '{run}' started, got it altered or missing; {remedy}."
        )


REMEDY = "name the network's file with --model path/to/file.py:FACTORY"


def _sum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _write(run: Path, sources: Sources) -> None:
    disk.write(run / SOURCES, sources.model_dump_json(indent=1) + "\n", CheckpointError)


def _located(name: str, folder: Path) -> str:
    """Return the name of a network, with its file, if it has one, by an absolute path."""
    file = file_of(name)
    return name if file is None else with_file(name, Path(locations.absolute(str(file), folder)))
