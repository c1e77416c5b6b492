"""Loggers of a run: TensorBoard, JSON lines, MLflow, Weights & Biases, and any object of the user with their methods.

    RUN/tensorboard/   RUN/log.jsonl   RUN/mlflow.json  wandb.json: which run of the service this is, and up to where

A run that resumes writes no step twice: files lose the steps that run again, and services are told only later ones.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from anytime_lct import disk
from anytime_lct.errors import CheckpointError, RecipeError
from anytime_lct.recipes.recipe import LogName, Recipe
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder import journal

PROJECT = "anytime-lct"  # in services, unless their own environment variables name another


@dataclass(frozen=True)
class Point:
    """Numbers by name after `step` minibatches of the run: of some minibatches, of an epoch, or of sufficient descent.

    `epoch` counts the epochs that are finished, for those of an epoch.
    """

    axis: Literal["steps", "epochs", "descent"]
    step: int
    values: Mapping[str, float]
    epoch: int = 0


class Log(Protocol):
    """A logger: it is opened with its first point, and closed when the run ends or is interrupted."""

    def write(self, point: Point) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Each axis has a folder of its own; epochs count epochs, the others minibatches."""

    def __init__(self, run: Path, recipe: Recipe, step: int) -> None:
        self._folder, self._boards = run / run_folder.TENSORBOARD, dict[str, Any]()

    def write(self, point: Point) -> None:
        at = point.epoch if point.axis == "epochs" else point.step
        if point.axis not in self._boards:
            from torch.utils.tensorboard import SummaryWriter

            folder = self._folder if point.axis == "epochs" else self._folder / point.axis
            self._boards[point.axis] = SummaryWriter(str(folder), purge_step=at)
        for name, value in point.values.items():
            self._boards[point.axis].add_scalar(name, value, at)

    def close(self) -> None:
        for board in self._boards.values():
            board.close()


class JSONLines:
    """A line a point: {"axis": "steps", "step": 120, "epoch": 0, "loss/step/exit_1": 1.2, ..}."""

    def __init__(self, run: Path, recipe: Recipe, step: int) -> None:
        self._path = run / run_folder.LOG
        journal.keep(self._path, lambda line: line["step"] < step)

    def write(self, point: Point) -> None:
        journal.append(self._path, {**vars(point), "values": dict(point.values)})

    def close(self) -> None:
        """Nothing is open between two lines."""


class MLflow:
    """A run of MLflow, where MLFLOW_TRACKING_URI says, in the experiment MLFLOW_EXPERIMENT_NAME."""

    def __init__(self, run: Path, recipe: Recipe, step: int) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._client, self._metric, self._mark = MlflowClient(), Metric, Bookmark(run / "mlflow.json")
        if self._mark.id:
            self._client.update_run(self._mark.id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        self._mark.id = self._client.create_run(number, run_name=run.name).info.run_id
        tables = recipe.model_dump(exclude_none=True).items()
        values = {f"{table}.{key}": str(value) for table, entries in tables for key, value in entries.items()}
        self._client.log_batch(self._mark.id, params=[Param(key, value) for key, value in values.items()])

    def write(self, point: Point) -> None:
        if self._mark.is_new(point.step):
            now = int(1000 * time.time())
            metrics = [self._metric(name, value, now, point.step) for name, value in point.values.items()]
            self._client.log_batch(self._mark.id, metrics=metrics)
            self._mark.move(point.step)

    def close(self) -> None:
        self._client.set_terminated(self._mark.id)


class WandB:
    """A run of Weights & Biases, in the project WANDB_PROJECT; with WANDB_MODE=offline it stays in the run folder."""

    def __init__(self, run: Path, recipe: Recipe, step: int) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._mark = Bookmark(run / "wandb.json")
        self._run = wandb.init(
            dir=run,
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=self._mark.id or None,
            resume="allow",
            config=recipe.model_dump(mode="json"),
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._mark.id = self._run.id

    def write(self, point: Point) -> None:
        if self._mark.is_new(point.step):
            self._run.log(dict(point.values), step=point.step)
            self._mark.move(point.step)

    def close(self) -> None:
        self._run.finish()


class Bookmark:
    """The run of a service that a run folder goes with, by its id, and the last step that the service has."""

    def __init__(self, path: Path) -> None:
        record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self._path, self.id, self._before = path, str(record.get("id", "")), int(record.get("step", -1))

    def is_new(self, step: int) -> bool:
        """Whether an earlier process has not written this step."""
        return step > self._before

    def move(self, step: int) -> None:
        """Note that the service has all up to this step."""
        disk.write(self._path, json.dumps({"id": self.id, "step": step}), CheckpointError)


LOGS: dict[LogName, Callable[[Path, Recipe, int], Log]] = {
    "tensorboard": TensorBoard,
    "jsonl": JSONLines,
    "mlflow": MLflow,
    "wandb": WandB,
}
PACKAGES: dict[str, tuple[str, str]] = {  # of loggers, each with its extra
    "tensorboard": ("tensorboard", "train"), "mlflow": ("mlflow", "mlflow"), "wandb": ("wandb", "wandb"),
}  # fmt: skip


def expect_installed(names: Sequence[LogName]) -> None:
    """Raise RecipeError for a logger whose package is missing."""
    for name in names:
        if name in PACKAGES and importlib.util.find_spec(PACKAGES[name][0]) is None:
            raise RecipeError(f"Expected the logger {name} to be installed, got none; {_remedy(name)}.")


class Logs:
    """All loggers of a run; one that fails is left out from then on, with a sentence, and the run goes on."""

    def __init__(self, run: Path, recipe: Recipe, own: Sequence[Log] = ()) -> None:
        self._run, self._recipe = run, recipe
        self._logs: dict[str, Log | None] = {name: None for name in recipe.train.log}  # until their first point
        self._logs |= {type(log).__name__: log for log in own}
        self._sentences: list[str] = []

    def write(self, point: Point) -> None:
        for name, log in list(self._logs.items()):
            try:
                log = LOGS[name](self._run, self._recipe, point.step) if log is None else log  # type: ignore[index]
                self._logs[name] = log
                log.write(point)
            except Exception as error:  # whatever it is: it must not end the training
                del self._logs[name]
                reason = next(iter(str(error).strip().splitlines()), "").rstrip(".") or type(error).__name__
                remedy = f"; {_remedy(name)}" if isinstance(error, ModuleNotFoundError) else ""
                self._sentences.append(
                    f"Warning: {name} logs nothing from here on: {reason}{remedy}. Training goes on."
                )

    def sentences(self) -> list[str]:
        """Return what has failed since the last call."""
        new, self._sentences = self._sentences, []
        return new

    def close(self) -> None:
        """Close all; what fails now loses what that logger has not stored, and nothing of the run."""
        for log in self._logs.values():
            with suppress(Exception):
                if log is not None:
                    log.close()


def _remedy(name: str) -> str:
    return f"install it, in a checkout of anytime-lct, with: pip install '.[{PACKAGES[name][1]}]'"
