"""One layer group in training: f_i, c_i, their optimizers, and the steps of a minibatch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from anytime_lct import lct
from anytime_lct.cutting.snapshot import seed_all
from anytime_lct.errors import CheckpointError, DivergenceError
from anytime_lct.recipes.recipe import Recipe
from anytime_lct.task import TaskName
from anytime_lct.training.learner import Learner, forward_pass, random_seed
from anytime_lct.training.objective import Objective
from anytime_lct.training.processes.replicas import Summing, join_batch_norms, joint_mean
from anytime_lct.training.processes.team import Team
from anytime_lct.training.schedule import Clock


class GroupInTraining:
    """Layer group i and its critic: `forward`, `judge` and `descend` are lct.descend in three, `learn` may come later.

    Random numbers in a group (dropout) depend only on the seed, the step and the index (`random_seed`).
    """

    def __init__(
        self,
        index: int,
        group: nn.Module,
        critic: nn.Module | None,
        recipe: Recipe,
        task: TaskName,
        clock: Clock,
        team: Team | None = None,
    ) -> None:
        self._replica_group, self._replica = (None, 0) if team is None else (team.replica_group, team.replica)
        self._settling: dict[str, Callable[[], None]] = {}
        self.index, self.group, self.critic = index, group, critic
        self._recipe, self._clock = recipe, clock
        if self._replica_group is not None and recipe.train.sync_batch_norm:
            for module in (group, critic):
                if module is not None:
                    join_batch_norms(module, self._replica_group)
        self._rule = lct.Rule(**recipe.rule.model_dump())
        self.loss = Objective(task, recipe.train)
        average = recipe.train.average
        self._group_learner = Learner(group, recipe.groups, recipe.groups_schedule, clock, average)
        self._critic_learner = critic and Learner(critic, recipe.critics, recipe.critics_schedule, clock, average)
        self._f = forward_pass(group, recipe.train, clock)
        self._c = None
        if critic is not None:  # torch compiles no graph that is run backward twice
            self._c = forward_pass(critic, recipe.train, clock, compiled=self._rule.one_pass)
        self._h: Tensor | None = None
        self._here: lct.LocalLoss | None = None
        self._L, self._rows = torch.zeros(()), 0
        self._shares = [0.0, 0.0]  # rows of the update here, and in all replicas

    @property
    def learners(self) -> list[Learner]:
        return [learner for learner in (self._group_learner, self._critic_learner) if learner is not None]

    @property
    def forwards(self) -> list[nn.Module]:
        return [self._f] if self._c is None else [self._f, self._c]

    @property
    def per_sample(self) -> bool:
        return self._rule.form == "per-sample"

    def seed(self, step: int) -> int:
        """Return the seed of the random numbers in the group and then in its critic."""
        return random_seed(self._recipe.train.seed, step, self.index, self._replica)

    def uncompiled(self) -> tuple[nn.Module, nn.Module | None]:
        """Return f_i and c_i at the recipe's precision, for a graph that is run backward twice."""
        train, clock, c = self._recipe.train, self._clock, self.critic
        f = forward_pass(self.group, train, clock, compiled=False)
        return f, None if c is None else forward_pass(c, train, clock, compiled=False)

    def forward(self, x: Tensor, step: int) -> Tensor:
        """Run the group on h_{i-1}; return h_i, without history."""
        self.settle("group")
        seed_all(self.seed(step))
        self._group_learner.begin(step, len(x))
        h: Tensor = self._f(x)
        self._h = h
        return h.detach()

    def judge(self, y: Tensor, step: int, share: float = 1.0) -> Tensor:
        """Run the critic on h_i; return L_i of (1), (B,) or (); this replica has `share` of the rows."""
        self.settle("critic")
        self._count(len(y), share, step)
        h, self._h = self._h, None
        assert h is not None
        self._here = lct.LocalLoss(h, self._c, y, self.loss, self._rule)
        if self._is_diverging(self._here.L):
            raise DivergenceError(
                f"The loss of exit {self.index} became {self._here.L.mean().item()} at step {step + 1} (epoch "
                f"{step // self._clock.per_epoch + 1}); lower groups.lr or critics.lr, or set train.clip_norm, and "
                f"resume from the last checkpoint or start again."
            )
        self._L = self._here.L
        if self._replica_group is not None and not self.per_sample:
            self._L = joint_mean(self._replica_group, self._L, share)
        return self._L

    def descend(self, step: int) -> None:
        """Step the group's weights, (2) and (3)."""
        assert self._here is not None
        self._here.descend()
        if self._c is None:
            self._here = None  # it keeps nodes of autograd alive, which belong to a stream
        self._after_sum("group", self._group_learner, step)

    def learn(self, L_next: Tensor, step: int) -> None:
        """Step the critic's weights towards L_{i+1}, (5)."""
        here, self._here = self._here, None
        if here is None or self._critic_learner is None:
            return
        self._critic_learner.begin(step, self._rows)
        here.learn(L_next, None if self.per_sample else self._L)
        self._after_sum("critic", self._critic_learner, step)

    def settle(self, *kinds: str) -> None:
        """Finish the steps that wait for the gradients of other replicas: of the group, the critic, by default both."""
        for kind in kinds or ("group", "critic"):
            if kind in self._settling:
                self._settling.pop(kind)()

    def _after_sum(self, kind: str, learner: Learner, step: int) -> None:
        """Step at once, or with replicas when their gradients are summed: at the latest before the next use."""
        clip = self._recipe.train.clip_norm
        if self._replica_group is None or not self._clock.ends(step):
            learner.step(step, clip)
            return
        learner.average_gradients()
        summing = Summing(self._replica_group, learner.module.parameters(), self._shares[0] / self._shares[1])

        def finish() -> None:
            summing.finish()
            learner.step(step, clip)

        self._settling[kind] = finish

    def _count(self, rows: int, share: float, step: int) -> None:
        """Count the rows of a minibatch, `share` of those in all replicas, among those of its update."""
        earlier = [0.0, 0.0] if self._clock.begins(step) else self._shares
        self._rows, self._shares = rows, [earlier[0] + rows, earlier[1] + rows / share]

    def start_epoch(self) -> None:
        """Reset the hidden state carried between minibatches."""
        self._group_learner.start_epoch()

    def state(self) -> dict[str, Tensor]:
        """Return everything that training continues from, under flat names."""
        self.settle()
        critic = {} if self._critic_learner is None else self._critic_learner.state("critic")
        return self._group_learner.state("main") | critic

    def load(self, flat: dict[str, Tensor]) -> None:
        """Continue from what `state` returned; raises CheckpointError where it is of another group."""
        try:
            self._group_learner.load("main", flat)
            if self._critic_learner is not None:
                self._critic_learner.load("critic", flat)
        except CheckpointError as error:
            raise CheckpointError(f"Layer group {self.index}: {error}") from None

    def _is_diverging(self, L: Tensor) -> bool:
        """Check for NaN and infinity; on an accelerator, where the check would wait, the loop checks the sums."""
        return L.device.type == "cpu" and not math.isfinite(L.sum().item())
