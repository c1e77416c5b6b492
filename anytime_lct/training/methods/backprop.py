"""Backprop through the uncut network; with replicas, torch's DistributedDataParallel."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from anytime_lct.cutting.snapshot import seed_all
from anytime_lct.errors import DivergenceError, RecipeError
from anytime_lct.evaluation import Tally
from anytime_lct.modes import carrying, probing
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import Recipe
from anytime_lct.task import TaskName
from anytime_lct.training.learner import Learner, averaged, forward_pass, random_seed
from anytime_lct.training.minibatch import Minibatch
from anytime_lct.training.objective import Objective
from anytime_lct.training.processes.replicas import data_parallel
from anytime_lct.training.processes.team import Team
from anytime_lct.training.schedule import Clock


def check_alone(recipe: Recipe) -> None:
    """Raise RecipeError unless the recipe names the sub-network that is trained alone."""
    if recipe.train.exit is None:
        raise RecipeError(
            "Expected train.exit = 1, 2 .. with method alone, the sub-network that it trains, got none; set it."
        )


class Backprop:
    """Trains a network of one group, the uncut main network, by backprop; it has one exit.

    Replicas sum their gradients by DistributedDataParallel, overlapped with the backward pass; with the recipe's `wire`
    bf16, by its compression hook.
    """

    def __init__(self, network: LCTNetwork, recipe: Recipe, task: TaskName, clock: Clock, team: Team) -> None:
        self.task: TaskName = task
        self._objective = Objective(task, recipe.train)
        self._model, self._recipe, self._team, self._clock = network.groups[0], recipe, team, clock
        if team.replicas > 1 and recipe.train.sync_batch_norm:
            if team.device.type == "cpu":
                raise RecipeError(
                    "Expected a GPU for train.sync_batch_norm with method bp, which uses torch's SyncBatchNorm; leave "
                    "it out, or train by lct."
                )
            self._model = nn.SyncBatchNorm.convert_sync_batchnorm(self._model, team.replica_group)
        self._learner = Learner(self._model, recipe.groups, recipe.groups_schedule, clock, recipe.train.average)
        self._f = forward_pass(self._model, recipe.train, clock)
        if team.replicas > 1:
            self._f = data_parallel(self._f, team.replica_group, recipe.train.wire)

    @property
    def exits(self) -> tuple[int, ...]:
        return (1,)

    @property
    def learners(self) -> list[Learner]:
        return [self._learner]

    @property
    def forwards(self) -> list[nn.Module]:
        return [self._f]

    def start_epoch(self) -> None:
        self._learner.start_epoch()

    def step(self, batch: Minibatch) -> Tensor:
        """Learn from one minibatch; return its loss."""
        train = self._recipe.train
        seed_all(random_seed(train.seed, batch.step, replica=self._team.replica))
        self._learner.begin(batch.step, batch.joint or len(batch.y))  # DDP's gradients are those of all replicas
        L = self._objective(self._f(batch.x), batch.y).mean()
        (L * (batch.share * self._team.replicas)).backward()  # DDP takes the mean over replicas
        expect_finite(L, batch.step)
        self._learner.step(batch.step, train.clip_norm)
        return L.detach().double().reshape(1)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Minibatch]) -> Tensor:
        """Return the results of the network (`Tally.results`)."""
        tally = Tally(self.task, 1)
        with probing(self._model), carrying(self._model), averaged(self.learners):
            for batch in batches:
                tally.add(0, self._model(batch.x), batch.y)
        return tally.results()

    def state(self) -> dict[int, dict[str, Tensor]]:
        return {1: self._learner.state("main")}

    def load(self, states: dict[int, dict[str, Tensor]]) -> None:
        self._learner.load("main", states[1])


def expect_finite(L: Tensor, step: int) -> None:
    """Raise DivergenceError on NaN and infinity; on an accelerator, the loop checks the sums instead."""
    if L.device.type == "cpu" and not math.isfinite(L.item()):
        raise DivergenceError(
            f"The loss became {L.item()} at step {step + 1}; lower groups.lr, or set train.clip_norm, and resume from "
            f"the last checkpoint or start again."
        )
