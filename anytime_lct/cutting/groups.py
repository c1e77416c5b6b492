"""The layer groups between cuts, which run and share the network's own submodules.

The steps between two cuts become a group, an fx.GraphModule over the original submodules: the groups in sequence
compute what the uncut network computes, to the bit, and parameters keep their names. A network that fx cannot follow is
cut by the names of its children, where they simply run one after another:

    forward:  if x.shape[-1] != 32: raise ..       places: ["stem", "blocks.1"]
              x = self.stem(x)                     group 1: stem
              for block in self.blocks:            group 2: blocks.0, blocks.1
                  x = block(x)                     group 3: blocks.2, .., fc
              return self.fc(x)

This is tested: on random input, in training and in evaluation, the groups must compute what the uncut network computes,
to the bit.
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


def cut_groups(trace: Trace, places: Sequence[str]) -> list[fx.GraphModule]:
    """Cut at the named places into len(places) + 1 groups; group i ends where places[i - 1] does.

    Every name of the network's state_dict is in exactly one group's: weights that the forward pass never uses go to the
    last group. Raises PartitionError for unknown, illegal or unordered places, tied weights and empty groups.

    >>> f1, f2 = cut_groups(Trace.of(torchvision.models.resnet18()), ["layer2"])
    """
    cuts = [trace.find(name) for name in places]
    for before, after in pairwise(cuts):
        if after.position <= before.position:
            raise PartitionError(
                f"Expected places in the order of execution, each once; '{after.name}' does not come after "
                f"'{before.name}'."
            )
    groups = segments(trace, [cut.position for cut in cuts])
    owner = owners(groups)
    for number, group in enumerate(groups, start=1):
        if places and not any(p.requires_grad for p in group.parameters()):
            raise PartitionError(
                f"Layer group {number} of the places {', '.join(places)} has no weights to train; remove a place."
            )
    _add_unused(trace.model, groups, owner)
    return groups


def segments(trace: Trace, positions: Sequence[int]) -> list[fx.GraphModule]:
    """Make one GraphModule of the steps between any two neighbouring positions, start and end included."""
    end = len(trace.recording.steps)
    values = {0: trace.recording.input, **trace.crossing, end: trace.recording.result}
    groups, used = [], set()
    for number, (start, stop) in enumerate(pairwise([0, *positions, end]), start=1):
        group = _subgraph(trace, start, stop, values[start], values[stop], f"Group{number}", used)
        used |= {id(module) for module in group.modules()}
        groups.append(group)
    return groups


def _subgraph(
    trace: Trace, start: int, stop: int, entry: fx.Node, result: fx.Node, name: str, used: set[int]
) -> fx.GraphModule:
    graph, attributes = fx.Graph(), {}
    copies = {entry: graph.placeholder("input")}

    def copy_of(node: fx.Node) -> fx.Node:
        if node in trace.recording.batch_size and node not in copies:
            copies[node] = graph.call_method("size", (copies[entry], 0))
        if node not in copies:  # weights and constants are fetched where a step needs them
            copies[node] = graph.node_copy(node, copy_of)
            copies[node].meta = {}
        return copies[node]

    for step in trace.recording.steps[start:stop]:
        copy_of(step)
    graph.output(copy_of(result))
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            value = trace.recording.attributes[node.target]
            if isinstance(value, nn.Module) and id(value) in used and not value.state_dict():
                value = copy.deepcopy(
                    value
                )  # a ReLU or Dropout of several groups: train() of one must not change the others
            attributes[node.target] = value
    group = _Group(attributes, graph, name)
    modes = {path: module.training for path, module in trace.model.named_modules()}
    for path, module in group.named_modules():
        module.training = modes.get(path, module.training)
    _keep_out_of_state(group, attributes, trace.model.state_dict().keys())
    return group


class _Group(fx.GraphModule):
    """A layer group whose copies have its non-persistent buffers too, which fx makes persistent before torch 2.14."""

    def __deepcopy__(self, memo: dict[int, Any]) -> fx.GraphModule:
        group = super().__deepcopy__(memo)
        for original, copied in zip(self.modules(), group.modules(), strict=True):
            copied._non_persistent_buffers_set = set(original._non_persistent_buffers_set)
        return group


def _keep_out_of_state(group: fx.GraphModule, attributes: dict[str, Any], names: Any) -> None:
    """Keep constants and non-persistent buffers, which fx registers as buffers, out of the state_dict."""
    for target, value in attributes.items():
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and target not in names:
            path, _, field = target.rpartition(".")
            group.get_submodule(path)._non_persistent_buffers_set.add(field)


def owners(groups: Sequence[nn.Module]) -> dict[int, tuple[int, str]]:
    """Return the group and name of every weight and buffer, by id; raises PartitionError where two groups hold one."""
    owner: dict[int, tuple[int, str]] = {}
    for number, group in enumerate(groups, start=1):
        for name, value in group.state_dict(keep_vars=True).items():
            first, other = owner.setdefault(id(value), (number, name))
            if first != number:
                raise PartitionError(
                    f"Weights tied across a cut cannot be trained separately: '{other}' in layer group {first} "
                    f"and '{name}' in layer group {number} are the same tensor; cut so that both are in one "
                    "group, or untie them."
                )
    return owner


def _add_unused(model: nn.Module, groups: Sequence[fx.GraphModule], owner: dict[int, tuple[int, str]]) -> None:
    """Add unused weights to the last group, and a weight's second name to the group that has its first."""
    names = {name for group in groups for name in group.state_dict()}
    for name, value in model.state_dict(keep_vars=True).items():
        if name in names:
            continue
        if not isinstance(value, Tensor):
            raise PartitionError(f"The state '{name}' of the network is no tensor and belongs to no group.")
        holder: nn.Module = groups[owner.get(id(value), (len(groups), name))[0] - 1]
        *path, field = name.split(".")
        for part in path:
            if not hasattr(holder, part):
                holder.add_module(part, nn.Module())
            holder = getattr(holder, part)
        if isinstance(value, nn.Parameter):
            holder.register_parameter(field, value)
        else:
            holder.register_buffer(field, value)


