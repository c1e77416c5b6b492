"""What all training methods share: a module with its optimizer, its schedule, its precision and its flat state."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from anytime_lct.errors import CheckpointError
from anytime_lct.modes import carriers
from anytime_lct.recipes.recipe import OptimizerRecipe, ScheduleRecipe, TrainRecipe
from anytime_lct.training import norms
from anytime_lct.training.averaging import Average

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


FRESH_RISE = 500  # steps at most: Adam's averages of squares are settled


def random_seed(seed: int, step: int, index: int = 1, replica: int = 0) -> int:
    """Return the seed of all random numbers in layer group `index` (from 1) at a step (from 0) of a run.

    It depends on nothing else: a group may be trained in any process, and a run may be resumed, with equal results.
    Replicas draw different numbers, for dropout for instance.
    """
    return (seed * 1_000_003 + step) * 1_009 + index + replica * 2**40


@dataclass(frozen=True)
class Clock:
    """The number of steps of the run, in total and per epoch, and the samples of a whole minibatch in this process.

    At step `fresh_start`, unless it is 0, the optimizers start without the state that they had.
    """

    total: int
    per_epoch: int
    rows: int = 1
    fresh_start: int = 0

    @property
    def rise(self) -> int:
        """The number of steps over which learning rates rise after a fresh start."""
        return min(FRESH_RISE, self.per_epoch) if self.fresh_start else 0

    def warmth(self, step: int) -> float:
        """Return the factor, up to 1, of learning rates after a fresh start."""
        return min(1.0, (step - self.fresh_start + 1) / self.rise) if self.rise else 1.0


class Learner:
    """A module with its optimizer: `step(k)` moves its weights along their gradients by the schedule's rate at step k.

    With `average`, a decay, it keeps the moving average of the weights too.

    Its state holds weights, buffers, optimizer slots and the hidden state carried between minibatches, under flat
    names, but no random state.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: OptimizerRecipe,
        schedule: ScheduleRecipe,
        clock: Clock,
        average: float = 0.0,
    ) -> None:
        self.module = module
        self._average = Average(module, average) if average else None
        self._schedule, self._clock = schedule, clock
        assert optimizer.name is not None and optimizer.lr is not None, "an optimizer that is fitted to the network"
        self._rate = self._current = optimizer.lr
        self._weights = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        on_gpu = any(weight.is_cuda for weight in self._weights.values())
        options: dict[str, float | bool] = {"lr": optimizer.lr, "weight_decay": optimizer.weight_decay or 0.0}
        options["fused"] = True
        if optimizer.name == "sgd":
            options |= {"momentum": optimizer.momentum, "nesterov": optimizer.nesterov and optimizer.momentum > 0}
        elif on_gpu:
            options["capturable"] = True
        self._optimizer = OPTIMIZERS[optimizer.name](self._weights.values(), **options)
        if on_gpu:  # a recorded step reads its rate from the device
            for parameters in self._optimizer.param_groups:
                parameters["lr"] = torch.full((), optimizer.lr, device=parameters["params"][0].device)

    def zero_grad(self) -> None:
        self._optimizer.zero_grad()

    def step(self, step: int, clip_norm: float | None = None) -> None:
        """Take step `step` of the run, from 0, after clipping the module's gradient to `clip_norm`, unless 0."""
        if clip_norm:
            nn.utils.clip_grad_norm_(self.module.parameters(), clip_norm)
        for weight in self._weights.values():  # fused kernels read gradients in the memory layout of the weights
            if weight.grad is not None and weight.grad.stride() != weight.stride():
                weight.grad = torch.empty_like(weight).copy_(weight.grad)
        self.set_rate(step)
        self._optimizer.step()
        if self._average is not None:
            self._average.update()

    def set_rate(self, step: int) -> None:
        """Set the learning rate of step `step`, on a GPU in place; a rate that is set already costs nothing."""
        clock = self._clock
        rate = self._rate * clock.warmth(step) * factor(self._schedule, step, clock.total, clock.per_epoch)
        if rate == self._current:
            return
        self._current = rate
        for parameters in self._optimizer.param_groups:
            if isinstance(parameters["lr"], Tensor):
                parameters["lr"].fill_(rate)
            else:
                parameters["lr"] = rate

    def start_epoch(self) -> None:
        """Reset the hidden state that is carried between minibatches, and carry it from now on."""
        for _, module in carriers(self.module):
            module.carry, module.state = True, None

    def averaged(self) -> AbstractContextManager[None]:
        """Return a block in which the module has its average weights, where the run keeps these."""
        return nullcontext() if self._average is None else self._average.applied()

    def state(self, kind: str) -> dict[str, Tensor]:
        """Return everything that training resumes from, as `kind.NAME`, `kind_optimizer.NAME.SLOT`."""
        flat = module_state(kind, self.module) | ({} if self._average is None else self._average.state(kind))
        for name, weight in self._weights.items():
            for slot, value in self._optimizer.state.get(weight, {}).items():
                if value is not None:
                    flat[f"{kind}_optimizer.{name}.{slot}"] = torch.as_tensor(value)
        return flat

    def load(self, kind: str, flat: dict[str, Tensor]) -> None:
        """Load what `state` returned; raises CheckpointError where it belongs to another module."""
        load_module(kind, self.module, flat)
        try:
            self._load_slots(_without_prefix(f"{kind}_optimizer.", flat))
            if self._average is not None:
                self._average.load(kind, flat)
        except (RuntimeError, ValueError) as error:
            raise _mismatch_error(error) from None

    def _load_slots(self, flat: dict[str, Tensor]) -> None:
        numbers = {name: number for number, name in enumerate(self._weights)}
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in flat.items():
            name, _, slot = key.rpartition(".")
            if name not in numbers:
                raise ValueError(f"its optimizer has state of '{name}', which is no weight here")
            weight = self._weights[name]
            if value.shape == weight.shape:  # fused kernels need the same memory layout for weights and slots
                value = torch.empty_like(weight, requires_grad=False).copy_(value)
            slots.setdefault(numbers[name], {})[slot] = value
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": slots})


