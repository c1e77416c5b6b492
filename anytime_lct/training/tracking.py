"""Tracking sufficient descent, (16): a measurement every so many minibatches, into descent.jsonl and TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from anytime_lct.descent import Descent
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder import journal
from anytime_lct.training.learner import Clock
from anytime_lct.training.minibatch import Minibatch


@runtime_checkable
class Tracked(Protocol):
    """A training method whose descent can be measured."""

    def descent(self, batch: Minibatch) -> Descent: ...


class Tracking:
    """Call it with every minibatch before it is learnt: it returns the seconds that it took, which are not training's.

    The first measurement of a process drops those of its step and later, which a process before it made and, having
    no checkpoint of them, left to be made again. TensorBoard's scalars stand in a folder of their own, since its steps
    are minibatches and those of the others epochs.
    """

    def __init__(self, path: Path, every: int, clock: Clock, method: object) -> None:
        self._path, self._every, self._clock = path, every, clock
        self._method = method
        self._board: Any = None

    def __call__(self, batch: Minibatch) -> float:
        if self._every == 0 or batch.step % self._every or not isinstance(self._method, Tracked):
            return 0.0
        found = self._method.descent(batch)
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
