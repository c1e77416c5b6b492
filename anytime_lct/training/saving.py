"""What a run writes into its folder: checkpoints, weights, metrics, logs, descent, peaks of memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from anytime_lct.exits.tasks import METRICS, MetricName
from anytime_lct.recipes.recipe import Recipe
from anytime_lct.run_folder import checkpoint, journal
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.training.curves import Curves
from anytime_lct.training.events import Epoch, Position
from anytime_lct.training.learner import is_carried, is_slot
from anytime_lct.training.logs import Log, Logs, Point
from anytime_lct.training.memory import PeakMemory, write_peaks
from anytime_lct.training.method import Method
from anytime_lct.training.methods.table import row_of
from anytime_lct.training.processes.team import Team, owned
from anytime_lct.training.schedule import Clock
from anytime_lct.training.tracking import Tracking

DIGEST = 32  # bytes of a sha256 sum


class Saving:
    """Writes the run folder of a run of `num_groups` layer groups; every process of the team calls the same methods."""

    def __init__(
        self,
        path: Path,
        recipe: Recipe,
        metric: MetricName,
        method: Method,
        clock: Clock,
        team: Team,
        num_groups: int,
        loggers: Sequence[Log] = (),
    ) -> None:
        self._path, self._train, self._metric = path, recipe.train, METRICS[metric]
        self._method, self._clock, self._team, self._num_groups = method, clock, team, num_groups
        self._memory = PeakMemory(team.device)
        self._last_checkpoint = time.monotonic()
        self.logs = Logs(path, recipe, loggers)
        self.track = Tracking(path, recipe.train.track_descent, clock, method, self.logs)
        self.curves = Curves(self.logs, recipe, clock)

    @property
    def is_due(self) -> bool:
        """Whether the last checkpoint is older than the recipe's `checkpoint_minutes`."""
        return time.monotonic() - self._last_checkpoint > 60 * self._train.checkpoint_minutes

    def resume(self) -> tuple[Position, Tensor | None]:
        """Load the newest checkpoint into the method; return its position, and its sums of losses, (2, N)."""
        position, sums = Position(), None
        newest = checkpoint.newest(self._path / run_folder.CHECKPOINTS)
        if newest is not None:
            indices = [k + 1 for k in owned(self._team.bounds, self._team.worker)]
            groups, progress = checkpoint.load(newest, self._num_groups, indices)
            for tensors in groups.values():
                carried = {name: value for name, value in tensors.items() if is_carried(name)}
                tensors |= {name: self._team.own_part(value, 1).contiguous() for name, value in carried.items()}
            self._method.load(groups)
            position, sums = Position(**progress["at"]), torch.tensor(progress["sums"], dtype=torch.float64)
        if self._team.leads:
            journal.keep(self._path / run_folder.METRICS, lambda line: line["epoch"] <= position.epoch)
        return position, sums

    def checkpoint(self, position: Position, sums: Tensor, epoch: Epoch | None = None) -> None:
        """Write a checkpoint, every worker its own groups; at the end of an epoch also the weights and metrics.

        `sums` are those of losses over the epoch so far, of all processes, (2, N). The last checkpoint of a run has no
        state of optimizers, unless the recipe keeps it.
        """
        is_last = position.epoch == self._train.epochs
        has_optimizer = self._train.keep_optimizer or not is_last
        step = position.epoch * self._clock.per_epoch + position.batch
        folder, team = self._path / run_folder.CHECKPOINTS, self._team
        part = Path(team.broadcast(str(checkpoint.begin(folder, step)) if team.leads else None))
        with checkpoint.discarding_on_error(part):
            digests = torch.zeros(self._num_groups, DIGEST, dtype=torch.int64)
            for index, tensors in self._state().items():
                if team.replica == 0:
                    tensors = {name: value for name, value in tensors.items() if has_optimizer or not is_slot(name)}
                    digest = checkpoint.write_group(part, index, tensors)
                    digests[index - 1] = torch.tensor(list(bytes.fromhex(digest)))
            digests = team.sum(digests)
            if team.leads:
                if epoch is not None:
                    self._keep_weights(epoch, position, part)
                    journal.append(self._path / run_folder.METRICS, epoch.as_json(self._metric.name))
                by_group = {index: bytes(row).hex() for index, row in enumerate(digests.tolist(), start=1)}
                progress = {
                    "at": vars(position),
                    "sums": sums.tolist(),
                    "has_optimizer": has_optimizer,
                    "fresh_start": self._clock.fresh_start,
                }
                checkpoint.commit(part, step, by_group, progress, 1 if is_last else checkpoint.MAX_CHECKPOINTS)
        team.wait_for_all()
        write_peaks(self._path, self._memory, team)
        self._last_checkpoint = time.monotonic()

    def show(self, epoch: Epoch) -> None:
        """Log an epoch's losses and metric; only the leader calls this."""
        numbers = {
            "loss/train": epoch.train_losses,
            "loss/validation": epoch.validation_losses,
            f"{self._metric.name}/validation": epoch.scores,
        }
        values = {
            f"{name}/exit_{i}": value for name, exits in numbers.items() for i, value in enumerate(exits, start=1)
        }
        self.logs.write(Point("epochs", epoch.step, values, epoch.epoch))

    def finish(self) -> None:
        """Write the weights of the last checkpoint where a run has none yet, because it was killed before that."""
        if self._team.leads and not (self._path / run_folder.MAIN).exists():
            newest = checkpoint.newest(self._path / run_folder.CHECKPOINTS)
            if newest is not None:
                run_folder.save_weights(self._path, *checkpoint.weights(newest, self._num_groups))

    def close(self) -> None:
        """Close the logs."""
        self.logs.close()

    def _state(self) -> dict[int, dict[str, Tensor]]:
        """Return everything that training resumes from; carried hidden state is that of all replicas."""
        states = self._method.state()
        if self._team.replicas > 1:
            for tensors in states.values():
                carried = {name: value for name, value in tensors.items() if is_carried(name)}
                tensors |= {name: self._team.concatenated(value, 1) for name, value in carried.items()}
        return states

    def _keep_weights(self, epoch: Epoch, position: Position, part: Path) -> None:
        """Write the weights of the last epoch, or of the epoch whose main network was best on validation.

        Where the main network is frozen, the best epoch is that whose other exits were best on average.
        """
        scores = epoch.scores[:-1] if row_of(self._train.method).fits_exits else epoch.scores[-1:]
        score = self._metric.merit(sum(scores) / len(scores)) if scores else None
        better = score is None or position.best is None or score > position.best
        if better:
            position.best = score
        if better or self._train.keep == "last":
            run_folder.save_weights(self._path, *checkpoint.weights(part, self._num_groups))
