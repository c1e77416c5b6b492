"""Cut any traceable network into layer groups that run, and share, its own submodules.

torch.fx records the operations of a forward pass in order. A *legal cut* is a place between two of them that exactly
one tensor crosses:

    conv1 bn1 relu | layer1.0.conv1 ... layer1.0.relu | layer1.1.conv1 ...     | legal, at the end of a block
                                  ^ not here: the branch and the shortcut are both alive

A *candidate* is a legal cut at the end of a block, where what follows begins a block or is a layer with weights. The
operations between two cuts become a group, an fx.GraphModule over the original submodules: composed groups compute
what the uncut network computes, to the bit, and parameters keep their names.
"""

from __future__ import annotations

import difflib
import operator
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from anytime_lct.errors import PartitionError

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.RMSNorm)
BODY_SHARE = 0.5  # a module with at least this share of the parameters is the body of the network, not a block
SHOWN_PLACES = 12


@dataclass(frozen=True)
class Cut:
    """A place between two operations: after node number `position`, where `name` (a module or node) ends."""

    position: int
    name: str


@dataclass(frozen=True)
class Trace:
    """A network as a list of operations, its legal cuts (positions) and its candidates, in order of execution."""

    model: nn.Module
    nodes: tuple[fx.Node, ...]
    attributes: dict[str, Any]
    crossing: dict[int, fx.Node]
    candidates: tuple[Cut, ...]

    def find(self, name: str) -> Cut:
        """Return the legal cut where the module (or operation) `name` ends; raises PartitionError."""
        ends = [p for p, node in enumerate(self.nodes[:-1]) if name in _chain(node) or name == node.name]
        if not ends:
            known = [path for path, _ in self.model.named_modules() if path]
            near = difflib.get_close_matches(name, known, n=3) or [cut.name for cut in self.candidates[:SHOWN_PLACES]]
            raise PartitionError(f"The network has no place '{name}' to cut after; did you mean {' or '.join(near)}?")
        position = ends[-1]
        while position not in self.crossing and _is_item_of(self.nodes[position + 1], self.nodes[position]):
            position += 1
        if position not in self.crossing:
            crossing = ", ".join(str(node) for node in _live(self.nodes, position)) or "nothing"
            raise PartitionError(
                f"The network cannot be cut after '{name}', where not one tensor crosses but {crossing}; cut after "
                f"the end of a block, for example {_listed(self.candidates)}."
            )
        return Cut(position, name)


class _Tracer(fx.Tracer):
    """Recurrent layers are leaves wherever they are defined, as torch's own modules are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.RNNBase) or super().is_leaf_module(m, module_qualified_name)


class _ByMode(nn.Module):
    """A constant of the forward pass that depends on train or eval mode, as in F.dropout(x, p, self.training)."""

    def __init__(self, in_training: Any, in_evaluation: Any) -> None:
        super().__init__()
        self.in_training, self.in_evaluation = in_training, in_evaluation

    def forward(self) -> Any:
        return self.in_training if self.training else self.in_evaluation


def trace(model: nn.Module) -> Trace:
    """Record a network's operations and find where it can be cut; raises PartitionError where it cannot be recorded."""
    graph, extra = _both_modes(model)
    nodes = tuple(graph.nodes)
    result = nodes[-1].args[0]
    if not isinstance(result, fx.Node):
        raise PartitionError("Expected a network that returns one tensor, got one that returns several values.")
    inputs = [node for node in nodes if node.op == "placeholder" and not node.args]
    if len(inputs) != 1:
        raise PartitionError(
            f"Expected a network with one input, got one with {len(inputs)}: {', '.join(map(str, inputs))}."
        )
    attributes = {**{node.target: _attribute(model, node.target) for node in nodes if node.op in _NAMED and node.target not in extra}, **extra}
    crossing = {}
    for position in range(len(nodes) - 2):
        live = _live(nodes, position)
        if len(live) == 1 and _may_cross(live[0], nodes[position + 1 :], attributes):
            crossing[position] = live[0]
    traced = Trace(model, nodes, attributes, crossing, ())
    return Trace(model, nodes, attributes, crossing, _candidates(traced))


def groups(traced: Trace, places: Sequence[str]) -> list[fx.GraphModule]:
    """Cut at the named places into len(places) + 1 groups; raises PartitionError.

    >>> f1, f2 = groups(trace(torchvision.models.resnet18()), ["layer2"])
    """
    cuts = [traced.find(name) for name in places]
    for before, after in zip(cuts, cuts[1:], strict=False):
        if after.position <= before.position:
            raise PartitionError(
                f"Expected places in the order of execution, each once; '{after.name}' does not come after '{before.name}'."
            )
    made = segments(traced, [cut.position for cut in cuts])
    _refuse_shared(made, places)
    for number, group in enumerate(made, start=1):
        if not any(p.requires_grad for p in group.parameters()):
            raise PartitionError(f"Layer group {number} of the places {', '.join(places)} has no weights; leave a place out.")
    _adopt_unused(traced.model, made)
    return made


