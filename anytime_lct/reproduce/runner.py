"""Run what an experiment needs, each run by the `anytime-lct` command in its own process, several at once.

    RUNS/cifar10-jpeg-resnet20-lct-n3-seed0/         the run folder: recipe, metrics, weights, profile.json
    RUNS/cifar10-jpeg-resnet20-lct-n3-seed0.toml     the recipe that the command reads
    RUNS/cifar10-jpeg-resnet20-lct-n3-seed0.log      its output

Runs are shared between experiments: a finished run with the same recipe is not run again.
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
from anytime_lct.exits import thresholds
from anytime_lct.models.files import without_folder
from anytime_lct.recipes import reading
from anytime_lct.recipes.recipe import Recipe
from anytime_lct.reproduce.plan import Run
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder import journal
from anytime_lct.training.methods.table import checked, row_of

State = Literal["missing", "unfinished", "trained", "done"]
# Keys that say where and how a run trains, and do not identify it; a figure has its precision in `detail`.
IGNORED_KEYS = {
    "data": {"root", "download"},
    "train": {"device", "weights", "checkpoint_minutes", "precision", "keep_optimizer"},
}
WAIT_SECONDS, INTERRUPTED = 0.5, 130
PROGRAM = (sys.executable, "-m", "anytime_lct.cli.main")


@dataclass(frozen=True)
class SeededRun:
    """A run with a seed and a folder; `after` is the job whose weights it starts from."""

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
        """Return how far the run is; raises CheckpointError if the folder holds a run of another recipe."""
        if not (self.folder / run_folder.RECIPE).exists():
            return "missing"
        stored = reading.read(self.folder / run_folder.RECIPE)
        if difference := _first_difference(stored, self.recipe):
            raise CheckpointError(
                f"Expected in '{self.folder}' the run that this experiment needs, got one with another recipe "
                f"({difference}); move it away or name another --runs."
            )
        if epochs(self.folder) < self.recipe.train.epochs or not (self.folder / run_folder.MAIN).exists():
            return "unfinished"
        measured = [run_folder.PROFILE, *([thresholds.NAME] if self.run.rules else [])]
        return "done" if all((self.folder / name).exists() for name in measured) else "trained"

    def commands(self, state: State) -> list[list[str]]:
        """Return the commands to run in order; the recipe is in a file that the run folder copies."""
        commands: list[list[str]] = []
        if state == "missing":
            commands.append(["train", "--recipe", str(_write_recipe(self)), "--run-dir", str(self.folder), "--json"])
        elif state == "unfinished":
            commands.append(["train", "--resume", "--run-dir", str(self.folder), "--json"])
        if commands and self.run.workers > 1:
            commands[0] += ["--workers", str(self.run.workers)]
        commands.append(["analyze", str(self.folder), "--json"])
        if self.run.rules:
            budgets = [part for share in self.run.rules for part in ("--mean-flops", f"{share:.0%}")]
            commands.append(["thresholds", str(self.folder), *budgets, "--json"])
        return commands


def jobs(runs: Sequence[Run], seeds: int, folder: Path, data_root: str) -> list[SeededRun]:
    """Return every run with every seed, those that others start from first."""
    by_name: dict[tuple[str, int], SeededRun] = {}
    for seed in range(seeds):
        for run in sorted(runs, key=lambda run: run.after is not None):
            after = by_name[run.after, seed] if run.after is not None else None
            weights = str(after.folder) if after is not None else None
            recipe = run.recipe(seed, data_root, weights)
            by_name[run.name, seed] = SeededRun(run, seed, folder / f"{run.name}-seed{seed}", recipe, after)
    return list(by_name.values())


def with_predecessors(todo: Sequence[SeededRun]) -> list[SeededRun]:
    """Return the jobs, and those that they start from if the weights are missing: a report may have the figures."""
    extended = list(todo)
    for job in todo:
        if job.after is not None and job.after not in extended and job.after.state() in ("missing", "unfinished"):
            extended.append(job.after)
    return extended


def run_jobs(todo: Sequence[SeededRun], parallel: int, threads: int, report: Callable[[str], None]) -> dict[str, str]:
    """Run jobs, `parallel` at once with `threads` each; return the reasons of those that failed, by name.

    On SIGINT and SIGTERM every process writes its checkpoint; KeyboardInterrupt is raised when all have ended.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    waiting, failed = list(todo), dict[str, str]()
    running: dict[str, tuple[SeededRun, list[list[str]], subprocess.Popen[bytes], float]] = {}

    def start(job: SeededRun, commands: list[list[str]], since: float) -> None:
        with job.log.open("ab") as log:
            # A new session: a Ctrl-C in the terminal reaches only this process, which forwards it once.
            process = subprocess.Popen(
                [*PROGRAM, *commands[0]], stdout=log, stderr=log, env=environment, start_new_session=True
            )
        running[job.name] = (job, commands[1:], process, since)

    previous_handler = None
    if threading.current_thread() is threading.main_thread():
        previous_handler = signal.signal(signal.SIGTERM, _interrupt)
    try:
        while waiting or running:
            while len(running) < parallel:
                ready = next((job for job in waiting if _may_start(job, waiting, running)), None)
                if ready is None:
                    break
                waiting.remove(ready)
                if ready.after is not None and ready.after.name in failed:
                    failed[ready.name] = f"it starts from {ready.after.name}, which failed"
                    continue
                ready.folder.parent.mkdir(parents=True, exist_ok=True)
                report(f"{ready.name}: {'continues' if ready.state() != 'missing' else 'starts'}")
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
                    report(f"{name}: failed: {failed[name]}")
                elif commands:
                    start(job, commands, since)
                else:
                    report(f"{name}: done in {(time.monotonic() - since) / 60:.1f} min")
    finally:  # processes still run only after an interrupt or an error
        for _, _, process, _ in running.values():
            process.send_signal(signal.SIGINT)
        for _, _, process, _ in running.values():
            process.wait()
        if previous_handler is not None:
            signal.signal(signal.SIGTERM, previous_handler)
    return failed


