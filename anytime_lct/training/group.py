"""One layer group in training: f_i, c_i, their optimizers, and what a minibatch does to them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from anytime_lct import lct
from anytime_lct import task as tasks
from anytime_lct.errors import CheckpointError, DivergenceError
from anytime_lct.network import carriers
from anytime_lct.recipe import OptimizerRecipe, Recipe, ScheduleRecipe
from anytime_lct.task import TaskName
from anytime_lct.training.replicas import Summing, join_batch_norms, joint_mean
from anytime_lct.training.schedule import factor

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@dataclass(frozen=True)
class Clock:
    """How many steps the run has in all, and in one epoch."""

    total: int
    per_epoch: int


class GroupInTraining:
    """Layer group i and its critic: `forward`, `judge` and `descend` are lct.descend in three, `learn` may come later.

    What is random in a group (dropout) depends on the seed, the step and the index alone: a group may be trained in
    any process, and a run may stop and go on, without a number changing.
    """

    def __init__(
        self,
        index: int,
        group: nn.Module,
        critic: nn.Module | None,
        recipe: Recipe,
        task: TaskName,
        clock: Clock,
        equals: Any = None,
        replica: int = 0,
    ) -> None:
        self._equals, self._replica = equals, replica
        self._settling: dict[str, Callable[[], None]] = {}
        self.index, self.group, self.critic = index, group, critic
        self._recipe, self._clock = recipe, clock
        if equals is not None and recipe.train.sync_batch_norm:
            for module in (group, critic):
                if module is not None:
                    join_batch_norms(module, equals)
        self._rule = lct.Rule(recipe.rule.form, recipe.rule.matching, recipe.rule.cross_entropy)
        self._loss = partial(_losses, task=task, label_smoothing=recipe.train.label_smoothing)
        self._group_optimizer = _optimizer(recipe.groups, group)
        self._critic_optimizer = _optimizer(recipe.critics, critic) if critic is not None else None
        self._f = _forward(torch.compile(group) if recipe.train.compile else group, recipe)
        self._c = _forward(critic, recipe) if critic is not None else None  # small, and run backward twice
        self._h: Tensor | None = None
        self._here: lct.LocalLoss | None = None
        self._L, self._share = torch.zeros(()), 1.0

    @property
    def per_sample(self) -> bool:
        return self._rule.form == "per-sample"

    def forward(self, x: Tensor, step: int) -> Tensor:
        """Run the group on h_{i-1}; return h_i, without history."""
        self.settle("group")
        seed = (self._recipe.train.seed * 1_000_003 + step) * 1_009 + self.index
        torch.manual_seed(seed + self._replica * 2**40)  # replicas drop other units
        self._group_optimizer.zero_grad()
        h: Tensor = self._f(x)
        self._h = h
        return h.detach()

    def judge(self, y: Tensor, step: int, share: float = 1.0) -> Tensor:
        """Run the critic on h_i; return L_i, (B,) or in the scalar form (), (1); `share` of the joint rows are here."""
        self.settle("critic")
        self._share = share
        h, self._h = self._h, None
        assert h is not None
        self._here = lct.LocalLoss(h, self._c, y, self._loss, self._rule)
        if self._loses_its_way(self._here.L):
            raise DivergenceError(
                f"The loss of exit {self.index} became {self._here.L.mean().item()} at step {step + 1} (epoch "
                f"{step // self._clock.per_epoch + 1}); lower groups.lr or critics.lr, or set train.clip_norm, and "
                f"resume from the last checkpoint or start again."
            )
        self._L = self._here.L
        if self._equals is not None and not self.per_sample:
            self._L = joint_mean(self._equals, self._L, share)
        return self._L

    def descend(self, step: int) -> None:
        """Step the group's weights, (2) and (3)."""
        assert self._here is not None
        self._here.descend()
        told = self._recipe
        self._after_sum(
            "group",
            self.group,
            lambda: self._step(self._group_optimizer, told.groups, told.groups_schedule, self.group, step),
        )

    def learn(self, L_next: Tensor, step: int) -> None:
        """Step the critic's weights towards L_{i+1}, (5)."""
        here, self._here = self._here, None
        if here is None or self._critic_optimizer is None or self.critic is None:
            return
        self._critic_optimizer.zero_grad()
        here.learn(L_next, None if self.per_sample else self._L)
        optimizer, critic = self._critic_optimizer, self.critic
        self._after_sum(
            "critic",
            critic,
            lambda: self._step(optimizer, self._recipe.critics, self._recipe.critics_schedule, critic, step),
        )

    def settle(self, *kinds: str) -> None:
        """Take the steps that wait for the other replicas' gradients: of the group, of the critic, by default both."""
        for kind in kinds or ("group", "critic"):
            if kind in self._settling:
                self._settling.pop(kind)()

    def _after_sum(self, kind: str, module: nn.Module, step: Callable[[], None]) -> None:
        """Step at once, or with replicas when their gradients are summed up: no later than the next use."""
        if self._equals is None:
            step()
            return
        summing = Summing(self._equals, module.parameters(), self._share)

        def finish() -> None:
            summing.finish()
            step()

        self._settling[kind] = finish

    def start_epoch(self) -> None:
        """Forget the hidden state carried over, and carry it from here on."""
        for _, module in carriers(self.group):
            module.carry, module.state = True, None

    def state(self) -> dict[str, Tensor]:
        """Everything that training goes on from, under flat names."""
        self.settle()
        flat = {f"main.{name}": value for name, value in self.group.state_dict().items()}
        flat |= _optimizer_state("group_optimizer", self._group_optimizer)
        if self.critic is not None and self._critic_optimizer is not None:
            flat |= {f"critic.{name}": value for name, value in self.critic.state_dict().items()}
            flat |= _optimizer_state("critic_optimizer", self._critic_optimizer)
        for name, module in carriers(self.group):
            if module.state is not None:
                flat |= {f"carried.{name}.{k}": part for k, part in enumerate(module.state)}
        return flat

    def load(self, flat: dict[str, Tensor]) -> None:
        """Go on from what `state` returned; raises CheckpointError where it is of another group."""
        try:
            self.group.load_state_dict(_under("main.", flat))
            _load_optimizer(self._group_optimizer, _under("group_optimizer.", flat))
            if self.critic is not None and self._critic_optimizer is not None:
                self.critic.load_state_dict(_under("critic.", flat))
                _load_optimizer(self._critic_optimizer, _under("critic_optimizer.", flat))
        except (RuntimeError, KeyError, ValueError, IndexError) as error:
            first = str(error).strip().splitlines()[-1].strip()
            raise CheckpointError(f"The checkpoint does not belong to layer group {self.index}: {first}") from None
        device = next(self.group.parameters()).device
        for name, module in carriers(self.group):
            parts = _under(f"carried.{name}.", flat)
            module.carry = True
            module.state = tuple(parts[str(k)].to(device) for k in range(len(parts))) if parts else None

    def _step(
        self,
        optimizer: torch.optim.Optimizer,
        recipe: OptimizerRecipe,
        schedule: ScheduleRecipe,
        module: nn.Module,
        step: int,
    ) -> None:
        if self._recipe.train.clip_norm is not None:
            nn.utils.clip_grad_norm_(module.parameters(), self._recipe.train.clip_norm)
        rate = recipe.lr * factor(schedule, step, self._clock.total, self._clock.per_epoch)
        for parameters in optimizer.param_groups:
            parameters["lr"] = rate
        optimizer.step()

    def _loses_its_way(self, L: Tensor) -> bool:
        """Look for NaN and infinity; on an accelerator, where looking waits for it, run.py looks at the sums."""
        return L.device.type == "cpu" and not math.isfinite(L.sum().item())


