"""A training run: epochs, evaluation, metrics, checkpoints, interruption and resume, whatever the method.

`train` is a generator: it yields a `Progress` every few minibatches and an `Epoch` after each epoch, so that whoever
runs it decides what to show. All that is random follows from the seed and the step, so that a checkpoint holds no
random state and a resumed run ends with the weights of an undisturbed one.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anytime_lct import checkpoint, run_folder
from anytime_lct.data import Dataset
from anytime_lct.errors import CheckpointError, DataError, DivergenceError, RecipeError
from anytime_lct.evaluation import evaluate
from anytime_lct.network import LCTNetwork
from anytime_lct.recipe import Recipe
from anytime_lct.training.group import Clock
from anytime_lct.training.worker import Worker

REPORT_SECONDS = 0.2


@dataclass(frozen=True)
class Progress:
    """Where a run stands within an epoch: `losses` are means over the epoch so far, one an exit, in nats."""

    epoch: int
    epochs: int
    batch: int
    batches: int
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to, one number an exit; `scores` is the metric on the validation split, () without one."""

    epoch: int
    step: int
    seconds: float
    train_losses: tuple[float, ...]
    validation_losses: tuple[float, ...]
    scores: tuple[float, ...]

    def as_json(self, metric: str) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "step": self.step,
            "seconds": round(self.seconds, 3),
            "train": {"loss": self.train_losses},
            "validation": {"loss": self.validation_losses, metric: self.scores},
        }


@dataclass
class _Position:
    """Where the next minibatch stands, and what has been summed up on the way."""

    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    samples: int = 0
    best: float | None = None


def train(recipe: Recipe, data: Dataset, path: Path, *, resume: bool = False) -> Iterator[Progress | Epoch]:
    """Train by local critic training in the run folder `path`; with `resume`, go on from its newest checkpoint.

    On SIGINT or SIGTERM the minibatch under way is finished, a checkpoint is written and KeyboardInterrupt raised.
    Raises DivergenceError, CheckpointError, RecipeError and DataError.
    """
    clock = Clock(recipe.train.epochs * data.num_batches("train"), data.num_batches("train"))
    if clock.per_epoch < 1:
        raise DataError("The training split has no whole minibatch; lower data.batch_size or data.validation.")
    device = _device(recipe.train.device)
    network = run_folder.build_network(recipe, data.facts).to(device)
    if recipe.train.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.train()
    if not resume:
        run_folder.create(path, recipe, data.facts)
    with run_folder.locked(path), _interruptible() as interrupted:
        worker = Worker.of(network, recipe, data.facts.task, clock)
        yield from _Run(recipe, data, path, network, worker, clock, device, interrupted).go(resume)


