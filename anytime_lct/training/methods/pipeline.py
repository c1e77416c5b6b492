"""Pipelined backprop: GPipe and 1F1B of torch.distributed.pipelining, through the layer groups of this toolkit.

A minibatch is split into microbatches, and every weight steps after the last one's backward pass. Batch norm sees one
microbatch at a time, in backprop the whole minibatch; apart from that, and from dropout, the gradients are the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from anytime_lct.cutting.snapshot import seed_all
from anytime_lct.errors import RecipeError
from anytime_lct.evaluation import Tally
from anytime_lct.modes import carriers, carrying, probing
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import Recipe
from anytime_lct.task import TaskName
from anytime_lct.training.learner import Learner, averaged, forward_pass, random_seed
from anytime_lct.training.methods.backprop import expect_finite
from anytime_lct.training.minibatch import Minibatch
from anytime_lct.training.objective import Objective
from anytime_lct.training.processes.pipelining import schedule
from anytime_lct.training.processes.team import Team, owned
from anytime_lct.training.schedule import Clock

TYPES = (torch.float32, torch.bfloat16, torch.float16)


def check(recipe: Recipe) -> None:
    """Raise RecipeError for accumulated gradients: torch's schedules accumulate those of their microbatches alone."""
    if recipe.train.accumulate > 1:
        raise RecipeError(
            f"Expected train.accumulate = 1 with method {recipe.train.method}, which accumulates the gradients of "
            f"microbatches, got {recipe.train.accumulate}; raise data.batch_size and train.microbatches instead."
        )


