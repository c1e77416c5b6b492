"""Post-hoc exits: critics fitted behind the groups of a frozen network.

They minimise their own cross-entropy, equation (5) of the paper, or the divergence from the main network's output.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytime_lct import lct
from anytime_lct import task as tasks
from anytime_lct.cutting.snapshot import seed_all
from anytime_lct.errors import RecipeError
from anytime_lct.exits.tasks import TASKS
from anytime_lct.modes import carriers
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import CriticLoss, Positive, Recipe, Section
from anytime_lct.task import TaskName
from anytime_lct.training.learner import Learner, averaged, forward_pass, load_module, module_state, random_seed
from anytime_lct.training.methods.backprop import expect_finite
from anytime_lct.training.methods.joint import of_exits
from anytime_lct.training.minibatch import Minibatch
from anytime_lct.training.objective import Objective
from anytime_lct.training.processes.team import Team
from anytime_lct.training.schedule import Clock


class PostHocRecipe(Section):
    """The loss of critics behind a frozen main network.

    Their own cross-entropy, (5) by `rule` (paper, mixed), or the divergence from the main network's output
    (distillation; Hinton et al., 2015), both at `temperature`.
    """

    loss: Literal["distillation", CriticLoss] = "cross-entropy"
    """What critics minimise behind the frozen network."""
    temperature: Positive = 1.0
    """Temperature of cross-entropy and distillation."""


def check(recipe: Recipe) -> None:
    """Raise RecipeError where there is no main network to freeze."""
    if recipe.train.weights is None:
        raise RecipeError(
            "Expected train.weights with method posthoc, the run folder or file whose main network it freezes, got "
            "none; name it with --weights."
        )


class PostHoc:
    """Fits the critics of a trained run, whose main network is frozen: no weight and no batch norm statistic moves.

    `train.weights` names a run of backprop, a run of local critic training, whose critics are fitted further, or a file
    of weights.
    """

    def __init__(self, network: LCTNetwork, recipe: Recipe, task: TaskName, clock: Clock, team: Team) -> None:
        self.task: TaskName = task
        self._objective = Objective(task, recipe.train)
        self._network, self._recipe = network, recipe
        self._options = recipe.section("posthoc", PostHocRecipe)
        network.groups.requires_grad_(False).eval()
        self._groups = [forward_pass(group, recipe.train, clock) for group in network.groups]
        self._critics = [forward_pass(critic, recipe.train, clock) for critic in network.critics]
        critics = (recipe.critics, recipe.critics_schedule)
        self.learners = [Learner(critic, *critics, clock, recipe.train.average) for critic in network.critics]

    @property
    def exits(self) -> tuple[int, ...]:
        return tuple(range(1, self._network.num_groups + 1))

    @property
    def forwards(self) -> list[nn.Module]:
        return [*self._groups, *self._critics]

    def start_epoch(self) -> None:
        for _, module in carriers(self._network.groups):
            module.carry, module.state = True, None

    def step(self, batch: Minibatch) -> Tensor:
        """Fit the critics to one minibatch; return the losses of all exits."""
        train = self._recipe.train
        seed_all(random_seed(train.seed, batch.step))
        outputs, h = [], batch.x
        for i, group in enumerate(self._groups):
            with torch.no_grad():
                h = group(h)
            outputs.append(self._critics[i](h) if i < len(self._critics) else h)
        losses = [self._objective(Z, batch.y) for Z in outputs]
        for L in losses:
            expect_finite(L.mean(), batch.step)
        for i, learner in enumerate(self.learners):
            learner.begin(batch.step, len(batch.y))
            self._loss(outputs[i], losses[i], losses[i + 1].detach(), outputs[-1]).backward()
            learner.step(batch.step, train.clip_norm)
        return torch.stack([L.mean().detach().double() for L in losses])

    def _loss(self, Z: Tensor, L: Tensor, L_next: Tensor, Z_main: Tensor) -> Tensor:
        """Return the loss of critic i, (), from Z_i, L_i and L_{i+1}, (B,), and the main output."""
        if self._options.loss == "distillation":
            if TASKS[self.task].is_numbers:
                return tasks.losses(self.task, Z, Z_main.float()).mean()
            T = self._options.temperature
            log_q, log_p = F.log_softmax(Z.float() / T, dim=-1), F.log_softmax(Z_main.float() / T, dim=-1)
            divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=-1)
            return T**2 * divergence.mean()
        rule = lct.Rule(**{**self._recipe.rule.model_dump(), "critic_loss": self._options.loss})
        return rule.of(*((L.mean(), L_next.mean()) if rule.form == "scalar" else (L, L_next)))

    def evaluate(self, batches: Iterable[Minibatch]) -> Tensor:
        """Return the results of all exits (`Tally.results`)."""
        with averaged(self.learners):
            return of_exits(self._network, batches, self.task)

    def state(self) -> dict[int, dict[str, Tensor]]:
        states = {index: module_state("main", group) for index, group in enumerate(self._network.groups, start=1)}
        for index, learner in enumerate(self.learners, start=1):
            states[index] |= learner.state("critic")
        return states

    def load(self, states: dict[int, dict[str, Tensor]]) -> None:
        for index, group in enumerate(self._network.groups, start=1):
            load_module("main", group, states[index])
        for index, learner in enumerate(self.learners, start=1):
            learner.load("critic", states[index])
