"""Tracking sufficient descent, (16): a measurement every so many minibatches, into descent.jsonl and TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anytime_lct.errors import RecipeError
from anytime_lct.recipes.recipe import Recipe
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder import journal
from anytime_lct.training.learner import Clock
from anytime_lct.training.method import Method
from anytime_lct.training.methods.worker import Worker
from anytime_lct.training.minibatch import Minibatch


class Tracking:
    """Call it with every minibatch before it is learnt: it returns the seconds that it took, which are not training's.

    The first measurement of a process drops those of its step and later, which a process before it made and, having
    no checkpoint of them, left to be made again. TensorBoard's scalars stand in a folder of their own, since its steps
    are minibatches and those of the others epochs.
    """

    def __init__(self, path: Path, recipe: Recipe, clock: Clock, learning: Method) -> None:
        self._path, self._every, self._clock = path, recipe.train.track_descent, clock
        self._worker = learning if isinstance(learning, Worker) else None
        self._board: Any = None

    def __call__(self, batch: Minibatch) -> float:
        if self._worker is None or self._every == 0 or batch.step % self._every:
            return 0.0
        found = self._worker.descent(batch)
        if self._board is None:
            self._board = self._begin(batch.step)
        journal.append(self._path / run_folder.DESCENT, found.as_json(found.step / self._clock.per_epoch))
        for i, sigma in enumerate(found.sigma, start=1):
            if sigma is not None:
                self._board.add_scalar(f"descent/sigma/group_{i}", sigma, found.step)
        return found.seconds

    def _begin(self, step: int) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        journal.keep(self._path / run_folder.DESCENT, lambda line: line["step"] < step)
        return SummaryWriter(str(self._path / run_folder.TENSORBOARD / "descent"), purge_step=step)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def expect_one_process(recipe: Recipe, workers: int, replicas: int) -> None:
    """Raise RecipeError where sufficient descent is to be tracked by several processes."""
    if recipe.train.track_descent and (workers, replicas) != (1, 1):
        raise RecipeError(
            f"Expected one process with train.track_descent, which needs the whole network for the true gradient, got "
            f"{workers} workers and {replicas} replicas; leave --workers and --replicas out, or --track-descent."
        )