def epochs(folder: Path) -> int:
    """Return the number of epochs that a run has finished."""
    return len(journal.read(folder / run_folder.METRICS))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _may_start(job: SeededRun, waiting: Sequence[SeededRun], running: Collection[str]) -> bool:
    return job.after is None or (job.after not in waiting and job.after.name not in running)


def comparable(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Return the keys that a result depends on: those that its method and schedule read, without IGNORED_KEYS."""
    recipe = checked(recipe)
    used, tables = row_of(recipe.train.method).reads, dict[str, dict[str, Any]]()
    for table, keys in recipe.model_dump(mode="json").items():
        if table in used:
            has_steps = not table.endswith("_schedule") or keys["name"] == "step"
            ignored = {*IGNORED_KEYS.get(table, ()), *(() if has_steps else ("milestones", "gamma"))}
            tables[table] = {key: v for key, v in keys.items() if key not in ignored and v is not None}
        if "name" in tables.get(table, {}):  # the run has a copy of the file of a network of the user's own
            tables[table]["name"] = without_folder(tables[table]["name"])
    return tables


def _first_difference(stored: Recipe, expected: Recipe) -> str:
    """Describe the first key that differs, "" where none does; what `expected` leaves open follows from the network."""
    stored_tables, expected_tables = comparable(stored), comparable(expected)
    for table, keys in expected_tables.items():
        values = stored_tables.get(table, {})
        for key, value in keys.items():
            if values.get(key) != value:
                return f"{table}.{key} is {values.get(key)!r}, expected {value!r}"
    return ""


def _write_recipe(job: SeededRun) -> Path:
    path = job.folder.with_name(f"{job.name}.toml")
    reading.write(job.recipe, path)
    return path


def _last_line(log: Path) -> str:
    """Return the last line of a log that is no JSON."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = [line for line in lines if line.strip() and not line.startswith("{")]
    return lines[-1] if lines else "its log is empty"


def expect_none_unfinished(todo: Sequence[SeededRun]) -> None:
    """Raise LCTError if a run has started and is not finished; only --resume continues it."""
    for job in todo:
        if job.state() == "unfinished":
            raise LCTError(
                f"The run '{job.folder}' has started and is not finished; continue it with --resume, or name another "
                f"--runs."
            )
