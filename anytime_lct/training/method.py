"""What a way of training supplies to a run: what it does with a minibatch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from torch import Tensor

from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import Recipe
from anytime_lct.task import TaskName
from anytime_lct.training.learner import Clock
from anytime_lct.training.minibatch import Minibatch
from anytime_lct.training.processes.team import Team


class Method(Protocol):
    """What a way of training does with a minibatch; `Worker` is local critic training.

    `sums` holds losses times samples and samples of the exits counted here, (2, exits), float64; `known` those of
    other workers as far as they have told; `interrupted_below` that another worker was asked to stop.
    """

    sums: Tensor
    known: Tensor
    interrupted_below: bool

    @property
    def exits(self) -> list[int]: ...

    def start_epoch(self) -> None: ...

    def step(self, batch: Minibatch, interrupted: bool = False) -> None: ...

    def evaluate(self, batches: Iterable[Minibatch]) -> Tensor: ...

    def state(self) -> dict[int, dict[str, Tensor]]: ...

    def load(self, states: dict[int, dict[str, Tensor]]) -> None: ...


MakeMethod = Callable[[LCTNetwork, Recipe, TaskName, Clock, Team], Method]
