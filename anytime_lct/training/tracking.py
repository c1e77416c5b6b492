"""Tracking of sufficient descent, (16): a measurement every few minibatches, into descent.jsonl and TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from anytime_lct.descent import Descent
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder import journal
from anytime_lct.training.minibatch import Minibatch
from anytime_lct.training.schedule import Clock


@runtime_checkable
class Tracked(Protocol):
    """A training method whose descent can be measured."""

    def descent(self, batch: Minibatch) -> Descent: ...


class Tracking:
    """Called with every minibatch before it is learnt; returns the seconds it took, which do not count as training.

    The first measurement of a process removes those of the same step and later ones, which an earlier process made
    after its last checkpoint. TensorBoard's scalars have a folder of their own, because their steps are minibatches and
    those of the others epochs.
    """

    def __init__(self, path: Path, every: int, clock: Clock, method: object) -> None:
        self._path, self._every, self._clock = path, every, clock
        self._method = method
        self._board: Any = None

    def __call__(self, batch: Minibatch) -> float:
        if self._every == 0 or batch.step % self._every or not isinstance(self._method, Tracked):
            return 0.0
        descent = self._method.descent(batch)
        if self._board is None:
            self._board = self._begin(batch.step)
        journal.append(self._path / run_folder.DESCENT, descent.as_json(descent.step / self._clock.per_epoch))
        for i, sigma in enumerate(descent.sigma, start=1):
            if sigma is not None:
                self._board.add_scalar(f"descent/sigma/group_{i}", sigma, descent.step)
        return descent.seconds

    def _begin(self, step: int) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        journal.keep(self._path / run_folder.DESCENT, lambda line: line["step"] < step)
        return SummaryWriter(str(self._path / run_folder.TENSORBOARD / "descent"), purge_step=step)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
