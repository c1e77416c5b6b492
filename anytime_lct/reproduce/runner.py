"""Run what an experiment needs, each run by the shipped command in a process of its own, several side by side.

    RUNS/cifar10-jpeg-resnet20-lct-n3-seed0/         the run folder: recipe, metrics, weights, profile.json
    RUNS/cifar10-jpeg-resnet20-lct-n3-seed0.toml     the recipe that the command was given
    RUNS/cifar10-jpeg-resnet20-lct-n3-seed0.log      what it said

Runs are shared between experiments: one that is finished, with the recipe that is wanted, is never run again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from anytime_lct.errors import CheckpointError, LCTError
from anytime_lct.recipes import reading as recipes
from anytime_lct.recipes.recipe import Recipe
from anytime_lct.reproduce.plan import Run
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder import journal
from anytime_lct.training.methods.table import checked, row_of

State = Literal["missing", "begun", "trained", "done"]
# Where and how a run was made, which is no part of what it is; a figure says its precision beside its value.
ELSEWHERE = {"data": {"root", "download"}, "train": {"device", "weights", "checkpoint_minutes", "precision"}}
WAIT_SECONDS, INTERRUPTED = 0.5, 130
PROGRAM = (sys.executable, "-m", "anytime_lct.cli.main")


@dataclass(frozen=True)
class SeededRun:
    """A run with a seed, and where it lies; `after` is the job whose weights it starts from."""

    run: Run
    seed: int
    folder: Path
    recipe: Recipe
    after: SeededRun | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    def state(self) -> State:
        """Say how far it is; raises CheckpointError where the folder holds a run of another recipe."""
        if not (self.folder / run_folder.RECIPE).exists():
            return "missing"
        there = recipes.read(self.folder / run_folder.RECIPE)
        if comparable(there) != comparable(self.recipe):
            raise CheckpointError(
                f"Expected in '{self.folder}' the run that this experiment asks for, got one with another recipe "
                f"({_first_difference(there, self.recipe)}); move it away or name another --runs."
            )
        if epochs(self.folder) < self.recipe.train.epochs or not (self.folder / run_folder.MAIN).exists():
            return "begun"
        return "done" if (self.folder / run_folder.PROFILE).exists() else "trained"

    def commands(self, state: State) -> list[list[str]]:
        """Return what is to be run, one after the other; a recipe travels in a file that the run copies."""
        told: list[list[str]] = []
        if state == "missing":
            told.append(["train", "--recipe", str(_written(self)), "--run-dir", str(self.folder), "--json"])
        elif state == "begun":
            told.append(["train", "--resume", "--run-dir", str(self.folder), "--json"])
        if told and self.run.workers > 1:
            told[0] += ["--workers", str(self.run.workers)]
        return [*told, ["analyze", str(self.folder), "--json"]]


def jobs(runs: Sequence[Run], seeds: int, folder: Path, data_root: str) -> list[SeededRun]:
    """Lay out every run for every seed, those that others start from first."""
    made: dict[tuple[str, int], SeededRun] = {}
    for seed in range(seeds):
        for run in sorted(runs, key=lambda run: run.after is not None):
            after = made[run.after, seed] if run.after is not None else None
            weights = str(after.folder) if after is not None else None
            recipe = run.recipe(seed, data_root, weights)
            made[run.name, seed] = SeededRun(run, seed, folder / f"{run.name}-seed{seed}", recipe, after)
    return list(made.values())


def with_starts(todo: Sequence[SeededRun]) -> list[SeededRun]:
    """Return the jobs and those whose weights they start from, where these are not at hand: figures alone may be."""
    made = list(todo)
    for job in todo:
        if job.after is not None and job.after not in made and job.after.state() in ("missing", "begun"):
            made.append(job.after)
    return made


def work(todo: Sequence[SeededRun], side_by_side: int, threads: int, tell: Callable[[str], None]) -> dict[str, str]:
    """Run jobs, `side_by_side` at once with so many threads each; return why those that failed did, by name.

    On SIGINT and SIGTERM every process writes its checkpoint first; KeyboardInterrupt is raised when all have ended.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    waiting, failed = list(todo), dict[str, str]()
    running: dict[str, tuple[SeededRun, list[list[str]], subprocess.Popen[bytes], float]] = {}

    def start(job: SeededRun, commands: list[list[str]], since: float) -> None:
        with job.log.open("ab") as log:
            # A session of its own: a terminal's Ctrl-C is for `work` to pass on, and a second one would kill.
            process = subprocess.Popen(
                [*PROGRAM, *commands[0]], stdout=log, stderr=log, env=environment, start_new_session=True
            )
        running[job.name] = (job, commands[1:], process, since)

    before = None
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        while waiting or running:
            while len(running) < side_by_side:
                ready = next((job for job in waiting if _may_start(job, waiting, running)), None)
                if ready is None:
                    break
                waiting.remove(ready)
                if ready.after is not None and ready.after.name in failed:
                    failed[ready.name] = f"it starts from {ready.after.name}, which failed"
                    continue
                ready.folder.parent.mkdir(parents=True, exist_ok=True)
                tell(f"{ready.name}: {'goes on' if ready.state() != 'missing' else 'starts'}")
                start(ready, ready.commands(ready.state()), time.monotonic())
            time.sleep(WAIT_SECONDS)
            for name, (job, commands, process, since) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                if process.returncode == INTERRUPTED:
                    raise KeyboardInterrupt
                if process.returncode != 0:
                    failed[name] = _last_line(job.log)
                    tell(f"{name}: failed: {failed[name]}")
                elif commands:
                    start(job, commands, since)
                else:
                    tell(f"{name}: done in {(time.monotonic() - since) / 60:.1f} min")
    finally:  # some still run only where this was interrupted, or failed
        for _, _, process, _ in running.values():
            process.send_signal(signal.SIGINT)
        for _, _, process, _ in running.values():
            process.wait()
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    return failed


