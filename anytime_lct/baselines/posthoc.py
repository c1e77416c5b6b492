"""Post-hoc exits: critics fitted by their own cross-entropy behind the groups of a network that stays as it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anytime_lct import task as tasks
from anytime_lct.baselines.backprop import expect_finite
from anytime_lct.baselines.joint import of_exits
from anytime_lct.learner import Clock, Learner, as_told, load_module, module_state
from anytime_lct.network import LCTNetwork, carriers
from anytime_lct.recipe import Recipe
from anytime_lct.task import TaskName

if TYPE_CHECKING:
    from anytime_lct.training.links import Minibatch
    from anytime_lct.training.team import Team


class PostHoc:
    """Fits the critics of a trained run, whose main network is frozen: no weight and no batch norm statistic moves.

    The run of `train.weights` may be one of backprop, or one of local critic training, whose critics are fitted on.
    """

    def __init__(self, network: LCTNetwork, recipe: Recipe, task: TaskName, clock: Clock, team: Team) -> None:
        self.task: TaskName = task
        self.interrupted_below = False
        shape = (2, network.num_groups)
        self.sums, self.known = (torch.zeros(shape, dtype=torch.float64, device=team.device) for _ in range(2))
        self._network, self._recipe = network, recipe
        network.groups.requires_grad_(False).eval()
        self._groups = [as_told(group, recipe.train) for group in network.groups]
        self._critics = [as_told(critic, recipe.train) for critic in network.critics]
        self._learners = [Learner(critic, recipe.critics, recipe.critics_schedule, clock) for critic in network.critics]

    @property
    def exits(self) -> list[int]:
        return list(range(1, self._network.num_groups + 1))

    def start_epoch(self) -> None:
        for _, module in carriers(self._network.groups):
            module.carry, module.state = True, None

    def step(self, batch: Minibatch, interrupted: bool = False) -> None:
        """Fit the critics to one minibatch, and count the losses of all exits."""
        told = self._recipe.train
        torch.manual_seed((told.seed * 1_000_003 + batch.step) * 1_009 + 1)
        h = batch.x
        for i, group in enumerate(self._groups):
            with torch.no_grad():
                h = group(h)
            fitted = i < len(self._critics)
            Z = self._critics[i](h) if fitted else h
            L = tasks.losses(self.task, Z, batch.y, told.label_smoothing).mean()
            expect_finite(L, batch.step)
            self.sums[0, i] += L.detach().double() * len(batch.y)
            if fitted:
                self._learners[i].zero_grad()
                L.backward()
                self._learners[i].step(batch.step, told.clip_norm)
        self.sums[1] += len(batch.y)

    def evaluate(self, batches: Iterable[Minibatch]) -> Tensor:
        """Return mean losses and mean metrics, (2, N), float64."""
        return of_exits(self._network, batches, self.task)

    def state(self) -> dict[int, dict[str, Tensor]]:
        found = {index: module_state("main", group) for index, group in enumerate(self._network.groups, start=1)}
        for index, learner in enumerate(self._learners, start=1):
            found[index] |= learner.state("critic")
        return found

    def load(self, states: dict[int, dict[str, Tensor]]) -> None:
        for index, group in enumerate(self._network.groups, start=1):
            load_module("main", group, states[index])
        for index, learner in enumerate(self._learners, start=1):
            learner.load("critic", states[index])
