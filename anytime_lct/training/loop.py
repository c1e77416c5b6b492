"""The loop: epochs of minibatches through a training method, in a run folder or in the user's own program."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from anytime_lct.data.batches import Dataset, Split
from anytime_lct.errors import DivergenceError
from anytime_lct.evaluation import Tally
from anytime_lct.recipes.recipe import TrainRecipe
from anytime_lct.training import alarms
from anytime_lct.training.events import Epoch, Note, Position, Progress
from anytime_lct.training.method import Method
from anytime_lct.training.methods.table import row_of
from anytime_lct.training.minibatch import Minibatch
from anytime_lct.training.processes.links import Status
from anytime_lct.training.processes.team import Team
from anytime_lct.training.replay import step_of
from anytime_lct.training.saving import Saving
from anytime_lct.training.schedule import Clock

REPORT_SECONDS = 0.2
AGAIN = 4  # training minibatches that are evaluated where training and validation loss are far apart


class Loop:
    """The epochs of a run with `num_exits` exits; `events` runs them, and reads from top to bottom in their order.

    With `saving`, the loop can resume from a checkpoint, and writes the run folder. Once `interrupted` is set, the
    minibatches of the update in progress are finished, a checkpoint written, and KeyboardInterrupt raised.
    """

    def __init__(
        self,
        method: Method,
        data: Dataset,
        train: TrainRecipe,
        clock: Clock,
        team: Team,
        num_exits: int,
        saving: Saving | None = None,
        interrupted: threading.Event | None = None,
    ) -> None:
        self.method, self.recipe, self.clock, self.team = method, train, clock, team
        self.data = data.to(team.device) if team.workers == 1 else data  # links send labels from the CPU
        self.saving, self.interrupted = saving, interrupted or threading.Event()
        self.position = Position()
        # Losses times samples, and samples, of every exit; those of other workers' exits stay 0 here.
        self.sums = torch.zeros(2, num_exits, dtype=torch.float64, device=team.device)
        self.columns = slice(method.exits[0] - 1, method.exits[-1]) if method.exits else slice(0, 0)
        self._step = step_of(method, team) if clock.accumulate == 1 else method.step  # a recorded step moves weights
        for edge in (team.previous, team.next):
            if edge is not None:
                edge.status = Status(torch.zeros_like(self.sums))

    def events(self, resume: bool = False) -> Iterator[Progress | Epoch | Note]:
        """Train to the end; only the leader of a team yields."""
        if resume and self.saving is not None:
            self._resume(self.saving)
        while self.position.epoch < self.recipe.epochs:
            yield from self._epoch()
            epoch = self._evaluate()
            self.position = Position(epoch=epoch.epoch, best=self.position.best, alarms=self.position.alarms)
            self.sums.zero_()
            if self.saving is not None:
                self.saving.checkpoint(self.position, torch.zeros_like(self.sums), epoch)
            if self.team.leads:
                if self.saving is not None:
                    self.saving.show(epoch)
                yield epoch
                yield from self._failures()
                yield from map(Note, epoch.warnings)
        if self.saving is not None:
            self.saving.finish()

    def _resume(self, saving: Saving) -> None:
        self.position, sums = saving.resume()
        if sums is not None and self.team.replica == 0:
            self.sums[:, self.columns] = sums[:, self.columns].to(self.team.device)

    def _failures(self) -> Iterator[Note]:
        """Yield a sentence for each logger that has failed."""
        yield from () if self.saving is None else map(Note, self.saving.logs.sentences())

    def _epoch(self) -> Iterator[Progress | Note]:
        position, start, last_report = self.position, time.monotonic(), 0.0
        earlier_seconds = position.seconds
        if position.batch == 0:
            self.method.start_epoch()
        for batch in self._minibatches():
            if self.saving is not None:
                start += self.saving.track(batch)
            self._set_status()
            losses = self._step(batch)
            self.sums[0, self.columns] += losses * len(batch.y)
            self.sums[1, self.columns] += len(batch.y)
            position.batch, position.samples = position.batch + 1, position.samples + batch.joint
            now = time.monotonic()
            position.seconds = earlier_seconds + now - start
            last = position.batch == self.clock.per_epoch
            if batch.save:
                self._checkpoint()
                if batch.last and not last:
                    raise KeyboardInterrupt
            if self.team.leads and (last or now - last_report > REPORT_SECONDS):
                last_report, sums = now, self._received_sums()
                if self.saving is not None:
                    self.saving.curves.draw(position, sums)
                means = _means(sums)
                yield from self._failures()
                yield Progress(position.epoch + 1, self.recipe.epochs, position.batch, self.clock.per_epoch, means)
        if self.team.sum(torch.tensor([int(self.interrupted.is_set())])) > 0:
            self._checkpoint()
            raise KeyboardInterrupt

    def _minibatches(self) -> Iterator[Minibatch]:
        """Yield the remaining minibatches of the epoch, from the data or from the previous worker.

        A requested stop ends them after one that saves a checkpoint: the last of an update, as gradients are not saved.
        """
        position, team, first = self.position, self.team, self.position.epoch * self.clock.per_epoch
        if team.previous is not None:
            if position.batch < self.clock.per_epoch:
                yield from team.previous.minibatches(first + position.batch)
            return
        remaining = self.data.batches("train", position.epoch, position.batch, (team.replica, team.replicas))
        for number, (x, y) in enumerate(remaining, start=position.batch):
            x, y, labels = self._here(x), self._here(y), y
            if self.recipe.channels_last and x.dim() == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            end = number == self.clock.per_epoch - 1
            interrupted = self.interrupted.is_set() or (team.next is not None and team.next.status.interrupted)
            due = self.saving is not None and self.saving.is_due
            interrupted, due = team.agree(interrupted, due)  # all replicas stop, or save, at the same step
            stop, save = (wanted and not end and self.clock.ends(first + number) for wanted in (interrupted, due))
            rows = self.data.num_rows("train", number) if team.replicas > 1 else len(y)
            yield Minibatch(x, y, first + number, end or stop, stop or save, len(y), rows, labels)
            if stop:
                return

    def _set_status(self) -> None:
        """Set the status that goes up with the next losses, of this worker and the later ones."""
        next, previous = self.team.next, self.team.previous
        if previous is not None:
            interrupted = self.interrupted.is_set() or (next is not None and next.status.interrupted)
            previous.status = Status(self._received_sums(), interrupted)

    def _received_sums(self) -> Tensor:
        """Return sums of losses times samples and their counts, (2, N), of this worker and the last ones received."""
        return self.sums if self.team.next is None else self.sums + self.team.next.status.sums

    def _evaluate(self) -> Epoch:
        means = self._finite(_means(self.team.sum(self.sums)))
        results, labels = torch.zeros(Tally.ROWS, 0), [torch.zeros(0, dtype=torch.int64, device=self.team.device)]
        if self.data.num_samples("validation"):
            results = self._results(self._validation(labels))
        counts = self.team.sum(torch.bincount(torch.cat(labels).cpu(), minlength=self.data.facts.outputs))
        losses, scores = tuple(results[0].tolist()), tuple(results[1].tolist())
        epoch, warnings = self.position.epoch + 1, self._warnings(means, results, counts.tolist())
        return Epoch(epoch, epoch * self.clock.per_epoch, self.position.seconds, means, losses, scores, warnings)

    def _results(self, batches: Iterator[Minibatch]) -> Tensor:
        """Return the results of all exits on `batches` (`evaluation.Tally.results`), the same in all processes."""
        results = torch.zeros(Tally.ROWS, self.sums.shape[1], dtype=torch.float64)
        if self.team.replica == 0:
            results[:, self.columns] = self.method.evaluate(batches)
        return Tally.scaled(self.team.sum(results), self.data.facts.scale)

    def _warnings(self, means: tuple[float, ...], results: Tensor, labels: list[int]) -> tuple[str, ...]:
        """Return the lines of alarms that ring first now, the same in all processes; `labels` counts them by class."""
        row = row_of(self.recipe.method)
        trained = len(means) - row.fits_exits  # a frozen main network is not at fault
        losses, scores, errors, answers = results[:, :trained].tolist()
        numbers = alarms.Finished(
            epoch=self.position.epoch + 1,
            epochs=self.recipe.epochs,
            task=self.data.facts.task,
            outputs=self.data.facts.outputs or len(labels),
            train_losses=means[:trained],
            losses=losses,
            scores=scores,
            errors=errors,
            answers=answers,
            labels=labels,
            main=not row.fits_exits,
            rates=[f"{table}.lr" for table in ("groups", "critics") if table in row.reads],
            clips=self.recipe.clip_norm is not None,
            samples=self.data.facts.samples,
        )
        lines = alarms.raised(numbers, self.position.alarms)
        exits = alarms.far_apart(numbers) if alarms.APART not in self.position.alarms else []
        if exits:
            again = [] if self.saving is None else self._results(self._minibatches_of("train", AGAIN))[0].tolist()
            lines[alarms.APART] = alarms.why_far_apart(numbers, exits, again)
        self.position.alarms += lines
        return tuple(lines.values())

    def _validation(self, labels: list[Tensor]) -> Iterator[Minibatch]:
        """Yield the validation split, and append its labels in the first process of the run alone."""
        for batch in self._minibatches_of("validation"):
            if self.team.leads:
                y = batch.y.new_zeros(len(batch.y)) if batch.y.is_floating_point() else batch.y.flatten()
                labels.append(y.long())
            yield batch

    def _minibatches_of(self, split: Split, most: int | None = None) -> Iterator[Minibatch]:
        """Yield the minibatches of a split, `most` at most, for evaluation, from the data or the previous worker."""
        if self.team.previous is not None:
            yield from self.team.previous.minibatches(0)
            return
        count = self.data.num_batches(split) if most is None else min(most, self.data.num_batches(split))
        for number, (x, y) in enumerate(islice(self.data.batches(split, self.position.epoch), most)):
            yield Minibatch(self._here(x), self._here(y), number, last=number == count - 1, labels=y)

    def _here(self, part: Tensor) -> Tensor:
        return part.to(self.team.device, non_blocking=True)

    def _checkpoint(self) -> None:
        sums = self.team.sum(self.sums)
        self._finite(_means(sums))
        if self.saving is not None:
            self.saving.checkpoint(self.position, sums)

    def _finite(self, means: tuple[float, ...]) -> tuple[float, ...]:
        for exit_, loss in enumerate(means, start=1):
            if not math.isfinite(loss):
                raise DivergenceError(
                    f"The loss of exit {exit_} became {loss} in epoch {self.position.epoch + 1}; lower groups.lr or "
                    f"critics.lr, or set train.clip_norm, and resume from the last checkpoint or start again."
                )
        return means


def _means(sums: Tensor) -> tuple[float, ...]:
    return tuple((sums[0] / sums[1].clamp(min=1)).tolist())
