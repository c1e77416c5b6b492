"""A worker: a run of neighbouring layer groups, and what a minibatch does on its way through them.

One device, four groups, one minibatch (F forward, B backward and step of the group; c the critic's step):

    group 1   F B                 h_1 goes down as soon as F is done; B follows at once, so that only one
    group 2       F c B           group's activations live at a time. L_2 goes up and lets c_1 step while
    group 3             F c B     the graph of f_1 is long gone: only that of the small critic waited.
    group 4                   F c B
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from anytime_lct.network import LCTNetwork
from anytime_lct.recipe import Recipe
from anytime_lct.task import TaskName
from anytime_lct.training.group import Clock, GroupInTraining


class Worker:
    """Trains the layer groups it owns by local critic training."""

    def __init__(self, groups: Sequence[GroupInTraining]) -> None:
        self.groups = list(groups)

    @classmethod
    def of(cls, network: LCTNetwork, recipe: Recipe, task: TaskName, clock: Clock) -> Worker:
        """Make the one worker that owns every group of a network."""
        critics = [*network.critics, None]
        return cls(
            [
                GroupInTraining(index, group, critic, recipe, task, clock)
                for index, (group, critic) in enumerate(zip(network.groups, critics, strict=True), start=1)
            ]
        )

    def step(self, x: Tensor, y: Tensor, step: int) -> Tensor:
        """Learn from one minibatch; return the mean loss of every exit, (N,), on the device."""
        h, above, losses = x, None, []
        for group in self.groups:
            descent = group.descend(h, y, step)
            if above is not None:
                owner, waiting = above
                owner.learn(waiting, descent.L, step)
            h, above = descent.h, (group, descent)
            losses.append(descent.L.mean())
        return torch.stack(losses)

    def start_epoch(self) -> None:
        """Forget the hidden state carried through the last epoch."""
        for group in self.groups:
            group.start_epoch()

    def state(self) -> list[dict[str, Tensor]]:
        """What each group goes on from."""
        return [group.state() for group in self.groups]

    def load(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Go on from what `state` returned."""
        for group, state in zip(self.groups, states, strict=True):
            group.load(state)
