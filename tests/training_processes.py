"""`anytime-lct train` in processes that a test starts: alone, as the ranks that torchrun starts, or by the launcher.

All are forked from one that has torch imported, so that they start at once. None outlives the test, however it ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from forked_python import python
from programs import start
from torch import Tensor
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from anytime_lct.recipes import reading as recipes
from anytime_lct.recipes.recipe import Recipe
from anytime_lct.run_folder import checkpoint

ONE_THREAD = "OMP_NUM_THREADS"  # so that results do not depend on the machine's number of cores
RecipeOrTables = Recipe | dict[str, Any]


class Ranks:
    """The processes of one run."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]], files: Sequence[Path]) -> None:
        self.processes, self._files = processes, files

    def signal(self, number: int) -> None:
        """Send a signal to all processes, as Ctrl-C in a terminal does."""
        for process in self.processes:
            process.send_signal(number)

    def finish(self, expected: int = 0, seconds: float = 150) -> str:
        """Wait until all processes end with the exit code `expected`; return their stderr."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.wait(max(0.0, deadline - time.monotonic()))
        stderr = "".join(file.read_text() for file in self._files)
        assert [process.returncode for process in self.processes] == [expected] * len(self.processes), stderr
        return stderr


@contextmanager
def fork(arguments: Sequence[object], size: int = 1) -> Iterator[Ranks]:
    """Run `anytime-lct ARGUMENTS` in `size` processes, with their ranks in the environment, as torchrun does."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if size > 1 else None
    environments: list[dict[str, str]] = [{}]
    if store is not None:
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(size)}
        shared["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        environments = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        paths = [Path(folder) / str(rank) for rank in range(size)]
        files = [stack.enter_context(path.open("w")) for path in paths]
        processes = [
            stack.enter_context(_start(arguments, environment, stdout=subprocess.DEVNULL, stderr=file))
            for environment, file in zip(environments, files, strict=True)
        ]
        yield Ranks(processes, paths)


def _start(arguments: Sequence[object], environment: dict[str, str], **options: Any) -> Any:
    command = [python(), "-m", "anytime_lct.cli.main", *arguments]
    return start(command, env={**os.environ, ONE_THREAD: "1", **environment}, **options)


@contextmanager
def launch(recipe: RecipeOrTables, folder: Path, workers: int, *more: str) -> Iterator[subprocess.Popen[str]]:
    """Start the program, which launches its workers."""
    arguments = _arguments(folder, workers, *_recipe_flags(recipe, folder), *more)
    with _start(arguments, {}, stderr=subprocess.PIPE) as process:
        yield process


def finish(process: subprocess.Popen[str], expected: int = 0, seconds: float = 150) -> str:
    """Wait until a launched run ends with the exit code `expected`; return its stderr."""
    _, stderr = process.communicate(timeout=seconds)
    assert process.returncode == expected, stderr
    return stderr


def start_training(recipe: RecipeOrTables, folder: Path, workers: int = 1, replicas: int = 1) -> Any:
    """Start a run in forked processes."""
    more = [*_recipe_flags(recipe, folder), "--replicas", str(replicas)]
    return fork(_arguments(folder, workers, *more), workers * replicas)


def train(recipe: RecipeOrTables, folder: Path, workers: int = 1, replicas: int = 1) -> None:
    """Train to the end in forked processes."""
    with start_training(recipe, folder, workers, replicas) as ranks:
        ranks.finish()


def resume(folder: Path, workers: int = 1, replicas: int = 1) -> None:
    """Resume a run and train to the end in forked processes."""
    more = ["--resume", "--replicas", str(replicas)]
    with fork(_arguments(folder, workers, *more), workers * replicas) as ranks:
        ranks.finish()


def refusal(recipe: RecipeOrTables, folder: Path, workers: int = 1, replicas: int = 1) -> str:
    """Start a run that the program refuses before it starts a process; return its stderr."""
    more = [*_recipe_flags(recipe, folder), "--replicas", str(replicas)]
    with fork(_arguments(folder, workers, *more)) as program:
        return program.finish(2)


def _arguments(folder: Path, workers: int, *more: str) -> list[str]:
    return ["train", "--run-dir", str(folder), "--workers", str(workers), *more]


def _recipe_flags(recipe: RecipeOrTables, folder: Path) -> list[str]:
    path = folder.with_suffix(".toml")
    recipes.write(recipe if isinstance(recipe, Recipe) else recipes.complete(recipe), path)
    return ["--recipe", str(path)]


def outcome(folder: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Return the final weights of a run, and its metrics without seconds."""
    weights = {**checkpoint.load_tensors(folder / "main.safetensors")}
    weights |= checkpoint.load_tensors(folder / "critics.safetensors")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return weights, [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def same(a: Path, b: Path) -> bool:
    """Whether two runs ended with equal weights and metrics."""
    (weights_a, metrics_a), (weights_b, metrics_b) = outcome(a), outcome(b)
    equal = weights_a.keys() == weights_b.keys() and metrics_a == metrics_b
    return equal and all(torch.equal(weights_a[name], weights_b[name]) for name in weights_b)


def checkpoint_names(folder: Path) -> list[str]:
    """Return the names of a run's checkpoints."""
    return [path.name for path in (folder / "checkpoints").glob("step-*")]


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