class Pipeline:
    """One worker's stage of the pipeline, its layer groups; the last worker computes the loss of the one exit.

    Labels are sent over the team's own links, with the shape of the microbatches. Schedules have static shapes: one is
    made for each shape, such as that of the short last minibatch.
    """

    def __init__(self, network: LCTNetwork, recipe: Recipe, task: TaskName, clock: Clock, team: Team) -> None:
        self.task: TaskName = task
        self._objective = Objective(task, recipe.train)
        self._recipe, self._team = recipe, team
        if recipe.train.wire != "exact":
            raise RecipeError(
                f"Expected train.wire = exact with method {recipe.train.method}, whose messages torch sends, got "
                f"{recipe.train.wire}; leave it out."
            )
        mine = owned(team.bounds, team.worker)
        groups, average = (recipe.groups, recipe.groups_schedule), recipe.train.average
        self._learners = {k + 1: Learner(network.groups[k], *groups, clock, average) for k in mine}
        self._groups = nn.Sequential(*(network.groups[k] for k in mine))
        self._stage = _Stage(self._groups, recipe, clock)
        self._schedules: dict[tuple[int, ...], Any] = {}
        self._shapes: dict[tuple[int, ...], Tensor] = {}

    @property
    def exits(self) -> tuple[int, ...]:
        return (1,) if self._team.next is None else ()

    def start_epoch(self) -> None:
        for learner in self._learners.values():
            learner.start_epoch()

    def step(self, batch: Minibatch) -> Tensor:
        """Send one minibatch through forward and backward, and step; on the last worker, return its loss."""
        team = self._team
        seed_all(random_seed(self._recipe.train.seed, batch.step, team.worker + 1))
        parts = self._parts(len(batch.y))
        if team.next is not None:
            team.next.send_minibatch(batch, self._microbatch_shape(batch, parts))
        plan = self._schedule(batch, parts)
        for learner in self._learners.values():
            learner.begin(batch.step, len(batch.y))
        losses: list[Tensor] = []
        self._stage.begin(parts)
        options: dict[str, Any] = {"target": batch.y, "losses": losses} if team.next is None else {}
        plan.step(*([batch.x] if team.previous is None else []), return_outputs=False, **options)
        if team.next is None:
            L = torch.stack([loss.detach() for loss in losses]).mean().reshape(1)
            expect_finite(L, batch.step)
        else:
            L = torch.zeros(0, device=team.device)
        self._stage.end()
        self._clip()
        for learner in self._learners.values():
            learner.step(batch.step)
        return L.double()

    def _parts(self, rows: int) -> int:
        """Return the number of microbatches: the recipe's, or the next smaller one that divides the rows."""
        most = min(self._recipe.train.microbatches, rows)
        return next(parts for parts in range(most, 0, -1) if rows % parts == 0)

    def _microbatch_shape(self, batch: Minibatch, parts: int) -> Tensor:
        """Return type and shape of a microbatch as it leaves this stage; it is sent down with the labels."""
        key = tuple(batch.y.shape)
        if key not in self._shapes:
            with probing(self._groups), carrying(self._groups):
                h = self._stage.forward_once(self._example(batch, parts))
            self._shapes[key] = torch.tensor([TYPES.index(h.dtype), *h.shape])
        return self._shapes[key]

    def _example(self, batch: Minibatch, parts: int) -> Tensor:
        if self._team.previous is None:
            return batch.x[: len(batch.y) // parts]
        kind, *shape = batch.x.tolist()
        return torch.zeros(shape, dtype=TYPES[kind], device=self._team.device)

    def _schedule(self, batch: Minibatch, parts: int) -> Any:
        key, team = tuple(batch.y.shape), self._team
        if key not in self._schedules:
            x = self._example(batch, parts)
            if team.previous is not None:
                x.requires_grad_()
            if team.next is not None:
                kind, *shape = self._microbatch_shape(batch, parts).tolist()
                y = torch.zeros(shape, dtype=TYPES[kind], device=team.device, requires_grad=True)
            else:
                with probing(self._groups), carrying(self._groups):
                    y = self._stage.forward_once(x)
                y = y.detach().requires_grad_()
            kind = self._recipe.train.method if parts >= team.workers else "gpipe"  # 1F1B needs a microbatch a worker
            self._schedules[key] = schedule(kind, self._stage, team, (x, y), parts, self._loss)
        return self._schedules[key]

    def _loss(self, Z: Tensor, y: Tensor) -> Tensor:
        return self._objective(Z, y).mean()

    def _clip(self) -> None:
        """Clip the gradient of the whole network, as backprop does."""
        max_norm = self._recipe.train.clip_norm
        if not max_norm:
            return
        weights = [p for p in self._groups.parameters() if p.grad is not None]
        square = self._team.sum(nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None]).square())
        nn.utils.clip_grads_with_norm_(weights, max_norm, square.sqrt().to(self._team.device))

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Minibatch]) -> Tensor:
        """Return the results of the network (`Tally.results`); on all workers but the last those of no exit."""
        tally = Tally(self.task, len(self.exits))
        with probing(self._groups), carrying(self._groups), averaged([*self._learners.values()]):
            for batch in batches:
                Z = self._groups(batch.x)
                if self._team.next is None:
                    tally.add(0, Z, batch.y)
                else:
                    self._team.next.send_minibatch(batch, Z)
        return tally.results()

    def state(self) -> dict[int, dict[str, Tensor]]:
        return {index: learner.state("main") for index, learner in self._learners.items()}

    def load(self, states: dict[int, dict[str, Tensor]]) -> None:
        for index, learner in self._learners.items():
            learner.load("main", states[index])


class _Stage(nn.Module):
    """A worker's groups as one module, with a hidden state for each microbatch between `begin` and `end`."""

    def __init__(self, groups: nn.Sequential, recipe: Recipe, clock: Clock) -> None:
        super().__init__()
        self._f = forward_pass(groups, recipe.train, clock)
        self._carriers = [module for _, module in carriers(groups)]
        self._states: list[list[tuple[Tensor, ...] | None]] = []
        self._at = 0

    def begin(self, parts: int) -> None:
        whole = [module.state or () for module in self._carriers]
        self._states = [
            [tuple(part.tensor_split(parts, 1)[k] for part in state) or None for state in whole] for k in range(parts)
        ]
        self._at = 0

    def forward(self, x: Tensor) -> Tensor:
        for module, state in zip(self._carriers, self._states[self._at], strict=True):
            module.state = state
        h = self.forward_once(x)
        self._states[self._at] = [module.state for module in self._carriers]
        self._at += 1
        return h

    def forward_once(self, x: Tensor) -> Tensor:
        return self._f(x).contiguous()

    def end(self) -> None:
        for k, module in enumerate(self._carriers):
            states_k = [states[k] for states in self._states]
            module.state = (
                tuple(torch.cat(parts, 1) for parts in zip(*states_k, strict=True)) if all(states_k) else None
            )
        self._states = []
