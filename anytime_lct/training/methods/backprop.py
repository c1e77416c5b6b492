"""Backprop through the uncut network; with replicas, torch's DistributedDataParallel."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from anytime_lct import task as tasks
from anytime_lct.errors import DivergenceError, RecipeError
from anytime_lct.modes import carrying, probing
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import Recipe
from anytime_lct.task import TaskName
from anytime_lct.training.learner import Clock, Learner, as_told

if TYPE_CHECKING:
    from anytime_lct.training.minibatch import Minibatch
    from anytime_lct.training.processes.team import Team


class Backprop:
    """Trains a network of one group, the uncut main network, by backprop; it has one exit.

    Replicas sum their gradients up as DistributedDataParallel does, while the backward pass goes on; with the recipe's
    `wire` bf16, by its own compression hook.
    """

    def __init__(self, network: LCTNetwork, recipe: Recipe, task: TaskName, clock: Clock, team: Team) -> None:
        self.task: TaskName = task
        self.interrupted_below = False
        self.sums, self.known = (torch.zeros(2, 1, dtype=torch.float64, device=team.device) for _ in range(2))
        self._model, self._recipe, self._team, self._clock = network.groups[0], recipe, team, clock
        if team.replicas > 1 and recipe.train.sync_batch_norm:
            if team.device.type == "cpu":
                raise RecipeError(
                    "Expected a GPU for train.sync_batch_norm with method bp, which takes torch's SyncBatchNorm; leave "
                    "it out, or train by lct."
                )
            self._model = nn.SyncBatchNorm.convert_sync_batchnorm(self._model, team.equals)
        self._learner = Learner(self._model, recipe.groups, recipe.groups_schedule, clock)
        self._f = as_told(self._model, recipe.train)
        if team.replicas > 1:
            self._f = DistributedDataParallel(self._f, process_group=team.equals, gradient_as_bucket_view=True)
            if recipe.train.wire == "bf16":
                self._f.register_comm_hook(team.equals, bf16_compress_hook)

    @property
    def exits(self) -> list[int]:
        return [1]

    def start_epoch(self) -> None:
        self._learner.start_epoch()

    def step(self, batch: Minibatch, interrupted: bool = False) -> None:
        """Learn from one minibatch, and count its loss."""
        told = self._recipe.train
        torch.manual_seed((told.seed * 1_000_003 + batch.step) * 1_009 + 1 + self._team.replica * 2**40)
        self._learner.zero_grad()
        L = tasks.losses(self.task, self._f(batch.x), batch.y, told.label_smoothing).mean()
        (L * (batch.share * self._team.replicas)).backward()  # DDP takes the mean over replicas
        expect_finite(L, batch.step)
        self._learner.step(batch.step, told.clip_norm)
        self.sums[0] += L.detach().double() * len(batch.y)
        self.sums[1] += len(batch.y)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Minibatch]) -> Tensor:
        """Return mean loss and mean metric, (2, 1), float64."""
        losses, scores = [], []
        with probing(self._model), carrying(self._model):
            for batch in batches:
                Z = self._model(batch.x)
                losses.append(tasks.losses(self.task, Z, batch.y).cpu())
                scores.append(tasks.scores(self.task, Z, batch.y).cpu())
        return torch.stack([torch.cat(values).double().mean() for values in (losses, scores)]).view(2, 1)

    def state(self) -> dict[int, dict[str, Tensor]]:
        return {1: self._learner.state("main")}

    def load(self, states: dict[int, dict[str, Tensor]]) -> None:
        self._learner.load("main", states[1])


def expect_finite(L: Tensor, step: int) -> None:
    """Raise DivergenceError on NaN and infinity; on an accelerator, where looking waits, the epoch's sums tell."""
    if L.device.type == "cpu" and not math.isfinite(L.item()):
        raise DivergenceError(
            f"The loss became {L.item()} at step {step + 1}; lower groups.lr, or set train.clip_norm, and resume from "
            f"the last checkpoint or start again."
        )
