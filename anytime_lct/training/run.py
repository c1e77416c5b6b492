"""A training run: epochs, evaluation, metrics, checkpoints, interruption and resume, whatever the method.

`train` is a generator: it yields a `Progress` every few minibatches and an `Epoch` after each epoch, so that whoever
runs it decides what to show. All that is random follows from the seed and the step, so that a checkpoint holds no
random state and a resumed run ends with the weights of an undisturbed one.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anytime_lct.cutting.costs import Strategy
from anytime_lct.data.batches import Dataset
from anytime_lct.errors import DivergenceError, RecipeError
from anytime_lct.recipes.recipe import Recipe
from anytime_lct.run_folder import checkpoint, journal
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder import start as pretrained
from anytime_lct.run_folder.build import example_input
from anytime_lct.training.events import Epoch, Note, Progress
from anytime_lct.training.interruption import interruptible
from anytime_lct.training.learner import Clock, is_carried
from anytime_lct.training.memory import PeakMemory, write_peaks
from anytime_lct.training.method import MakeMethod, Method
from anytime_lct.training.methods.worker import Worker
from anytime_lct.training.minibatch import Minibatch
from anytime_lct.training.prepare import deal, expect_to_learn_from_one, shortest_minibatch
from anytime_lct.training.processes.team import Team, alone, owned
from anytime_lct.training.tracking import Tracking, expect_one_process

REPORT_SECONDS = 0.2


@dataclass
class _Position:
    """Where the next minibatch stands, and what has been summed up on the way."""

    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    samples: int = 0
    best: float | None = None


def train(
    recipe: Recipe,
    data: Dataset,
    path: Path,
    *,
    resume: bool = False,
    team: Team | None = None,
    place: Strategy | None = None,
    method: MakeMethod = Worker.of,
) -> Iterator[Progress | Epoch | Note]:
    """Train in the run folder `path`; with `resume`, go on from its newest checkpoint.

    With a `team`, every process of it calls this alike, each trains its own layer groups, and the leader alone yields
    and writes what a run has once; `place` says what is evened out between workers. On SIGINT or SIGTERM the minibatch
    under way is finished, a checkpoint is written and KeyboardInterrupt raised. Raises DivergenceError,
    CheckpointError, RecipeError, DataError and WorkerLostError.
    """
    clock = Clock(recipe.train.epochs * data.num_batches("train"), data.num_batches("train"))
    team = team or alone(device_of(recipe.train.device))
    expect_one_process(recipe, team.workers, team.replicas)
    shortest = shortest_minibatch(data, clock, team)
    with team.together():
        resume = resume or team.share(team.restarted and (path / run_folder.RECIPE).exists())
        if resume:
            recipe = run_folder.read(path)[0]
        network, recipe = deal(recipe, data, team, place)
        if shortest == 1 and recipe.train.method != "dni":
            expect_to_learn_from_one(network, example_input(data.facts, 1))
        if recipe.train.weights and checkpoint.newest(path / run_folder.CHECKPOINTS) is None:
            said = pretrained.start(network, recipe, data.facts)
            if said and team.leads:
                yield Note(said)
        network = network.to(team.device)
        if recipe.train.channels_last:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        network.train()
        if team.leads and not resume:
            run_folder.create(path, recipe, data.facts)
        team.wait_for_all()
        with run_folder.locked(path) if team.leads else nullcontext(), interruptible() as interrupted:
            learning = method(network, recipe, data.facts.task, clock, team)
            num_groups = network.num_groups
            del network  # what other workers own
            yield from _Run(recipe, data, path, num_groups, learning, clock, team, interrupted).go(resume)


class _Run:
    """The state of one call of `train`; `go` reads from top to bottom as what happens."""

    def __init__(
        self,
        recipe: Recipe,
        data: Dataset,
        path: Path,
        num_groups: int,
        learning: Method,
        clock: Clock,
        team: Team,
        interrupted: threading.Event,
    ) -> None:
        self.recipe, self.data, self.path, self.num_groups = recipe, data, path, num_groups
        self.learning, self.clock, self.team, self.interrupted = learning, clock, team, interrupted
        self.at, self.memory = _Position(), PeakMemory(team.device)
        self.saved = time.monotonic()

    def go(self, resume: bool) -> Iterator[Progress | Epoch]:
        if resume:
            self._resume()
        board_or_none = _tensorboard(self.path, self.at.epoch + 1) if self.team.leads else nullcontext()
        with board_or_none as board, closing(Tracking(self.path, self.recipe, self.clock, self.learning)) as track:
            while self.at.epoch < self.recipe.train.epochs:
                yield from self._epoch(track)
                epoch = self._evaluate()
                self.at = _Position(epoch=epoch.epoch, best=self.at.best)
                self._checkpoint(epoch)
                self.learning.sums.zero_()
                self.learning.known.zero_()
                if board is not None:
                    self._show(board, epoch)
                    yield epoch
        if self.team.leads and not (self.path / run_folder.MAIN).exists():  # complete when it was resumed
            found = checkpoint.newest(self.path / run_folder.CHECKPOINTS)
            if found is not None:
                run_folder.save_weights(self.path, *checkpoint.weights(found, self.num_groups))

    def _epoch(self, track: Tracking) -> Iterator[Progress]:
        at, start, shown = self.at, time.monotonic(), 0.0
        before = at.seconds
        if at.batch == 0:
            self.learning.start_epoch()
        for batch in self._minibatches():
            start += track(batch)
            self.learning.step(batch, self.interrupted.is_set())
            at.batch, at.samples = at.batch + 1, at.samples + batch.joint
            now = time.monotonic()
            at.seconds = before + now - start
            last = at.batch == self.clock.per_epoch
            if batch.save:
                self._checkpoint()
                if batch.last and not last:
                    raise KeyboardInterrupt
            if self.team.leads and (last or now - shown > REPORT_SECONDS):
                shown = now
                means = tuple((self._known()[0] / self._known()[1].clamp(min=1)).tolist())
                yield Progress(at.epoch + 1, self.recipe.train.epochs, at.batch, self.clock.per_epoch, means)
        if self.team.sum(torch.tensor([int(self.interrupted.is_set())])) > 0:
            self._checkpoint()
            raise KeyboardInterrupt

    def _minibatches(self) -> Iterator[Minibatch]:
        """Yield what is left of the epoch: from the data, or from the worker before; a stop comes with a checkpoint."""
        at, first = self.at, self.at.epoch * self.clock.per_epoch
        if self.team.previous is not None:
            if at.batch < self.clock.per_epoch:
                yield from self.team.previous.minibatches(first + at.batch)
            return
        device, layout = self.team.device, self.recipe.train.channels_last
        share = (self.team.replica, self.team.replicas)
        for number, (x, y) in enumerate(self.data.batches("train", at.epoch, at.batch, share), start=at.batch):
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            if layout and x.dim() == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            end = number == self.clock.per_epoch - 1
            asked = self.interrupted.is_set() or self.learning.interrupted_below
            due = time.monotonic() - self.saved > 60 * self.recipe.train.checkpoint_minutes
            asked, due = self.team.agree(asked, due)  # the same step for all replicas
            stop = asked and not end
            rows = self.data.num_rows("train", number)
            yield Minibatch(x, y, first + number, end or stop, stop or (due and not end), len(y), rows)
            if stop:
                return

    def _validation(self) -> Iterator[Minibatch]:
        if self.team.previous is not None:
            yield from self.team.previous.minibatches(0)
            return
        device, count = self.team.device, self.data.num_batches("validation")
        for number, (x, y) in enumerate(self.data.batches("validation")):
            yield Minibatch(x.to(device), y.to(device), number, last=number == count - 1)

    def _known(self) -> Tensor:
        """Sums of losses times samples and their counts, (2, N): as far as the workers below have told."""
        return self.learning.sums + self.learning.known

    def _evaluate(self) -> Epoch:
        sums, counts = self.team.sum(self.learning.sums)
        means = tuple((sums / counts.clamp(min=1)).tolist())
        self._expect_finite(means)
        losses: tuple[float, ...] = ()
        scores: tuple[float, ...] = ()
        if self.data.num_samples("validation"):
            found = torch.zeros_like(self.learning.sums, device="cpu")
            if self.team.replica == 0:
                found = self.learning.evaluate(self._validation())
            found = self.team.sum(found)
            losses, scores = tuple(found[0].tolist()), tuple(found[1].tolist())
        step = (self.at.epoch + 1) * self.clock.per_epoch
        return Epoch(self.at.epoch + 1, step, self.at.seconds, means, losses, scores)

    def _expect_finite(self, means: tuple[float, ...]) -> None:
        for exit_, loss in enumerate(means, start=1):
            if not math.isfinite(loss):
                raise DivergenceError(
                    f"The loss of exit {exit_} became {loss} in epoch {self.at.epoch + 1}; lower groups.lr or "
                    f"critics.lr, or set train.clip_norm, and resume from the last checkpoint or start again."
                )

    def _checkpoint(self, epoch: Epoch | None = None) -> None:
        """Write a checkpoint, every worker its own groups; at the end of an epoch the weights and metrics with it."""
        sums = self.team.sum(self.learning.sums) if epoch is None else torch.zeros_like(self.learning.sums)
        self._expect_finite(tuple((sums[0] / sums[1].clamp(min=1)).tolist()))
        step = self.at.epoch * self.clock.per_epoch + self.at.batch
        folder = self.path / run_folder.CHECKPOINTS
        part = Path(self.team.share(str(checkpoint.begin(folder, step)) if self.team.leads else None))
        for index, tensors in self._state().items():
            if self.team.replica == 0:
                checkpoint.write_group(part, index, tensors)
        self.team.wait_for_all()
        if self.team.leads:
            if epoch is not None:
                self._keep_weights(epoch, part)
                journal.append(self.path / run_folder.METRICS, epoch.as_json(self.data.facts.metric))
            checkpoint.commit(part, step, self.num_groups, {"at": vars(self.at), "sums": sums.tolist()})
        self.team.wait_for_all()
        write_peaks(self.path, self.memory, self.team)
        self.saved = time.monotonic()

    def _state(self) -> dict[int, dict[str, Tensor]]:
        """Everything that training goes on from: of carried hidden state, what all replicas carry."""
        if self.team.replicas == 1:
            return self.learning.state()
        return {
            index: {name: self.team.joined(value, 1) if is_carried(name) else value for name, value in tensors.items()}
            for index, tensors in self.learning.state().items()
        }

    def _keep_weights(self, epoch: Epoch, part: Path) -> None:
        """Write the weights: of the last epoch, or of the one whose main network did best on validation.

        Behind a frozen main network it is the one whose other exits did best on average.
        """
        sign = 1 if self.data.facts.metric == "accuracy" else -1
        judged = epoch.scores[:-1] if self.recipe.train.method == "posthoc" else epoch.scores[-1:]
        score = sign * sum(judged) / len(judged) if judged else None
        better = score is None or self.at.best is None or score > self.at.best
        if better:
            self.at.best = score
        if better or self.recipe.train.keep == "last":
            run_folder.save_weights(self.path, *checkpoint.weights(part, self.num_groups))

    def _show(self, board: Any, epoch: Epoch) -> None:
        for split, values in (("train", epoch.train_losses), ("validation", epoch.validation_losses)):
            for exit_, loss in enumerate(values, start=1):
                board.add_scalar(f"loss/{split}/exit_{exit_}", loss, epoch.epoch)
        for exit_, score in enumerate(epoch.scores, start=1):
            board.add_scalar(f"{self.data.facts.metric}/validation/exit_{exit_}", score, epoch.epoch)

    def _resume(self) -> None:
        found = checkpoint.newest(self.path / run_folder.CHECKPOINTS)
        if found is not None:
            mine = list(owned(self.team.bounds, self.team.worker))
            groups, progress = checkpoint.load(found, self.num_groups, [k + 1 for k in mine])
            for tensors in groups.values():
                carried = {name: value for name, value in tensors.items() if is_carried(name)}
                tensors |= {name: self.team.own(value, 1).contiguous() for name, value in carried.items()}
            self.learning.load(groups)
            self.at = _Position(**progress["at"])
            if self.team.replica == 0:
                columns = [exit_ - 1 for exit_ in self.learning.exits]
                sums = torch.tensor(progress["sums"], dtype=torch.float64)
                self.learning.sums[:, columns] = sums[:, columns].to(self.team.device)
        if self.team.leads:
            journal.keep(self.path / run_folder.METRICS, lambda line: line["epoch"] <= self.at.epoch)


@contextmanager
def _tensorboard(path: Path, purge_step: int) -> Iterator[Any]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(path / run_folder.TENSORBOARD), purge_step=purge_step)
    try:
        yield writer
    finally:
        writer.close()


def device_of(name: str) -> torch.device:
    """Return the device that a recipe names; raises RecipeError where this machine has none such."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device).tolist()  # which a device without values cannot
    except (RuntimeError, AssertionError):
        raise RecipeError(
            f"Expected a device that this machine has, got train.device = '{name}'; use cpu or auto."
        ) from None
    return device
