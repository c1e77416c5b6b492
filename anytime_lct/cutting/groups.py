"""The layer groups between cuts, which run, and share, the network's own submodules.

The steps between two cuts become a group, an fx.GraphModule over the original submodules: composed groups compute what
the uncut network computes, to the bit, and parameters keep their names. A network that fx cannot follow is cut by the
names of its children, where they simply run one after another:

    forward:  if x.shape[-1] != 32: raise ..       places: ["stem", "blocks.1"]
              x = self.stem(x)
              for block in self.blocks: x = block(x)     group 1: stem | group 2: blocks.0, blocks.1 | group 3: the rest
              return self.head(x)

That they do is tried, not believed: on random input, in training and in evaluation, the groups must compute what the
uncut network computes, to the bit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from anytime_lct.cutting.trace import Trace
from anytime_lct.errors import PartitionError


def cut_groups(traced: Trace, places: Sequence[str]) -> list[fx.GraphModule]:
    """Cut at the named places into len(places) + 1 groups; group i ends where places[i - 1] does.

    Every name of the network's state_dict is in exactly one group's: weights that the forward pass never uses
    go to the last group. Raises PartitionError for unknown, illegal or unordered places, tied weights and
    empty groups.

    >>> f1, f2 = cut_groups(Trace.of(torchvision.models.resnet18()), ["layer2"])
    """
    cuts = [traced.find(name) for name in places]
    for before, after in pairwise(cuts):
        if after.position <= before.position:
            raise PartitionError(
                f"Expected places in the order of execution, each once; '{after.name}' does not come after "
                f"'{before.name}'."
            )
    made = segments(traced, [cut.position for cut in cuts])
    owner = owners(made)
    for number, group in enumerate(made, start=1):
        if places and not any(p.requires_grad for p in group.parameters()):
            raise PartitionError(
                f"Layer group {number} of the places {', '.join(places)} has no weights to train; leave a place out."
            )
    _adopt_unused(traced.model, made, owner)
    return made


def segments(traced: Trace, positions: Sequence[int]) -> list[fx.GraphModule]:
    """Make one GraphModule of the steps between each two neighbouring positions, ends included."""
    end = len(traced.recording.steps)
    values = {0: traced.recording.input, **traced.crossing, end: traced.recording.result}
    made, taken = [], set()
    for number, (start, stop) in enumerate(pairwise([0, *positions, end]), start=1):
        group = _subgraph(traced, start, stop, values[start], values[stop], f"Group{number}", taken)
        taken |= {id(module) for module in group.modules()}
        made.append(group)
    return made


def _subgraph(
    traced: Trace, start: int, stop: int, entry: fx.Node, result: fx.Node, name: str, taken: set[int]
) -> fx.GraphModule:
    graph, attributes = fx.Graph(), {}
    copies = {entry: graph.placeholder("input")}

    def copy_of(node: fx.Node) -> fx.Node:
        if node in traced.recording.batch_size and node not in copies:
            copies[node] = graph.call_method("size", (copies[entry], 0))
        if node not in copies:  # what is fetched, not computed, comes with the step that needs it
            copies[node] = graph.node_copy(node, copy_of)
            copies[node].meta = {}
        return copies[node]

    for step in traced.recording.steps[start:stop]:
        copy_of(step)
    graph.output(copy_of(result))
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            value = traced.recording.attributes[node.target]
            if isinstance(value, nn.Module) and id(value) in taken and not value.state_dict():
                value = copy.deepcopy(value)  # a ReLU or Dropout of several groups: train() of one leaves the others
            attributes[node.target] = value
    made = _Group(attributes, graph, name)
    modes = {path: module.training for path, module in traced.model.named_modules()}
    for path, module in made.named_modules():
        module.training = modes.get(path, module.training)
    _keep_out_of_state(made, attributes, traced.model.state_dict().keys())
    return made


class _Group(fx.GraphModule):
    """A layer group whose copies keep out of their state_dict what it does, which fx forgets before torch 2.14."""

    def __deepcopy__(self, memo: dict[int, Any]) -> fx.GraphModule:
        made = super().__deepcopy__(memo)
        for own, copied in zip(self.modules(), made.modules(), strict=True):
            copied._non_persistent_buffers_set = set(own._non_persistent_buffers_set)
        return made


def _keep_out_of_state(made: fx.GraphModule, attributes: dict[str, Any], names: Any) -> None:
    """Constants and non-persistent buffers, which fx makes buffers, stay out of the state_dict."""
    for target, value in attributes.items():
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and target not in names:
            path, _, field = target.rpartition(".")
            made.get_submodule(path)._non_persistent_buffers_set.add(field)


def owners(made: Sequence[nn.Module]) -> dict[int, tuple[int, str]]:
    """Group and name of every weight and buffer; raises PartitionError where two groups hold one."""
    owner: dict[int, tuple[int, str]] = {}
    for number, group in enumerate(made, start=1):
        for name, value in group.state_dict(keep_vars=True).items():
            first, other = owner.setdefault(id(value), (number, name))
            if first != number:
                raise PartitionError(
                    f"Weights tied across a cut cannot be trained apart: '{other}' in layer group {first} "
                    f"and '{name}' in layer group {number} are the same tensor; cut so that both fall into "
                    "one group, or untie them."
                )
    return owner


def _adopt_unused(model: nn.Module, made: Sequence[fx.GraphModule], owner: dict[int, tuple[int, str]]) -> None:
    """Give unused weights to the last group, a weight's second name to the group with its first."""
    held = {name for group in made for name in group.state_dict()}
    for name, value in model.state_dict(keep_vars=True).items():
        if name in held:
            continue
        if not isinstance(value, Tensor):
            raise PartitionError(f"The state '{name}' of the network is no tensor and no layer's own; it has no group.")
        holder: nn.Module = made[owner.get(id(value), (len(made), name))[0] - 1]
        *path, field = name.split(".")
        for part in path:
            if not hasattr(holder, part):
                holder.add_module(part, nn.Module())
            holder = getattr(holder, part)
        if isinstance(value, nn.Parameter):
            holder.register_parameter(field, value)
        else:
            holder.register_buffer(field, value)


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


def cut_children(model: nn.Module, places: Sequence[str], example: Tensor) -> list[Children]:
    """Cut after the named children into len(places) + 1 groups that share the network's submodules.

    `example` is a batch of inputs, whose shape is tried with random values. Raises PartitionError where a place is
    unknown or out of order, weights are tied across a cut, or the groups do not compute what the network does.

    >>> f1, f2 = cut_children(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), ["1"], torch.zeros(2, 4))
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
