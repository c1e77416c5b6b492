"""What all training methods share: a module with its optimizer, its schedule, its precision and its flat state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from anytime_lct.errors import CheckpointError
from anytime_lct.modes import carriers
from anytime_lct.recipes.recipe import OptimizerRecipe, ScheduleRecipe, TrainRecipe
from anytime_lct.training import norms
from anytime_lct.training.averaging import Average
from anytime_lct.training.schedule import Clock, rate_factor

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def random_seed(seed: int, step: int, index: int = 1, replica: int = 0) -> int:
    """Return the seed of all random numbers in layer group `index` (from 1) at a step (from 0) of a run.

    It depends on nothing else: a group may be trained in any process, and a run may be resumed, with equal results.
    Replicas draw different numbers, for dropout for instance.
    """
    return (seed * 1_000_003 + step) * 1_009 + index + replica * 2**40


class Learner:
    """A module with its optimizer: `step(k)` moves its weights along their gradients by the schedule's rate at step k.

    A step is `begin`, backward passes, and `step`. Where a clock accumulates, the weights move at the end of an update,
    along the mean gradient of all its samples: that of one large minibatch. With `average`, a decay, it keeps the
    moving average of the weights too.

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
        self._unit = self._rows = 0  # samples whose mean the gradients are in units of, and samples of the update
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

    def begin(self, step: int, rows: int) -> None:
        """Prepare for the mean gradient of a minibatch of `rows` samples, which is added to those of its update."""
        if self._clock.begins(step):
            self._optimizer.zero_grad()
            self._unit, self._rows = rows, rows
        else:
            self._weigh(rows)
            self._rows += rows

    def average_gradients(self) -> None:
        """Make the gradients the mean over all samples of the update."""
        self._weigh(self._rows)

    def _weigh(self, rows: int) -> None:
        """Turn gradients that are means over `_unit` samples into shares of a mean over `rows` samples."""
        if rows != self._unit:
            for weight in self._weights.values():
                if weight.grad is not None:
                    weight.grad.mul_(self._unit / rows)
            self._unit = rows

    def step(self, step: int, clip_norm: float | None = None) -> None:
        """Take step `step` of the run, from 0, after clipping the module's gradient to `clip_norm`, unless 0."""
        if not self._clock.ends(step):
            return
        self.average_gradients()
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
        rate = self._rate * rate_factor(self._schedule, self._clock, step)
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
