"""The memory that a training step takes, estimated before the first one, and whether this machine has it."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anytime_lct.cutting.costs import saved_in_turn, weight_bytes
from anytime_lct.data.datasets import has_sizes
from anytime_lct.errors import RecipeError
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import Recipe
from anytime_lct.task import Facts
from anytime_lct.training.memory import available
from anytime_lct.training.methods.table import Alive, row_of
from anytime_lct.training.prepare import weight_copies
from anytime_lct.training.processes.team import Team, owned

# Measured peaks over the bytes saved for backward. On CPUs kernels copy what they read into layouts of their own, and
# blocks that one group frees seldom fit the next one; torch's allocator on a GPU counts neither.
CPU_PEAK: dict[Alive, float] = {"group": 2.0, "critics": 2.0, "all": 1.3}
GPU_PEAK = 1.1
Saved = tuple[int, int]  # bytes of a group and of its critic
HALF = 0.55  # what bfloat16 leaves of float32's activations


@dataclass(frozen=True)
class Demand:
    """Bytes of a training step on `rows` samples in this process, beside the weights where these are in memory already.

    `saved` are activations for the backward pass and the minibatch, `fixed` gradients and optimizer slots; the step's
    peak is higher than their sum.
    """

    rows: int
    saved: float
    fixed: float
    peak: float

    @property
    def least(self) -> float:
        """Bytes without which no step runs."""
        return self.fixed + self.saved

    @property
    def estimate(self) -> float:
        """Bytes that a step takes at its peak, within a factor of about 1.5."""
        return self.fixed + self.peak * self.saved

    def fitting_rows(self, free: float) -> int:
        """Return how many samples a step can have within `free` bytes; below 1 where none fits."""
        return int((free - self.fixed) / (self.peak * self.saved) * self.rows)


def estimate(network: LCTNetwork, recipe: Recipe, example: Tensor, team: Team) -> Demand | None:
    """Estimate a step on a batch like `example`, in this process; None where that fails.

    All activations of a network without cuts, or with joint losses, are alive at a time, those of one group in local
    critic training. `team.bounds` are the groups of this process, () where it has all.
    """
    row = row_of(recipe.train.method)
    critics = list(network.critics) if row.exits else []
    mine = owned(team.bounds, team.worker) if team.bounds else range(network.num_groups)
    try:
        saved_by = _saved(network, critics, example, input_grad=row.alive == "all")
    except Exception:  # what does not run on two samples, or cannot be copied, is reported where it is needed
        return None
    amounts = [sum(saved_by[k]) if row.alive != "critics" else saved_by[k][1] for k in mine]
    saved = (max if row.alive == "group" else sum)(amounts) * (HALF if recipe.train.precision == "bfloat16" else 1)
    trained = [] if row.alive == "critics" else [network.groups[k] for k in mine]
    extra = bool(recipe.train.average) - 1
    fixed = (weight_copies(recipe.groups) + extra) * _weights(trained)
    fixed += (weight_copies(recipe.critics) + extra) * _weights([critics[k] for k in mine if k < len(critics)])
    batch = 2 * example.numel() * example.element_size()  # this one and the next
    if team.device.type == "cpu":
        return Demand(len(example), saved + batch, fixed, CPU_PEAK[row.alive])
    whole = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    return Demand(len(example), saved + batch, fixed + whole, GPU_PEAK)


def expect_room(demand: Demand, recipe: Recipe, facts: Facts, team: Team) -> str | None:
    """Raise RecipeError where a step cannot fit into the memory that is free; return a warning where it may not.

    On CPUs the processes of a machine share its memory. All processes of a team call this alike.
    """
    least, most = demand.least, demand.estimate
    if team.device.type == "cpu" and team.size > 1:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", team.size)) / team.size
        least, most = (here * team.sum(torch.tensor([least, most], dtype=torch.float64))).tolist()
    free = available(team.device)
    if free is None or most <= free:
        return None
    rows = demand.fitting_rows(free * demand.estimate / most) * team.replicas
    side = " or data.image_size" if has_sizes(facts.name) else ""
    remedy = f"set data.batch_size={_round(rows)}{f', or a smaller{side[3:]}' if side else ''}"
    if rows < 1:
        remedy = f"no data.batch_size fits: choose a smaller network{side}"
    where = "GPU" if team.device.type == "cuda" else "machine"
    step = f"a training step at data.batch_size={recipe.data.batch_size} takes about {show_bytes(most)}"
    if least > free:
        raise RecipeError(
            f"Expected a step that fits into the {show_bytes(free)} of memory that this {where} has free, but {step}; "
            f"{remedy}."
        )
    return f"This {where} has {show_bytes(free)} of memory free, and {step}; if it does not fit, {remedy}."


@contextmanager
def out_of_memory(recipe: Recipe) -> Iterator[None]:
    """Report in one sentence, as a RecipeError, that a step inside found no more memory."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise RecipeError(
            f"The memory does not suffice for a training step at data.batch_size={recipe.data.batch_size}; set "
            f"data.batch_size={_round((recipe.data.batch_size or 1) * 2 // 3) or 1}, or free memory, and start again."
        ) from None


def show_bytes(count: float) -> str:
    """Format bytes.

    >>> show_bytes(63_500_000), show_bytes(18_200_000_000)
    ('64 MB', '18.2 GB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6))} MB"


def _saved(network: LCTNetwork, critics: list[nn.Module], example: Tensor, *, input_grad: bool) -> list[Saved]:
    """Return what each group and its critic save on a batch like `example`, from two small batches on copies."""
    groups, critics = copy.deepcopy((list(network.groups), critics))
    for module in (*groups, *critics):
        module.train()
    behind = [*critics, *[None] * (len(groups) - len(critics))]
    with torch.random.fork_rng(devices=[]):
        two, three = (saved_in_turn(groups, behind, example[:1].expand(n, *example.shape[1:]), input_grad=input_grad)
                      for n in (2, 3))  # fmt: skip
    more = len(example) - 2
    return [
        (group + more * (next_group - group), critic + more * (next_critic - critic))
        for (group, critic), (next_group, next_critic) in zip(two, three, strict=True)
    ]


def _weights(modules: list[nn.Module]) -> int:
    return sum(weight_bytes(module) for module in modules)


def _round(rows: int) -> int:
    """Round a batch size down to a multiple of 8, as people choose it, where it is not small."""
    return rows - rows % 8 if rows >= 16 else rows
