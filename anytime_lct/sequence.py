"""Cut a network that fx cannot follow by the names of its children, where they simply run one after another.

    forward:  if x.shape[-1] != 32: raise ..       places: ["stem", "blocks.1"]
              x = self.stem(x)
              for block in self.blocks: x = block(x)     group 1: stem | group 2: blocks.0, blocks.1 | group 3: the rest
              return self.head(x)

That they do is not believed but tried: on random input, in training and in evaluation, the groups must compute what
the uncut network computes, to the bit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from anytime_lct.errors import PartitionError
from anytime_lct.partition import owners

SEEDS = {False: 0, True: 1}  # of the trial in evaluation, and in training


class Children(nn.Module):
    """Submodules of a network under the names that they have there, run one after another."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.paths = tuple(parts)
        for path, part in parts.items():
            *way, name = path.split(".")
            holder: nn.Module = self
            for step in way:
                if step not in holder._modules:
                    holder.add_module(step, nn.Module())
                holder = holder.get_submodule(step)
            holder.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        for path in self.paths:
            x = self.get_submodule(path)(x)
        return x


def groups(model: nn.Module, places: Sequence[str], example: Tensor) -> list[Children]:
    """Cut after the named children into len(places) + 1 groups that share the network's submodules.

    `example` is a batch of inputs, whose shape is tried with random values. Raises PartitionError where a place is
    unknown or out of order, weights are tied across a cut, or the groups do not compute what the network does.

    >>> f1, f2 = groups(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), ["1"], torch.zeros(2, 4))
    """
    parts = dict(_children(model, "", places))
    names = list(parts)
    for place in places:
        if place not in parts:
            raise PartitionError(
                f"The network has no child '{place}' to cut after where fx cannot follow it; its children are "
                f"{', '.join(names[:12])}{' ..' if len(names) > 12 else ''}."
            )
    ends = [0, *(names.index(place) + 1 for place in places), len(names)]
    if any(end <= start for start, end in pairwise(ends)):
        raise PartitionError(
            f"Expected places in the order of the network's children, each once, not the last, got {', '.join(places)}."
        )
    made = [Children({name: parts[name] for name in names[start:end]}) for start, end in pairwise(ends)]
    owners(made)
    _expect_all(model, made)
    _try(model, made, example)
    return made


def _children(module: nn.Module, prefix: str, places: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """Children in order; containers that a place lies in, and those that cannot be called, are opened."""
    for name, child in module._modules.items():
        path = f"{prefix}{name}"
        if child is None:
            continue
        if isinstance(child, nn.ModuleList) or any(place.startswith(f"{path}.") for place in places):
            yield from _children(child, f"{path}.", places)
        else:
            yield path, child


def _expect_all(model: nn.Module, made: Sequence[nn.Module]) -> None:
    held = {name for group in made for name in group.state_dict()}
    if lost := sorted(model.state_dict().keys() - held):
        raise PartitionError(
            f"The network holds '{lost[0]}' outside of its children, so that they are not all of it, and fx cannot "
            f"follow it either; put it into a submodule."
        )


def _try(model: nn.Module, made: Sequence[Children], example: Tensor) -> None:
    """Compare groups and network on copies; batch norms may count and dropout may draw."""
    for training, seed in SEEDS.items():
        whole, groups = copy.deepcopy((model, list(made)))
        outcomes = []
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for run in ([whole], groups):
                torch.manual_seed(seed)
                x = torch.randn_like(example) if example.is_floating_point() else example
                try:
                    for part in run:
                        x = part.train(training)(x)
                except (RuntimeError, TypeError, ValueError):  # a child that does not read what the one before it gives
                    x = None
                outcomes.append(x)
        if not all(isinstance(Z, Tensor) for Z in outcomes) or not torch.equal(*outcomes):
            raise PartitionError(
                f"The groups between {', '.join(name for group in made[:-1] for name in group.paths[-1:])} do not "
                f"compute what the network does{' in training' if training else ''}, which runs more than its children "
                f"one after another, and fx cannot follow it either; put what {type(model).__name__}.forward adds into "
                f"submodules."
            )
