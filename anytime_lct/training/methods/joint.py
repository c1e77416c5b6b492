"""Joint losses (Table IV): the losses of all exits, summed, by backprop; BranchyNet, Teerapittayanon et al. (2016)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from anytime_lct.cutting.snapshot import seed_all
from anytime_lct.evaluation import Tally
from anytime_lct.modes import carrying, probing
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import Recipe
from anytime_lct.task import TaskName
from anytime_lct.training.learner import Learner, averaged, forward_pass, random_seed
from anytime_lct.training.methods.backprop import expect_finite
from anytime_lct.training.minibatch import Minibatch
from anytime_lct.training.objective import Objective
from anytime_lct.training.processes.team import Team
from anytime_lct.training.schedule import Clock


class Joint:
    """Trains the groups and critics of local critic training together, by the gradient of L_1 + .. + L_N.

    Groups and critics have the optimizers of the recipe; `train.clip_norm` clips the whole gradient.
    """

    def __init__(self, network: LCTNetwork, recipe: Recipe, task: TaskName, clock: Clock, team: Team) -> None:
        self.task: TaskName = task
        self._objective = Objective(task, recipe.train)
        self._network, self._recipe, self._clock = network, recipe, clock
        groups, critics = (recipe.groups, recipe.groups_schedule), (recipe.critics, recipe.critics_schedule)
        self._groups = [Learner(group, *groups, clock, recipe.train.average) for group in network.groups]
        self._critics = [Learner(critic, *critics, clock, recipe.train.average) for critic in network.critics]
        self._f = forward_pass(network, recipe.train, clock)

    @property
    def exits(self) -> tuple[int, ...]:
        return tuple(range(1, self._network.num_groups + 1))

    @property
    def learners(self) -> list[Learner]:
        return [*self._groups, *self._critics]

    @property
    def forwards(self) -> list[nn.Module]:
        return [self._f]

    def start_epoch(self) -> None:
        for learner in self._groups:
            learner.start_epoch()

    def step(self, batch: Minibatch) -> Tensor:
        """Learn from one minibatch; return the losses of all exits."""
        train = self._recipe.train
        seed_all(random_seed(train.seed, batch.step))
        for learner in self.learners:
            learner.begin(batch.step, len(batch.y))
        losses = [self._objective(Z, batch.y).mean() for Z in self._f(batch.x)]
        total = torch.stack(losses).sum()
        total.backward()
        expect_finite(total, batch.step)
        if train.clip_norm and self._clock.ends(batch.step):
            for learner in self.learners:
                learner.average_gradients()
            nn.utils.clip_grad_norm_(self._network.parameters(), train.clip_norm)
        for learner in self.learners:
            learner.step(batch.step)
        return torch.stack([L.detach().double() for L in losses])

    def evaluate(self, batches: Iterable[Minibatch]) -> Tensor:
        """Return the results of all exits (`Tally.results`)."""
        with averaged(self.learners):
            return of_exits(self._network, batches, self.task)

    def state(self) -> dict[int, dict[str, Tensor]]:
        states = {index: learner.state("main") for index, learner in enumerate(self._groups, start=1)}
        for index, learner in enumerate(self._critics, start=1):
            states[index] |= learner.state("critic")
        return states

    def load(self, states: dict[int, dict[str, Tensor]]) -> None:
        for index, learner in enumerate(self._groups, start=1):
            learner.load("main", states[index])
        for index, learner in enumerate(self._critics, start=1):
            learner.load("critic", states[index])


def of_exits(network: LCTNetwork, batches: Iterable[Minibatch], task: TaskName) -> Tensor:
    """Return the results of all exits (`Tally.results`)."""
    tally = Tally(task, network.num_groups)
    with probing(network), carrying(network):
        for batch in batches:
            for k, Z in enumerate(network(batch.x)):
                tally.add(k, Z, batch.y)
    return tally.results()
