"""A worker: some neighbouring layer groups, and the order of its work on a minibatch.

One worker, four groups, one minibatch (F forward, B backward and step of the group; c the critic's step):

    group 1   F B                 c_1 steps when L_2 is computed, long after the graph of f_1 is freed: only the graph
    group 2       F c B           of the small critic waits. The activations of one group are in memory at a time.
    group 3             F c B
    group 4                   F c B

Two workers, two groups each: h_2 goes down as soon as it is computed, L_3 comes up, and c_2 steps just before its next
use, so that no worker waits for the end of the other's minibatch, and no weight is stale:

    worker 1   | F B F B | F B F c B | F B F c B |           minibatches 1, 2, 3
    worker 2           | F B F c B | F B F c B | F B F c B |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from anytime_lct.descent import Descent, measure
from anytime_lct.evaluation import Tally
from anytime_lct.modes import carrying, probing
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import Recipe
from anytime_lct.task import TaskName
from anytime_lct.training.lanes import Lanes
from anytime_lct.training.learner import Learner, averaged
from anytime_lct.training.methods.group import GroupInTraining
from anytime_lct.training.minibatch import Minibatch
from anytime_lct.training.processes.links import Edge
from anytime_lct.training.processes.team import Team, owned
from anytime_lct.training.schedule import Clock

ONE = Lanes(torch.device("cpu"), 0)


class Worker:
    """Trains the layer groups it owns by local critic training."""

    def __init__(
        self,
        groups: Sequence[GroupInTraining],
        task: TaskName,
        previous: Edge | None = None,
        next: Edge | None = None,
        lanes: Lanes = ONE,
    ) -> None:
        self.task: TaskName = task
        self.groups, self.previous, self.next, self.lanes = list(groups), previous, next, lanes
        self._waiting: Minibatch | None = None  # for L_{i+1} from the next worker

    @classmethod
    def of(cls, network: LCTNetwork, recipe: Recipe, task: TaskName, clock: Clock, team: Team) -> Worker:
        """Make the worker of this process, with its groups of a network."""
        critics = [*network.critics, None]
        mine = owned(team.bounds, team.worker) if team.bounds else range(network.num_groups)
        groups = [GroupInTraining(k + 1, network.groups[k], critics[k], recipe, task, clock, team) for k in mine]
        return cls(groups, task, team.previous, team.next, Lanes(team.device, len(groups)) if team.size == 1 else ONE)

    @property
    def exits(self) -> tuple[int, ...]:
        """The exits whose losses this worker computes, from 1."""
        return tuple(group.index for group in self.groups)

    @property
    def learners(self) -> list[Learner]:
        return [learner for group in self.groups for learner in group.learners]

    @property
    def forwards(self) -> list[nn.Module]:
        return [module for group in self.groups for module in group.forwards]

    def step(self, batch: Minibatch) -> Tensor:
        """Learn from one minibatch; return the mean losses of this worker's exits, from before the update."""
        x, before, losses, lanes = batch.x, None, [], self.lanes
        lanes.fork()
        for k, group in enumerate(self.groups):
            with lanes.on(k):
                h = group.forward(x, batch.step)
                lanes.hand(h, k, k + 1)
                if self.next is not None and group is self.groups[-1]:
                    self.next.send_minibatch(batch, h)
                    self._receive_losses()
                L = group.judge(batch.y, batch.step, batch.share)
                lanes.hand(L, k, k - 1)
                losses.append(L.double().mean())
                if self.previous is not None and group is self.groups[0]:
                    self.previous.send_losses(batch, L)
                group.descend(batch.step)
            if before is not None:
                with lanes.on(k - 1):
                    before.learn(L, batch.step)
            x, before = h, group
        lanes.join()
        if self.next is not None:
            self._waiting = batch
            if batch.last or batch.save:
                self._receive_losses()
        return torch.stack(losses)

    def _receive_losses(self) -> None:
        """Wait for L_{i+1} of the minibatch before, and step the last critic of this worker."""
        if self._waiting is None or self.next is None:
            return
        batch, self._waiting = self._waiting, None
        last = self.groups[-1]
        L = self.next.receive_losses(batch, len(batch.y) if last.per_sample else 1)
        last.learn(L if last.per_sample else L[0], batch.step)

    def descent(self, batch: Minibatch) -> Descent:
        """Measure (16) on a minibatch before the step on it, and change nothing; needs all groups in one worker.

        Runs uncompiled, so with `train.compile` dropout may drop other units than training does.
        """
        parts = [group.uncompiled() for group in self.groups]
        groups, critics = [f for f, _ in parts], [c for _, c in parts if c is not None]
        seeds = [group.seed(batch.step) for group in self.groups]
        loss = self.groups[0].loss
        return measure(groups, critics, batch.x, batch.y, loss, step=batch.step, seeds=seeds)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Minibatch]) -> Tensor:
        """Return the results of this worker's exits (`Tally.results`)."""
        tally = Tally(self.task, len(self.groups))
        for group in self.groups:
            group.settle()
        modules = torch.nn.ModuleList([m for g in self.groups for m in (g.group, g.critic) if m is not None])
        with probing(modules), carrying(modules), averaged(self.learners):
            for batch in batches:
                x = batch.x
                for k, group in enumerate(self.groups):
                    x = group.group(x)
                    if group is self.groups[-1] and self.next is not None:
                        self.next.send_minibatch(batch, x)
                    Z = x if group.critic is None else group.critic(x)
                    tally.add(k, Z, batch.y)
        return tally.results()

    def start_epoch(self) -> None:
        """Forget the hidden state carried through the last epoch."""
        for group in self.groups:
            group.start_epoch()

    def state(self) -> dict[int, dict[str, Tensor]]:
        """Return the state of each group, by its index."""
        return {group.index: group.state() for group in self.groups}

    def load(self, states: dict[int, dict[str, Tensor]]) -> None:
        """Continue from what `state` returned, of all groups or this worker's."""
        for group in self.groups:
            group.load(states[group.index])
