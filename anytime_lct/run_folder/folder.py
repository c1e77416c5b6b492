"""The run folder: the files that a training run writes, and the trained network read from them.

RUN/recipe.toml  facts.json  environment.json     the recipe, the facts of the data, the machine
RUN/network/  data/  sources.json                 files of the user's own network and data, and sums (`paths`)
RUN/arrays/                                       what a network of the user's own program is measured on (`data.saved`)
RUN/checkpoints/  metrics.jsonl                   progress, and what a run resumes from
RUN/tensorboard/  log.jsonl  mlflow.json  ..      curves, by the loggers of the run (`training.logs`)
RUN/main.safetensors  critics.safetensors         the trained weights
RUN/descent.jsonl  memory.json                    sufficient descent, where tracked; peak memory of every process
RUN/profile.json  exits.png  descent.png          cost and quality of every exit (analyze)
RUN/thresholds.json                               where samples stop within a mean budget (thresholds)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from anytime_lct import __version__, disk
from anytime_lct.data import datasets, saved
from anytime_lct.data.batches import Dataset
from anytime_lct.data.loaders import OWN
from anytime_lct.errors import CheckpointError, DataError, ProfileError
from anytime_lct.exits import profile
from anytime_lct.exits.profile import Profile
from anytime_lct.models.files import without_folder
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes import reading
from anytime_lct.recipes.recipe import Recipe
from anytime_lct.run_folder import paths
from anytime_lct.run_folder.build import build_network
from anytime_lct.run_folder.checkpoint import load_tensors, save_tensors
from anytime_lct.run_folder.paths import UNCHANGED, Changes
from anytime_lct.task import Facts

RECIPE, FACTS, ENVIRONMENT, METRICS = "recipe.toml", saved.FACTS, "environment.json", "metrics.jsonl"
(MAIN, CRITICS), PROFILE, PICTURE = profile.WEIGHTS, profile.NAME, "exits.png"
CHECKPOINTS, TENSORBOARD, LOG = "checkpoints", "tensorboard", "log.jsonl"
DESCENT, DESCENT_PICTURE, MEMORY = "descent.jsonl", "descent.png", "memory.json"


@dataclasses.dataclass(frozen=True)
class OpenedRun:
    """The contents of a run folder: its recipe, the facts of its data, and the network with its trained weights."""

    path: Path
    recipe: Recipe
    facts: Facts
    network: LCTNetwork

    @property
    def model(self) -> str:
        """The name of the network, without the folder of its file."""
        return without_folder(self.recipe.model.name)

    def load_data(self) -> Dataset:
        """Load the run's data; raises DataError where it is missing or other data."""
        data = datasets.from_recipe(self.recipe)
        expect_same_data(self.path, self.facts, data.facts)
        return data


def create(path: Path, recipe: Recipe, facts: Facts) -> None:
    """Make a new run folder; raises CheckpointError where the folder has a run already."""
    if (path / RECIPE).exists():
        raise CheckpointError(
            f"The folder '{path}' holds a run already; continue it with --resume or choose another --run-dir."
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"Expected a folder that can be written, got '{path}': {error.strerror or error}; choose another --run-dir."
        ) from None
    recipe = paths.store(recipe, path)
    if facts.tokenizer:
        recipe = paths.store_tokenizer(recipe, facts.tokenizer, facts.input_shape[0], path)
    for name, record in ((FACTS, dataclasses.asdict(facts)), (ENVIRONMENT, environment())):
        disk.write(path / name, json.dumps(record, indent=1) + "\n", CheckpointError, "choose another --run-dir")
    reading.write(recipe, path / RECIPE)  # last: a folder with a recipe is a run


def rewrite(path: Path, changes: Changes) -> Recipe:
    """Change the recipe of a run, copy a network that is at another place into it, and return the earlier recipe."""
    earlier = reading.read(path / RECIPE)
    recipe = paths.changed(earlier, changes)
    if changes.model is not None:
        recipe = paths.copy_network(recipe, path)
    reading.write(recipe, path / RECIPE)
    return earlier


def open_run(path: Path, changes: Changes = UNCHANGED) -> OpenedRun:
    """Open a run folder with its trained weights; raises CheckpointError where it is incomplete.

    `changes` are where its data and its network are now, where they have moved or the run has no name for them.
    """
    recipe, facts = read(path, changes)
    if recipe.model.name == OWN:
        raise CheckpointError(
            f"The network of the run '{path}' is one of a Python program, which no other can build; name a factory of "
            f"it with --model path/to/file.py:FACTORY, or use it in that program: analyze(network, data)."
        )
    for name in (MAIN, CRITICS):
        if not (path / name).exists():
            raise CheckpointError(
                f"The run '{path}' has no weights yet ('{name}' is missing); finish it with --resume."
            )
    main, critics = load_tensors(path / MAIN), load_tensors(path / CRITICS)
    whole = not critics and recipe.train.exit is None  # one exit, the main one
    network = build_network(recipe, facts, whole=whole, compare=False)
    network.load(main, critics)
    return OpenedRun(path, recipe, facts, network.eval())


