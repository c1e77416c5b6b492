"""The interface of a training method; `methods/table.py` lists the methods."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from anytime_lct.training.learner import Learner
from anytime_lct.training.minibatch import Minibatch


class Method(Protocol):
    """A training method in one process of a run; `exits` are those whose losses are counted here, from 1."""

    @property
    def exits(self) -> tuple[int, ...]: ...

    def start_epoch(self) -> None:
        """Reset the hidden state that was carried through the last epoch."""
        ...

    def step(self, batch: Minibatch) -> Tensor:
        """Learn from one minibatch; return the mean loss of each of `exits` before that, (len(exits),), float64."""
        ...

    def evaluate(self, batches: Iterable[Minibatch]) -> Tensor:
        """Return the results of each of `exits` (`evaluation.Tally.results`), (4, len(exits)), float64, on the CPU."""
        ...

    def state(self) -> dict[int, dict[str, Tensor]]:
        """Return what training resumes from: flat tensors of the layer groups owned here, by index from 1."""
        ...

    def load(self, states: dict[int, dict[str, Tensor]]) -> None:
        """Load what `state` returned, of all groups or these; raises CheckpointError where it does not fit."""
        ...


@runtime_checkable
class Recordable(Method, Protocol):
    """A method whose step changes nothing but tensors in place, if its forward passes do not: see `replay`."""

    @property
    def learners(self) -> Sequence[Learner]:
        """The learners whose rates depend on the step."""
        ...

    @property
    def forwards(self) -> Sequence[nn.Module]:
        """The forward passes that a step runs (`learner.forward_pass`)."""
        ...