def segments(traced: Trace, positions: Sequence[int]) -> list[fx.GraphModule]:
    """Make one GraphModule of the operations between each two neighbouring positions, ends included."""
    bounds = [-1, *positions, len(traced.nodes) - 2]
    made = []
    for number, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False), start=1):
        result = traced.crossing[end] if end in traced.crossing and end != bounds[-1] else traced.nodes[-1].args[0]
        entry = traced.crossing[start] if start >= 0 else None
        made.append(_subgraph(traced, start + 1, end, entry, result, f"Group{number}"))  # type: ignore[arg-type]
    return made


def _subgraph(traced: Trace, first: int, last: int, entry: fx.Node | None, result: fx.Node, name: str) -> fx.GraphModule:
    graph, copies = fx.Graph(), {}
    if entry is not None:
        copies[entry] = graph.placeholder("hidden")

    def copy_of(node: fx.Node) -> fx.Node:
        if node not in copies:  # constants made in an earlier group are fetched again where they are used
            copies[node] = graph.node_copy(node, copy_of)
        return copies[node]

    for node in traced.nodes[first : last + 1]:
        if node.op != "get_attr" and not (node.op == "placeholder" and node.args):
            copy_of(node)
    graph.output(copy_of(result))
    used = {node.target: traced.attributes[node.target] for node in graph.nodes if node.op in _NAMED}
    made = fx.GraphModule(used, graph, name)
    made.training = traced.model.training
    return made


_NAMED = ("call_module", "get_attr")


def _both_modes(model: nn.Module) -> tuple[fx.Graph, dict[str, nn.Module]]:
    """Trace in train and in eval mode and join the two: constants that differ are looked up when the group runs."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        in_training = _record(model.train())
        in_evaluation = _record(model.eval())
    finally:
        for module, mode in modes:
            module.training = mode
    different = PartitionError(
        "The network takes another path in training than in evaluation (auxiliary outputs, perhaps), so that it cannot "
        "be cut; switch that off, for example by aux_logits=False."
    )
    if len(in_training.nodes) != len(in_evaluation.nodes):
        raise different
    extra: dict[str, nn.Module] = {}
    for node, twin in zip(list(in_training.nodes), in_evaluation.nodes, strict=True):
        if (node.op, node.target) != (twin.op, twin.target):
            raise different

        def join(a: Any, b: Any, node: fx.Node = node) -> Any:
            if isinstance(a, fx.Node):
                if not isinstance(b, fx.Node) or a.name != b.name:
                    raise different
                return a
            if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
                return type(a)(join(x, y, node) for x, y in zip(a, b, strict=True))
            if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
                return {key: join(a[key], b[key], node) for key in a}
            if type(a) is type(b) and (a is b or bool(a == b)):
                return a
            name = f"_by_mode_{len(extra)}"
            extra[name] = _ByMode(a, b).train(model.training)
            with in_training.inserting_before(node):
                return in_training.create_node("call_module", name)

        node.args, node.kwargs = join(node.args, twin.args), join(node.kwargs, twin.kwargs)
    return in_training, extra


def _record(model: nn.Module) -> fx.Graph:
    try:
        with torch.random.fork_rng(devices=[]):
            return _Tracer().trace(model)
    except Exception as error:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if not _inside_torch(frame.filename)]
        where = f" at {Path(own[-1].filename).name}, line {own[-1].lineno} ({own[-1].line})" if own else ""
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PartitionError(
            f"The network cannot be traced by torch.fx{where}: {reason}; take data-dependent control flow out of its "
            f"forward pass."
        ) from error


def _inside_torch(filename: str) -> bool:
    return str(Path(torch.__file__).parent) in filename or filename == __file__ or filename.startswith("<")


def _chain(node: fx.Node) -> tuple[str, ...]:
    """Paths of the modules around a node from the outermost in, its own module last."""
    paths = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path]
    if node.op == "call_module" and node.target not in paths:
        paths.append(str(node.target))
    return tuple(paths)


def _live(nodes: Sequence[fx.Node], position: int) -> list[fx.Node]:
    """Values computed up to `position` and used after it; constants can be fetched anew and do not count."""
    after = set(nodes[position + 1 :])
    return [
        node
        for node in nodes[: position + 1]
        if node.op != "get_attr" and not (node.op == "placeholder" and node.args) and any(u in after for u in node.users)
    ]


def _may_cross(value: fx.Node, after: Sequence[fx.Node], attributes: dict[str, Any]) -> bool:
    """Refuse tuples, and tensors that the next group would overwrite in place under the critic's feet."""
    users = [user for user in value.users if user in after]
    if all(_is_item_of(user, value) for user in users):
        return False
    for user in users:
        module = attributes.get(str(user.target)) if user.op == "call_module" else None
        name = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", "")
        in_place = getattr(module, "inplace", False) or user.kwargs.get("inplace", False)
        in_place = in_place or (user.op == "call_method" and name.endswith("_") and not name.endswith("__"))
        in_place = in_place or (user.op == "call_function" and user.target in _IN_PLACE)
        if in_place and user.args and user.args[0] is value:
            return False
    return value.op != "placeholder"