class _Run:
    """The state of one call of `train`; `go` reads from top to bottom as what happens."""

    def __init__(
        self,
        recipe: Recipe,
        data: Dataset,
        path: Path,
        network: LCTNetwork,
        worker: Worker,
        clock: Clock,
        device: torch.device,
        interrupted: threading.Event,
    ) -> None:
        self.recipe, self.data, self.path = recipe, data, path
        self.network, self.worker, self.clock = network, worker, clock
        self.device, self.interrupted = device, interrupted
        self.sums = torch.zeros(network.num_groups, dtype=torch.float64, device=device)
        self.at = _Position()

    def go(self, resume: bool) -> Iterator[Progress | Epoch]:
        if resume:
            self._resume()
        with _tensorboard(self.path, purge_step=self.at.epoch + 1) as board:
            while self.at.epoch < self.recipe.train.epochs:
                yield from self._epoch()
                epoch = self._evaluate()
                self._keep_weights(epoch)
                _append(self.path / run_folder.METRICS, epoch.as_json(self.data.facts.metric))
                for split, values in (("train", epoch.train_losses), ("validation", epoch.validation_losses)):
                    for exit_, loss in enumerate(values, start=1):
                        board.add_scalar(f"loss/{split}/exit_{exit_}", loss, epoch.epoch)
                for exit_, score in enumerate(epoch.scores, start=1):
                    board.add_scalar(f"{self.data.facts.metric}/validation/exit_{exit_}", score, epoch.epoch)
                self.at = _Position(epoch=epoch.epoch, best=self.at.best)
                self.sums.zero_()
                self._checkpoint()
                yield epoch
        if not (self.path / run_folder.MAIN).exists():  # a run that was complete when it was resumed
            run_folder.save_weights(self.path, self.network)

    def _epoch(self) -> Iterator[Progress]:
        at, start, saved, shown = self.at, time.monotonic(), time.monotonic(), 0.0
        before = at.seconds
        if at.batch == 0:
            self.worker.start_epoch()
        for x, y in self.data.batches("train", at.epoch, at.batch):
            x, y = x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
            if self.recipe.train.channels_last and x.dim() == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            losses = self.worker.step(x, y, at.epoch * self.clock.per_epoch + at.batch)
            self.sums += losses.double() * len(y)
            at.batch, at.samples = at.batch + 1, at.samples + len(y)
            now = time.monotonic()
            at.seconds = before + now - start
            last = at.batch == self.clock.per_epoch
            if self.interrupted.is_set():
                self._checkpoint()
                raise KeyboardInterrupt
            if not last and now - saved > 60 * self.recipe.train.checkpoint_minutes:
                self._checkpoint()
                saved = now
            if last or now - shown > REPORT_SECONDS:
                shown = now
                yield Progress(at.epoch + 1, self.recipe.train.epochs, at.batch, self.clock.per_epoch, self._means())

    def _means(self) -> tuple[float, ...]:
        return tuple((self.sums / max(1, self.at.samples)).tolist())

    def _evaluate(self) -> Epoch:
        means = self._finite_means()
        losses: tuple[float, ...] = ()
        scores: tuple[float, ...] = ()
        if self.data.num_samples("validation"):
            found = evaluate(self.network, self.data.batches("validation"), self.data.facts.task)
            losses, scores = tuple(found.mean_losses()), tuple(found.mean_scores())
        step = (self.at.epoch + 1) * self.clock.per_epoch
        return Epoch(self.at.epoch + 1, step, self.at.seconds, means, losses, scores)

    def _finite_means(self) -> tuple[float, ...]:
        means = self._means()
        for exit_, loss in enumerate(means, start=1):
            if not math.isfinite(loss):
                raise DivergenceError(
                    f"The loss of exit {exit_} became {loss} in epoch {self.at.epoch + 1}; lower groups.lr or "
                    f"critics.lr, or set train.clip_norm, and resume from the last checkpoint or start again."
                )
        return means

    def _keep_weights(self, epoch: Epoch) -> None:
        """Write the weights: of the last epoch, or of the one whose main network did best on validation."""
        sign = 1 if self.data.facts.metric == "accuracy" else -1
        main = sign * epoch.scores[-1] if epoch.scores else None
        better = main is None or self.at.best is None or main > self.at.best
        if better:
            self.at.best = main
        if better or self.recipe.train.keep == "last":
            run_folder.save_weights(self.path, self.network)

    def _checkpoint(self) -> None:
        if self.at.samples:
            self._finite_means()
        progress = {"at": vars(self.at), "sums": self.sums.tolist()}
        step = self.at.epoch * self.clock.per_epoch + self.at.batch
        checkpoint.save(self.path / run_folder.CHECKPOINTS, step, self.worker.state(), progress)

    def _resume(self) -> None:
        found = checkpoint.newest(self.path / run_folder.CHECKPOINTS)
        if found is not None:
            groups, progress = checkpoint.load(found, self.network.num_groups)
            self.worker.load(groups)
            self.at = _Position(**progress["at"])
            self.sums = torch.tensor(progress["sums"], dtype=torch.float64, device=self.device)
        _keep_lines(self.path / run_folder.METRICS, self.at.epoch)


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turn the first SIGINT or SIGTERM into a flag, so that no minibatch is cut in half; the second one kills."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: object) -> None:
        if asked.is_set():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        asked.set()

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _tensorboard(path: Path, purge_step: int) -> Iterator[Any]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(path / run_folder.TENSORBOARD), purge_step=purge_step)
    try:
        yield writer
    finally:
        writer.close()


def _device(name: str) -> torch.device:
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise RecipeError(
            f"Expected a device that this machine has, got train.device = '{name}'; use cpu or auto."
        ) from None
    return device


def _append(path: Path, line: dict[str, Any]) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise CheckpointError(
            f"Could not write '{path}': {error.strerror or error}; make room and use --resume."
        ) from None


def _keep_lines(path: Path, epochs: int) -> None:
    """Drop the lines of epochs that will be run again."""
    if not path.exists():
        return
    kept: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(line)["epoch"] <= epochs:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            break  # a line cut off by the end of the process
    part = path.with_suffix(".part")
    part.write_text("".join(kept), encoding="utf-8")
    part.replace(path)
