"""The run folder: what a training run leaves behind, and the network it gives back.

RUN/recipe.toml  facts.json  environment.json     what was asked, of which data, on which machine
RUN/checkpoints/  metrics.jsonl  tensorboard/     how it went, and where to go on
RUN/main.safetensors  critics.safetensors         what came out
RUN/descent.jsonl  memory.json                    sufficient descent, where tracked; peak memory of every process
RUN/profile.json  exits.png  descent.png          what it is worth (analyze)
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
from typing import Any

import torch
from torch import Tensor, nn

from anytime_lct import __version__, models, profile
from anytime_lct import recipe as recipes
from anytime_lct.checkpoint import load_tensors, save_tensors
from anytime_lct.errors import CheckpointError
from anytime_lct.network import LCTNetwork
from anytime_lct.recipe import CUTS, WITH_EXITS, CutRecipe, Recipe
from anytime_lct.task import Facts

RECIPE, FACTS, ENVIRONMENT, METRICS = "recipe.toml", "facts.json", "environment.json", "metrics.jsonl"
(MAIN, CRITICS), PROFILE, PICTURE = profile.WEIGHTS, profile.NAME, "exits.png"
CHECKPOINTS, TENSORBOARD = "checkpoints", "tensorboard"
DESCENT, DESCENT_PICTURE, MEMORY = "descent.jsonl", "descent.png", "memory.json"


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder opened: its recipe, the facts of its data, and the network with the weights that came out."""

    path: Path
    recipe: Recipe
    facts: Facts
    network: LCTNetwork


def create(path: Path, recipe: Recipe, facts: Facts) -> None:
    """Make a new run folder; raises CheckpointError where one with a run in it stands already."""
    if (path / RECIPE).exists():
        raise CheckpointError(
            f"The folder '{path}' holds a run already; continue it with --resume or choose another --run-dir."
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / FACTS).write_text(json.dumps(dataclasses.asdict(facts), indent=1), encoding="utf-8")
        (path / ENVIRONMENT).write_text(json.dumps(environment(), indent=1), encoding="utf-8")
        recipes.write(recipe, path / RECIPE)  # last: a folder with a recipe is a run
    except OSError as error:
        raise CheckpointError(
            f"Expected a folder that can be written, got '{path}': {error.strerror or error}; choose another --run-dir."
        ) from None


def open_run(path: Path) -> Run:
    """Open a run folder with the weights that training left; raises CheckpointError where it is not whole."""
    recipe, facts = read(path)
    network = build_network(recipe, facts)
    for name in (MAIN, CRITICS):
        if not (path / name).exists():
            raise CheckpointError(
                f"The run '{path}' has no weights yet ('{name}' is missing); finish it with --resume."
            )
    network.load(load_tensors(path / MAIN), load_tensors(path / CRITICS))
    return Run(path, recipe, facts, network.eval())


def read(path: Path) -> tuple[Recipe, Facts]:
    """Read a run folder's recipe and the facts of its data."""
    if not (path / RECIPE).exists():
        raise CheckpointError(
            f"Expected a run folder, got '{path}', which has no {RECIPE}; name the --run-dir of a train."
        )
    try:
        raw = json.loads((path / FACTS).read_text(encoding="utf-8"))
        given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
        facts = Facts(**given)
    except (OSError, ValueError, TypeError, AttributeError):
        raise CheckpointError(f"The run '{path}' is damaged: {FACTS} is missing or altered; train again.") from None
    return recipes.read(path / RECIPE), facts


def save_weights(path: Path, main: dict[str, Tensor], critics: dict[str, Tensor]) -> None:
    """Write main.safetensors and critics.safetensors."""
    save_tensors(path / MAIN, main)
    save_tensors(path / CRITICS, critics)


def fingerprint(path: Path, temperatures: Sequence[float]) -> str:
    """Return a sum of a run's weights and its exits' temperatures, which rules for stopping hold for."""
    rounded = " ".join(f"{T:.4g}" for T in temperatures)
    return hashlib.sha256(f"{profile.weights_sum(path)} {rounded}".encode()).hexdigest()


def build_network(recipe: Recipe, facts: Facts, *, stages: bool = False) -> LCTNetwork:
    """Build, cut and initialise the network of a recipe; the weights depend on the seed alone.

    A method without exits leaves a network of one group: the uncut main network, or the sub-network trained alone. With
    `stages`, for training that goes through the layer groups, it is cut all the same.
    """
    method = recipe.train.method
    whole = method not in CUTS or (method not in WITH_EXITS and method != "alone" and not stages)
    cut = CutRecipe(groups=1) if whole else recipe.cut
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        network = LCTNetwork.cut(
            build_model(recipe, facts),
            example_input(facts),
            num_groups=cut.groups,
            places=cut.places,
            shares=cut.shares,
            by=cut.by,
            critic=recipe.critic.kind,
            depth=None if whole else recipe.critic.depth,
            task=facts.task,
        )
    return network if recipe.train.exit is None else LCTNetwork([network.sub_model(recipe.train.exit)], [])


def weights_of(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Read the weights of a run's main network, and of its critics where it has any; raises CheckpointError."""
    for name in (MAIN, CRITICS):
        if not (path / name).exists():
            raise CheckpointError(
                f"Expected a run folder with weights to start from, got '{path}', which has no {name}; name the "
                f"--run-dir of a finished train."
            )
    return load_tensors(path / MAIN), load_tensors(path / CRITICS)


def build_model(recipe: Recipe, facts: Facts) -> nn.Module:
    """Build the uncut network of a recipe; draws its weights from torch's random state."""
    return models.build(recipe.model.name, facts.input_shape, facts.outputs, **recipe.model.options)


def example_input(facts: Facts, batch: int = 2) -> Tensor:
    """Return a batch of zeros of the network's input: float32 (B, C, H, W), or int64 (B, T) for text."""
    return torch.zeros(batch, *facts.input_shape, dtype=torch.float32 if len(facts.input_shape) > 1 else torch.int64)


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
    """Hold the run folder for one process; raises CheckpointError while another trains in it."""
    try:
        import fcntl
    except ImportError:  # a system without flock: nothing to hold
        yield
        return
    try:
        lock = (path / ".lock").open("w")
    except OSError as error:
        raise CheckpointError(
            f"Expected a run folder that can be written to, got '{path}': {error.strerror or error}; mend its rights."
        ) from None
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CheckpointError(
                f"Another process is training in '{path}'; wait for it or choose another --run-dir."
            ) from None
        yield