SEEDS = {False: 0, True: 1}  # of the test in evaluation, and in training


class Children(nn.Module):
    """Submodules of a network, under their own names, run one after another."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.paths = tuple(parts)
        for path, part in parts.items():
            *parents, name = path.split(".")
            holder: nn.Module = self
            for parent in parents:
                if parent not in holder._modules:
                    holder.add_module(parent, nn.Module())
                holder = holder.get_submodule(parent)
            holder.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        for path in self.paths:
            x = self.get_submodule(path)(x)
        return x


def cut_children(model: nn.Module, places: Sequence[str], example: Tensor) -> list[Children]:
    """Cut after the named children into len(places) + 1 groups that share the network's submodules.

    `example` is a batch of inputs; the groups are tested on random values of its shape. Raises PartitionError where a
    place is unknown or out of order, weights are tied across a cut, or the groups do not compute what the network does.

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
    groups = [Children({name: parts[name] for name in names[start:end]}) for start, end in pairwise(ends)]
    owners(groups)
    _expect_all(model, groups)
    _expect_equal(model, groups, example)
    return groups


def _children(module: nn.Module, prefix: str, places: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the children in order, opening ModuleLists and the containers that a place lies in."""
    for name, child in module._modules.items():
        path = f"{prefix}{name}"
        if child is None:
            continue
        if isinstance(child, nn.ModuleList) or any(place.startswith(f"{path}.") for place in places):
            yield from _children(child, f"{path}.", places)
        else:
            yield path, child


def _expect_all(model: nn.Module, groups: Sequence[nn.Module]) -> None:
    names = {name for group in groups for name in group.state_dict()}
    if missing := sorted(model.state_dict().keys() - names):
        raise PartitionError(
            f"The network holds '{missing[0]}' outside of its children, so that they are not all of it, and fx cannot "
            f"follow it either; move it into a submodule."
        )


def _expect_equal(model: nn.Module, groups: Sequence[Children], example: Tensor) -> None:
    """Compare groups and network on copies, as batch norms update statistics; dropout draws the same numbers."""
    for training, seed in SEEDS.items():
        whole, copies = copy.deepcopy((model, list(groups)))
        outputs = []
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for parts in ([whole], copies):
                torch.manual_seed(seed)
                x = torch.randn_like(example) if example.is_floating_point() else example
                try:
                    for part in parts:
                        x = part.train(training)(x)
                except (RuntimeError, TypeError, ValueError):  # a child cannot read the output of the one before it
                    x = None
                outputs.append(x)
        if not all(isinstance(Z, Tensor) for Z in outputs) or not torch.equal(*outputs):
            raise PartitionError(
                f"The groups between {', '.join(name for group in groups[:-1] for name in group.paths[-1:])} do not "
                f"compute what the network does{' in training' if training else ''}, which runs more than its children "
                f"one after another, and fx cannot follow it either; move what {type(model).__name__}.forward adds "
                f"into submodules."
            )