def expect_resumable(path: Path) -> None:
    """Raise CheckpointError for a run of the user's own program, which alone has its network or its training data."""
    recipe, is_saved = reading.read(path / RECIPE), (path / MAIN).exists() and not (path / METRICS).exists()
    if recipe.data.name == saved.NAME or is_saved:
        raise CheckpointError(
            f"Expected a run of `anytime-lct train` to continue, got '{path}', whose loop is in a Python program; "
            f"continue it there, or start another run from its weights: --weights {path}."
        )


def read(path: Path, changes: Changes = UNCHANGED) -> tuple[Recipe, Facts]:
    """Read a run folder's recipe, with absolute paths and with changes, and the facts of its data.

    Raises CheckpointError, also where the copy of the network's file was altered, and RecipeError.
    """
    if not (path / RECIPE).exists():
        raise CheckpointError(
            f"Expected a run folder, got '{path}', which has no {RECIPE}; name the --run-dir of a training run."
        )
    try:
        facts = saved.read_facts(path / FACTS)
    except (OSError, ValueError, TypeError, AttributeError):
        raise CheckpointError(f"The run '{path}' is damaged: {FACTS} is missing or altered; train again.") from None
    recipe = reading.read(path / RECIPE)
    paths.expect_unaltered(path, (paths.DATA,) if changes.model else (paths.NETWORK, paths.DATA))
    return paths.changed(paths.absolute(recipe, path), changes), facts


def expect_same_data(path: Path, facts: Facts, current: Facts) -> None:
    """Raise DataError where the data has other classes, sizes or counts than the facts of the run in `path`."""
    pairs: list[tuple[str, object, object]] = [
        ("inputs of shape", facts.input_shape, current.input_shape),
        ("images", _resized(facts), _resized(current)),
        (facts.row.outputs, len(facts.classes), len(current.classes)),
        *(
            (f"{facts.row.output} {number}", repr(ours), repr(theirs))
            for number, (ours, theirs) in enumerate(zip(facts.classes, current.classes, strict=False), start=1)
        ),
        ("a tokenizer", _sum(facts.tokenizer), _sum(current.tokenizer)),
        ("training, validation and test samples", facts.counts, current.counts if facts.counts else ()),
    ]
    for what, ours, theirs in pairs:
        if ours != theirs:
            raise DataError(
                f"Expected the data of the run '{path}', with {what} {ours}, got {what} {theirs}; restore the data "
                f"as it was, or train a new run."
            )


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _resized(facts: Facts) -> str:
    return f"resized to {facts.resize}" if facts.resize else "of one size"


def read_profile(path: Path) -> Profile:
    """Read a run's profile; raises ProfileError where it has none yet, or one of earlier weights."""
    if not (path / PROFILE).exists():
        raise ProfileError(f"The run '{path}' has no profile yet; run anytime-lct analyze {path} first.")
    return Profile.load(path / PROFILE)


def save_weights(path: Path, main: dict[str, Tensor], critics: dict[str, Tensor]) -> None:
    """Write main.safetensors and critics.safetensors."""
    save_tensors(path / MAIN, main)
    save_tensors(path / CRITICS, critics)


def fingerprint(path: Path, temperatures: Sequence[float]) -> str:
    """Return the sha256 sum of a run's weights and its exits' temperatures, which its rules for stopping belong to."""
    rounded = " ".join(f"{T:.4g}" for T in temperatures)
    return hashlib.sha256(f"{profile.weights_sum(path)} {rounded}".encode()).hexdigest()


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Read the weights of a run's main network, and of its critics where it has any; raises CheckpointError."""
    for name in (MAIN, CRITICS):
        if not (path / name).exists():
            raise CheckpointError(
                f"Expected a run folder with weights to start from, got '{path}', which has no {name}; name the "
                f"--run-dir of a finished training run."
            )
    return load_tensors(path / MAIN), load_tensors(path / CRITICS)


def environment() -> dict[str, object]:
    """Return the versions and the machine that a result depends on."""
    return {
        "anytime-lct": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock the run folder for this process; raises CheckpointError while another process trains in it."""
    try:
        import fcntl
    except ImportError:  # a system without flock
        yield
        return
    try:
        lock = (path / ".lock").open("w")
    except OSError as error:
        raise CheckpointError(
            f"Expected a run folder that can be written, got '{path}': {error.strerror or error}; fix its permissions."
        ) from None
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CheckpointError(
                f"Another process is training in '{path}'; wait for it or choose another --run-dir."
            ) from None
        yield
