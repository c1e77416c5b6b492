"""A worker: a run of neighbouring layer groups, and what a minibatch does on its way through them.

One worker, four groups, one minibatch (F forward, B backward and step of the group; c the critic's step):

    group 1   F B                 L_2 goes up and lets c_1 step while the graph of f_1 is long gone: only that of the
    group 2       F c B           small critic waited. The activations of one group live at a time.
    group 3             F c B
    group 4                   F c B

Two workers, two groups each: h_2 goes down as soon as it is known, L_3 comes up, and c_2 steps no earlier than its next
use, so that nobody waits for the other's minibatch to end and no weight is stale:

    worker 1   | F B F B | F B F c B | F B F c B |           minibatches 1, 2, 3
    worker 2           | F B F c B | F B F c B | F B F c B |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from anytime_lct import task as tasks
from anytime_lct.descent import Descent, measure
from anytime_lct.modes import carrying, probing
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import Recipe
from anytime_lct.task import TaskName
from anytime_lct.training.learner import Clock
from anytime_lct.training.methods.group import GroupInTraining
from anytime_lct.training.minibatch import Minibatch
from anytime_lct.training.processes.links import Edge
from anytime_lct.training.processes.team import Team, owned


class Worker:
    """Trains the layer groups it owns by local critic training."""

    def __init__(
        self,
        groups: Sequence[GroupInTraining],
        task: TaskName,
        previous: Edge | None = None,
        next: Edge | None = None,
    ) -> None:
        self.task: TaskName = task
        self.groups, self.previous, self.next = list(groups), previous, next
        self._owed: Minibatch | None = None  # its L_{i+1} is yet to come from below

    @classmethod
    def of(cls, network: LCTNetwork, recipe: Recipe, task: TaskName, clock: Clock, team: Team) -> Worker:
        """Make a worker with its share of a network's groups."""
        critics = [*network.critics, None]
        mine = owned(team.bounds, team.worker) if team.bounds else range(network.num_groups)
        groups = [
            GroupInTraining(
                k + 1, network.groups[k], critics[k], recipe, task, clock, equals=team.equals, replica=team.replica
            )
            for k in mine
        ]
        return cls(groups, task, team.previous, team.next)

    @property
    def exits(self) -> tuple[int, ...]:
        """The exits whose losses are counted here, from 1."""
        return tuple(group.index for group in self.groups)

    def step(self, batch: Minibatch) -> Tensor:
        """Learn from one minibatch; return the mean losses of the exits here before that."""
        x, before, losses = batch.x, None, []
        for group in self.groups:
            h = group.forward(x, batch.step)
            if self.next is not None and group is self.groups[-1]:
                self.next.pass_on(batch, h)
                self._hear()
            L = group.judge(batch.y, batch.step, batch.share)
            losses.append(L.double().mean())
            if self.previous is not None and group is self.groups[0]:
                self.previous.tell(batch, L)
            group.descend(batch.step)
            if before is not None:
                before.learn(L, batch.step)
            x, before = h, group
        if self.next is not None:
            self._owed = batch
            if batch.last or batch.save:
                self._hear()
        return torch.stack(losses)

    def _hear(self) -> None:
        """Let the last critic here learn from the minibatch before, when L_{i+1} has come up."""
        if self._owed is None or self.next is None:
            return
        batch, self._owed = self._owed, None
        last = self.groups[-1]
        L = self.next.hear(batch, len(batch.y) if last.per_sample else 1)
        last.learn(L if last.per_sample else L[0], batch.step)

    def descent(self, batch: Minibatch) -> Descent:
        """Measure (16) on a minibatch that is yet to be learnt, and change nothing; where all groups are here.

        Runs uncompiled, so that with `train.compile` dropout may drop other units than training does.
        """
        parts = [group.uncompiled() for group in self.groups]
        groups, critics = [f for f, _ in parts], [c for _, c in parts if c is not None]
        seeds = [group.seed(batch.step) for group in self.groups]
        loss = self.groups[0].loss
        return measure(groups, critics, batch.x, batch.y, loss, step=batch.step, seeds=seeds)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Minibatch]) -> Tensor:
        """Return mean loss and mean metric of this worker's exits, (2, len(exits)), float64."""
        losses: list[list[Tensor]] = [[] for _ in self.groups]
        scores: list[list[Tensor]] = [[] for _ in self.groups]
        for group in self.groups:
            group.settle()
        modules = torch.nn.ModuleList([m for g in self.groups for m in (g.group, g.critic) if m is not None])
        with probing(modules), carrying(modules):
            for batch in batches:
                x = batch.x
                for k, group in enumerate(self.groups):
                    x = group.group(x)
                    if group is self.groups[-1] and self.next is not None:
                        self.next.pass_on(batch, x)
                    Z = x if group.critic is None else group.critic(x)
                    losses[k].append(tasks.losses(self.task, Z, batch.y).cpu())
                    scores[k].append(tasks.scores(self.task, Z, batch.y).cpu())
        return torch.stack(
            [torch.stack([torch.cat(part).double().mean() for part in each]) for each in (losses, scores)]
        )

    def start_epoch(self) -> None:
        """Forget the hidden state carried through the last epoch."""
        for group in self.groups:
            group.start_epoch()

    def state(self) -> dict[int, dict[str, Tensor]]:
        """What each group goes on from, by its index."""
        return {group.index: group.state() for group in self.groups}

    def load(self, states: dict[int, dict[str, Tensor]]) -> None:
        """Go on from what `state` returned, of all groups or these."""
        for group in self.groups:
            group.load(states[group.index])