def epochs(folder: Path) -> int:
    """Return how many epochs a run has behind it."""
    return len(journal.read(folder / run_folder.METRICS))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _may_start(job: SeededRun, waiting: Sequence[SeededRun], running: Collection[str]) -> bool:
    return job.after is None or (job.after not in waiting and job.after.name not in running)


def comparable(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Return what a result depends on: not where it came about, nor what its method and schedule do not look at."""
    recipe = checked(recipe)
    reads, tables = row_of(recipe.train.method).reads, dict[str, dict[str, Any]]()
    for table, keys in recipe.model_dump(mode="json").items():
        if table in reads:
            stepped = not table.endswith("_schedule") or keys["name"] == "step"
            left_out = {*ELSEWHERE.get(table, ()), *(() if stepped else ("milestones", "gamma"))}
            tables[table] = {key: v for key, v in keys.items() if key not in left_out and v is not None}
    return tables


def _first_difference(there: Recipe, wanted: Recipe) -> str:
    one, other = comparable(there), comparable(wanted)
    for table in {**one, **other}:
        first, second = one.get(table, {}), other.get(table, {})
        for key in {**first, **second}:
            if first.get(key) != second.get(key):
                return f"{table}.{key} is {first.get(key)!r}, wanted {second.get(key)!r}"
    return "no difference"


def _written(job: SeededRun) -> Path:
    path = job.folder.with_name(f"{job.name}.toml")
    recipes.write(job.recipe, path)
    return path


def _last_line(log: Path) -> str:
    said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return said[-1] if said else "it said nothing"


def expect_unbegun(todo: Sequence[SeededRun]) -> None:
    """Raise LCTError where a run was begun and not finished, which is gone on with only when asked for."""
    for job in todo:
        if job.state() == "begun":
            raise LCTError(
                f"The run '{job.folder}' was begun and is not finished; go on with it by --resume, or name another "
                f"--runs."
            )
