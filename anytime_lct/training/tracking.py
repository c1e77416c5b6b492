"""Tracking of sufficient descent, (16): a measurement every few minibatches, into descent.jsonl and the logs."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from anytime_lct.descent import Descent
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder import journal
from anytime_lct.training.logs import Logs, Point
from anytime_lct.training.minibatch import Minibatch
from anytime_lct.training.schedule import Clock


@runtime_checkable
class Tracked(Protocol):
    """A training method whose descent can be measured."""

    def descent(self, batch: Minibatch) -> Descent: ...


class Tracking:
    """Called with every minibatch before it is learnt; returns the seconds it took, which do not count as training.

    The first measurement of a process removes those of the same step and later ones, which an earlier process made
    after its last checkpoint.
    """

    def __init__(self, path: Path, every: int, clock: Clock, method: object, logs: Logs) -> None:
        self._path, self._every, self._clock = path / run_folder.DESCENT, every, clock
        self._method, self._logs, self._begun = method, logs, False

    def __call__(self, batch: Minibatch) -> float:
        if self._every == 0 or batch.step % self._every or not isinstance(self._method, Tracked):
            return 0.0
        descent = self._method.descent(batch)
        if not self._begun:
            journal.keep(self._path, lambda line: line["step"] < batch.step)
            self._begun = True
        journal.append(self._path, descent.as_json(descent.step / self._clock.per_epoch))
        sigmas = enumerate(descent.sigma, start=1)
        values = {f"descent/sigma/group_{i}": sigma for i, sigma in sigmas if sigma is not None}
        self._logs.write(Point("descent", descent.step, values))
        return descent.seconds
