"""The layer groups between cuts, which run and share the network's own submodules.

The steps between two cuts become a group, which runs the original submodules: the groups in sequence compute what the
uncut network computes, to the bit, and parameters keep their names. A network that fx cannot follow is cut by the names
of its children, where they simply run one after another:

    forward:  if x.shape[-1] != 32: raise ..       places: ["stem", "blocks.1"]
              x = self.stem(x)                     group 1: stem
              for block in self.blocks:            group 2: blocks.0, blocks.1
                  x = block(x)                     group 3: blocks.2, .., fc
              return self.fc(x)

Whether groups train and answer as the network does is tested by `comparison.expect_equal`.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from importlib import import_module
from itertools import pairwise
from types import ModuleType
from typing import Any

from torch import Tensor, fx, nn

from anytime_lct.cutting.sizes import expect_shape
from anytime_lct.cutting.trace import Trace
from anytime_lct.errors import PartitionError


def cut_groups(trace: Trace, places: Sequence[str]) -> list[Steps]:
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


def segments(trace: Trace, positions: Sequence[int]) -> list[Steps]:
    """Make one module of the steps between any two neighbouring positions, start and end included."""
    end = len(trace.recording.steps)
    values = {0: trace.recording.input, **trace.crossing, end: trace.recording.result}
    groups, used = [], set()
    for start, stop in pairwise([0, *positions, end]):
        group = _steps(trace, start, stop, values[start], values[stop], used)
        used |= {id(module) for module in group.modules()}
        groups.append(group)
    return groups


def _steps(trace: Trace, start: int, stop: int, entry: fx.Node, result: fx.Node, used: set[int]) -> Steps:
    graph, attributes = fx.Graph(), {}
    copies = {entry: graph.placeholder("input")}
    if start == 0 and trace.recording.shape is not None:
        graph.call_function(expect_shape, (copies[entry], trace.recording.shape))

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
                # A ReLU or Dropout of several groups: train() of one must not change the others.
                value = copy.deepcopy(value)
            attributes[node.target] = value
    group = Steps(attributes, graph, trace.model.state_dict().keys())
    modes = {path: module.training for path, module in trace.model.named_modules()}
    for path, module in group.named_modules():
        module.training = modes.get(path, module.training)
    return group


class Steps(nn.Module):
    """Steps of a network in one graph, with the modules and tensors that it uses under their names in the network.

    fx.GraphModule is this too, but has attributes of its own, such as `graph`, which a network's part may be called.
    Tensors that are not in `saved`, the names of the network's state, are kept out of the state here too.
    """

    def __init__(self, attributes: dict[str, Any], graph: fx.Graph, saved: Collection[str]) -> None:
        super().__init__()
        for path, value in attributes.items():
            _insert(self, path, value, persistent=path in saved)
        code = graph.python_code("self")
        self._program = _Program(code.src, code.globals)

    def forward(self, input: Tensor) -> Tensor:
        return self._program.run(self, input)


class _Program:
    """The code of a graph; copies of the group share it."""

    def __init__(self, source: str, names: dict[str, Any]) -> None:
        self._source, self._names = source, names
        scope = dict(names)
        exec(compile(source, "<layer group>", "exec"), scope)
        self.run = scope["forward"]

    def __deepcopy__(self, memo: dict[int, Any]) -> _Program:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        modules = {name: value.__name__ for name, value in self._names.items() if isinstance(value, ModuleType)}
        return _load_program, (self._source, {n: v for n, v in self._names.items() if n not in modules}, modules)


def _load_program(source: str, names: dict[str, Any], modules: dict[str, str]) -> _Program:
    return _Program(source, names | {name: import_module(module) for name, module in modules.items()})


def _insert(holder: nn.Module, path: str, value: Any, *, persistent: bool = True) -> None:
    """Set a module, parameter, buffer or constant by its path, in containers that are made where there are none."""
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in holder._modules:
            holder.add_module(parent, nn.Module())
        holder = holder.get_submodule(parent)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        holder.register_buffer(name, value, persistent)
    else:
        setattr(holder, name, value)


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


def _add_unused(model: nn.Module, groups: Sequence[nn.Module], owner: dict[int, tuple[int, str]]) -> None:
    """Add unused weights to the last group, and a weight's second name to the group that has its first."""
    names = {name for group in groups for name in group.state_dict()}
    for name, value in model.state_dict(keep_vars=True).items():
        if name not in names:
            _insert(groups[owner.get(id(value), (len(groups), name))[0] - 1], name, value)


class Children(nn.Module):
    """Submodules of a network, under their own names, run one after another."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self._paths = tuple(parts)
        for path, part in parts.items():
            _insert(self, path, part)

    def forward(self, x: Tensor) -> Tensor:
        for path in self._paths:
            x = self.get_submodule(path)(x)
        return x


def cut_children(model: nn.Module, places: Sequence[str]) -> list[Children]:
    """Cut after the named children into len(places) + 1 groups that share the network's submodules.

    Raises PartitionError where a place is unknown or out of order, or weights are tied across a cut.

    >>> f1, f2 = cut_children(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), ["1"])
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