_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


def _is_item_of(node: fx.Node, value: fx.Node) -> bool:
    return node.target is operator.getitem and node.args[0] is value and isinstance(node.args[1], int)


def _candidates(traced: Trace) -> tuple[Cut, ...]:
    nodes, modules = traced.nodes, dict(traced.model.named_modules())
    in_all = sum(p.numel() for p in traced.model.parameters())

    def is_block(path: str) -> bool:
        module = modules[path]
        share = sum(p.numel() for p in module.parameters()) / max(1, in_all)
        return type(module) is not nn.Sequential and any(True for _ in module.children()) and share < BODY_SHARE

    blocks = {path for path in modules if path and is_block(path)}
    weighted = [position for position, node in enumerate(nodes) if weighs(node, traced.attributes)]
    found: list[Cut] = []
    for position in sorted(traced.crossing):
        before, after = _chain(nodes[position]), _chain(_next_operation(nodes, position))
        shared = [path for path in before if path in after]
        entered = next((path for path in after if path not in shared), None)
        since = found[-1].position if found else -1
        if any(path in blocks for path in shared) or entered is None or not any(since < w <= position for w in weighted):
            continue
        if not _begins_group(modules[entered]):
            continue
        found.append(Cut(position, _end_name(nodes, position)))
    return tuple(found)


def weighs(node: fx.Node, attributes: dict[str, Any]) -> bool:
    """Tell whether an operation is a layer in the sense of a network's depth: weights, but no norm and no embedding."""
    if node.op != "call_module":
        return False
    module = attributes[str(node.target)]
    return not isinstance(module, (*NORMS, nn.Embedding)) and any(True for _ in module.parameters())


def _begins_group(module: nn.Module) -> bool:
    layers = [m for m in module.modules() if any(True for _ in m.parameters(recurse=False))]
    leaf = not any(True for _ in module.children())
    return bool(layers) and not (leaf and isinstance(module, NORMS))


def _next_operation(nodes: Sequence[fx.Node], position: int) -> fx.Node:
    skipped = (node for node in nodes[position + 1 :] if node.op != "get_attr" and "_by_mode_" not in str(node.target))
    return next(skipped)


def _end_name(nodes: Sequence[fx.Node], position: int) -> str:
    """Name the outermost module that ends at a position, or the operation itself outside all modules."""
    later = {path for node in nodes[position + 1 :] for path in _chain(node)}
    return next((path for path in _chain(nodes[position]) if path not in later), nodes[position].name)


def _attribute(model: nn.Module, target: Any) -> Any:
    value: Any = model
    for part in str(target).split("."):
        value = getattr(value, part)
    return value


def _refuse_shared(made: Sequence[fx.GraphModule], places: Sequence[str]) -> None:
    owner: dict[int, tuple[int, str]] = {}
    for number, group in enumerate(made, start=1):
        for name, value in [*group.named_parameters(remove_duplicate=False), *group.named_buffers(remove_duplicate=False)]:
            first, other = owner.setdefault(id(value), (number, name))
            if first != number:
                raise PartitionError(
                    f"Weights tied across a cut cannot be trained apart: '{other}' in layer group {first} and '{name}' "
                    f"in layer group {number} are the same tensor; cut so that both fall into one group, or untie them."
                )


def _adopt_unused(model: nn.Module, made: Sequence[fx.GraphModule]) -> None:
    """Give weights that the forward pass never uses to the last group, so that the groups hold every name."""
    held = {name for group in made for name in group.state_dict()}
    for path, module in model.named_modules():
        own: list[tuple[str, Tensor | None]] = [*module._parameters.items(), *module._buffers.items()]
        for name, value in own:
            full = f"{path}.{name}" if path else name
            if value is None or full in held or name in module._non_persistent_buffers_set:
                continue
            holder: nn.Module = made[-1]
            for part in path.split(".") if path else []:
                if not hasattr(holder, part):
                    holder.add_module(part, nn.Module())
                holder = getattr(holder, part)
            if isinstance(value, nn.Parameter):
                holder.register_parameter(name, value)
            else:
                holder.register_buffer(name, value)


def _listed(cuts: Sequence[Cut]) -> str:
    names = [cut.name for cut in cuts]
    return ", ".join(names[:SHOWN_PLACES]) + (" .." if len(names) > SHOWN_PLACES else "")