@contextmanager
def averaged(learners: Sequence[Learner]) -> Iterator[None]:
    """Give the modules of all learners their average weights within this block, where the run keeps these."""
    with ExitStack() as stack:
        for learner in learners:
            stack.enter_context(learner.averaged())
        yield


def module_state(kind: str, module: nn.Module) -> dict[str, Tensor]:
    """Return weights, buffers and the carried hidden state, as `kind.NAME`, `kind_carried.NAME.NUMBER`."""
    flat = {f"{kind}.{name}": value for name, value in module.state_dict().items()}
    for name, carrier in carriers(module):
        if carrier.state is not None:
            flat |= {f"{kind}_carried.{name}.{k}": part for k, part in enumerate(carrier.state)}
    return flat


def is_carried(name: str) -> bool:
    """Whether a tensor of `module_state` is hidden state, (layers, B, units), rather than a weight."""
    return name.partition(".")[0].endswith("_carried")


def is_slot(name: str) -> bool:
    """Whether a tensor of `Learner.state` is state of its optimizer."""
    return name.partition(".")[0].endswith("_optimizer")


def load_module(kind: str, module: nn.Module, flat: dict[str, Tensor]) -> None:
    """Load what `module_state` returned; raises CheckpointError where it belongs to another module."""
    try:
        module.load_state_dict(_without_prefix(f"{kind}.", flat))
    except RuntimeError as error:
        raise _mismatch_error(error) from None
    device = next(module.parameters()).device
    for name, carrier in carriers(module):
        parts = _without_prefix(f"{kind}_carried.{name}.", flat)
        carrier.carry = True
        carrier.state = tuple(parts[str(k)].to(device) for k in range(len(parts))) if parts else None


def _mismatch_error(error: Exception) -> CheckpointError:
    reason = str(error).strip().splitlines()[-1].strip()
    return CheckpointError(
        f"The checkpoint does not belong to this network: {reason.rstrip('.')}; start the run again in another "
        f"--run-dir."
    )


def forward_pass(module: nn.Module, train: TrainRecipe, clock: Clock, *, compiled: bool = True) -> Any:
    """Return the module's forward pass in training: in the recipe's precision, compiled where the recipe says so.

    Batch norms follow the length of the run (`norms.suit_run`), and short minibatches by their share of samples.
    """
    norms.suit_run(module, clock.total)
    averages = norms.batch_norms(module)
    module = torch.compile(module) if train.compile and compiled else module  # type: ignore[assignment]
    return _Forward(module, averages, clock.rows, train.precision == "bfloat16")


class _Forward(nn.Module):
    """A module whose forward pass, and nothing else, runs under bfloat16 autocast where `autocast` is set."""

    def __init__(self, module: nn.Module, averages: list[_BatchNorm], rows: int, autocast: bool) -> None:
        super().__init__()
        self.module = module
        self._averages, self._rows, self._autocast = averages, rows, autocast

    def forward(self, x: Tensor) -> Tensor:
        self._rows = max(self._rows, len(x))
        short = self.module.training and 2 * len(x) < self._rows
        with (
            torch.autocast(x.device.type, dtype=torch.bfloat16) if self._autocast else nullcontext(),
            norms.weighted(self._averages, len(x) / self._rows) if short else nullcontext(),
        ):
            return self.module(x)


def _without_prefix(prefix: str, flat: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names start with the prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in flat.items() if name.startswith(prefix)}


ONE_CYCLE_RISE = 0.3
ONE_CYCLE_START = 1 / 25
ONE_CYCLE_END = 1e-4 / 25


def factor(schedule: ScheduleRecipe, step: int, total: int, steps_per_epoch: int) -> float:
    """Return the factor of the base learning rate at step `step` of `total` (from 0).

    step: times gamma at each milestone; cosine: half a cosine from 1 to 0; one-cycle: cosine from 1/25 up to 1 over
    the first 30%, then down to 4e-6, like torch's OneCycleLR. A warm-up rises linearly over its epochs before that.
    """
    rise = round(schedule.warmup * steps_per_epoch)
    if step < rise:
        return (step + 1) / rise
    step, total = step - rise, max(1, total - rise)
    if schedule.name == "step":
        return schedule.gamma ** bisect_right([round(m * total) for m in sorted(schedule.milestones)], step)
    if schedule.name == "cosine":
        return (1 + math.cos(math.pi * step / total)) / 2
    if schedule.name == "one-cycle":
        peak, last = ONE_CYCLE_RISE * total - 1, total - 1
        if step <= peak:
            return _between(ONE_CYCLE_START, 1.0, step / peak if peak > 0 else 1.0)
        return _between(1.0, ONE_CYCLE_END, (step - peak) / (last - peak))
    return 1.0


def _between(start: float, end: float, share: float) -> float:
    """Interpolate from start (share 0) to end (share 1) along half a cosine."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