def _losses(Z: Tensor, y: Tensor, *, task: TaskName, label_smoothing: float) -> Tensor:
    return tasks.losses(task, Z, y, label_smoothing)


class _Autocast(nn.Module):
    """A module whose forward pass, and that alone, runs under bfloat16 autocast."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return self.module(x)


def _forward(module: Any, recipe: Recipe) -> nn.Module:
    return _Autocast(module) if recipe.train.precision == "bfloat16" else module


def _optimizer(recipe: OptimizerRecipe, module: nn.Module) -> torch.optim.Optimizer:
    options: dict[str, float | bool] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "fused": True}
    if recipe.name == "sgd":
        options |= {"momentum": recipe.momentum, "nesterov": recipe.nesterov and recipe.momentum > 0}
    return OPTIMIZERS[recipe.name]((p for p in module.parameters() if p.requires_grad), **options)


def _optimizer_state(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Flatten {parameter number: {slot: tensor}} to prefix.number.slot."""
    slots = optimizer.state_dict()["state"]
    return {
        f"{prefix}.{number}.{slot}": torch.as_tensor(value)
        for number, values in slots.items()
        for slot, value in values.items()
        if value is not None
    }


def _load_optimizer(optimizer: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    whole = optimizer.state_dict()
    parameters = optimizer.param_groups[0]["params"]
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in flat.items():
        number, _, slot = name.partition(".")
        owner = parameters[int(number)]
        if value.shape == owner.shape:  # fused kernels take it that weights and slots lie alike in memory
            value = torch.empty_like(owner, requires_grad=False).copy_(value)
        slots.setdefault(int(number), {})[slot] = value
    optimizer.load_state_dict({**whole, "state": slots})


def _under(prefix: str, flat: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in flat.items() if name.startswith(prefix)}
