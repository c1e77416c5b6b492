"""Record a network's forward pass as a list of steps, with torch.fx.

    forward:  x = relu(conv1(x)); return fc(flatten(dropout(x, 0.5, self.training)))
    steps:    conv1, relu, dropout, flatten, fc

Weights used outside modules, constants, and arguments that depend on train or eval mode are not steps: they
are fetched where a step needs them, so that they need not cross a cut. A module that fx cannot follow (control flow
that depends on shapes, another path in training than in evaluation) is one step, and runs as it is. The batch size,
as in x.view(x.size(0), -1), is read anew from whatever tensor a group begins with.
"""

from __future__ import annotations

import inspect
import operator
import os
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from anytime_lct.errors import PartitionError

Call = tuple[str, int]  # a module's path, and which call of that module, counted from 1

RETURN_TUPLES = {nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward, nn.MultiheadAttention.forward}
RETURN_NUMBERS = {"size", "dim", "numel", "ndimension", "item", "tolist", "stride", "__len__"}
IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow}
TENSOR_ATTRIBUTES = {"T", "mT", "H", "mH", "data", "real", "imag"}


@dataclass(frozen=True)
class Recording:
    """The steps of a forward pass with one input and one result, and what the names in them stand for.

    `whole` maps the paths of modules that are one step each, because fx cannot follow them, to the reason. `batch_size`
    holds what stands for the batch size of the input, the first size of every tensor between two groups.
    """

    input: fx.Node
    steps: tuple[fx.Node, ...]
    result: fx.Node
    attributes: dict[str, Any]
    whole: dict[str, str]
    batch_size: frozenset[fx.Node]


class ByMode(nn.Module):
    """A constant that depends on train or eval mode, as in F.dropout(x, p, self.training)."""

    def __init__(self, in_training: Any, in_evaluation: Any) -> None:
        super().__init__()
        self.in_training, self.in_evaluation = in_training, in_evaluation

    def forward(self) -> Any:
        return self.in_training if self.training else self.in_evaluation


class _OneInput(nn.Module):
    """Calls a network with one input: its others take their defaults, and fx leaves it unchanged."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input: Tensor) -> Any:
        return self.model(input)


class _UnfollowedError(Exception):
    """A module below the network itself has to be one step: fx cannot follow it."""

    def __init__(self, module: nn.Module, reason: str) -> None:
        super().__init__(reason)
        self.kind = _kind(module)


class _Tracer(fx.Tracer):
    """Recurrent layers are leaves wherever they are defined, as torch's modules are; buffers stay names."""

    proxy_buffer_attributes = True

    def __init__(self, root: nn.Module, whole: dict[Any, str]) -> None:
        super().__init__()
        self._roots, self._whole = (root, root.get_submodule("model")), whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m in self._roots:
            return False
        return _kind(m) in self._whole or isinstance(m, nn.RNNBase) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except _UnfollowedError:
            raise
        except Exception as error:
            if m in self._roots:
                raise
            raise _UnfollowedError(m, _where(error)) from error


def _kind(module: nn.Module) -> Any:
    """All modules of a class are followed or not; torch's own containers one by one."""
    return module if type(module).__module__.startswith("torch.nn") else type(module)


def record(model: nn.Module) -> Recording:
    """Record a network in train and in eval mode at once; the network is left as it was.

    Raises PartitionError where fx cannot follow the forward pass, where the two modes take different paths,
    and where the network has not one input and one tensor as its result.
    """
    _check_signature(model)
    whole: dict[Any, str] = {}
    while True:
        try:
            in_training, attributes, twins = _record_both(model, whole)
            break
        except _UnfollowedError as found:  # once more with that kind of module as one step
            whole[found.kind] = str(found)
    for name, value in attributes.items():
        if isinstance(value, Tensor) and value is not twins[name] and not torch.equal(value, twins[name]):
            raise PartitionError(
                "The network draws random numbers in its forward pass that do not depend on its input, "
                "which cutting would freeze; draw them with torch.rand_like or F.dropout."
            )
    placeholder, *nodes, output = in_training.nodes
    result = output.args[0]
    if not isinstance(result, fx.Node):
        raise PartitionError(
            f"Expected a network that returns one tensor, got one that returns a {type(result).__name__}; "
            "cut the part of it that returns one."
        )
    for node in nodes:
        source = node.args[0] if is_item(node) else None
        if isinstance(source, fx.Node) and not is_tensor(source):
            node.meta["calls"] = calls(source)  # an LSTM ends where its output has left the tuple
    fetched: set[fx.Node] = set()
    for node in in_training.nodes:
        if node.op == "get_attr" or isinstance(attributes.get(_target(node)), ByMode) or _is_constant(node, fetched):
            fetched.add(node)
    shapes = [node for node in placeholder.users if _is_shape(node)]
    batch_size = {node for node in (*placeholder.users, *(u for s in shapes for u in s.users)) if _is_batch_size(node)}
    shapes = [node for node in shapes if batch_size.issuperset(node.users)]
    steps = tuple(node for node in nodes if node not in fetched and node not in {*batch_size, *shapes})
    modules = {node.target: attributes[node.target] for node in steps if node.op == "call_module"}
    reasons = {path: whole[_kind(module)] for path, module in modules.items() if _kind(module) in whole}
    return Recording(placeholder, steps, result, attributes, reasons, frozenset(batch_size))


def _record_both(model: nn.Module, whole: dict[Any, str]) -> tuple[fx.Graph, dict[str, Any], dict[str, Any]]:
    """Record in train and in eval mode and join the two; raises _UnfollowedError for a module not in `whole`."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        in_training, attributes = _record_mode(model, whole, training=True)
        in_evaluation, twins = _record_mode(model, whole, training=False)
    finally:
        for module, mode in modes:
            module.training = mode
    attributes |= _join(model, in_training, in_evaluation)
    return in_training, attributes, twins


def calls(node: fx.Node) -> tuple[Call, ...]:
    """The module calls around a step, from the outermost in, its own module last."""
    return node.meta["calls"]


def is_item(node: fx.Node) -> bool:
    """Tell whether a step takes one item, by number, out of a tuple (or a tensor)."""
    return node.target is operator.getitem and isinstance(node.args[1], int)


def is_tensor(node: fx.Node) -> bool:
    """Tell whether a step's value is surely one tensor, no tuple and no number; nothing is run."""
    if node.op == "placeholder":
        return True
    if node.users and all(is_item(user) and user.args[0] is node for user in node.users):
        return False
    if node.op == "call_module":
        return not node.meta["returns_tuple"]
    if _is_number(node):
        return False
    if is_item(node):
        source = node.args[0]
        if not isinstance(source, fx.Node) or _is_number(source):
            return False
        return is_tensor(source) or source.op != "call_module" or bool(node.args[1] == 0)
    arithmetic = getattr(node.target, "__module__", None) in ("_operator", "math", "builtins")
    return not arithmetic or any(is_tensor(source) for source in reversed(node.all_input_nodes))


def _is_constant(node: fx.Node, fetched: set[fx.Node]) -> bool:
    """Tell whether a value depends on weights and constants alone, so that any group can compute it anew."""
    name = str(getattr(node.target, "__name__", node.target))
    writes = (name.endswith("_") and not name.endswith("__")) or node.target in IN_PLACE
    if writes or node.op not in ("call_function", "call_method"):
        return False
    return bool(node.all_input_nodes) and fetched.issuperset(node.all_input_nodes)


def _is_shape(node: fx.Node) -> bool:
    """Tell whether a step is x.shape, or x.size() without a number."""
    if node.target is getattr:
        return bool(node.args[1] == "shape")
    return node.target == "size" and len(node.args) == 1 and not node.kwargs


def _is_batch_size(node: fx.Node) -> bool:
    """Tell whether a step is x.size(0), or item 0 of a shape."""
    source = node.args[0] if node.args else None
    if is_item(node):
        return isinstance(source, fx.Node) and _is_shape(source) and bool(node.args[1] == 0)
    return node.target == "size" and (*node.args[1:], *node.kwargs.values()) == (0,)


def _is_number(node: fx.Node) -> bool:
    return node.target in RETURN_NUMBERS or (node.target is getattr and node.args[1] not in TENSOR_ATTRIBUTES)


def _target(node: fx.Node) -> str:
    return str(node.target) if node.op in ("call_module", "get_attr") else ""


def _check_signature(model: nn.Module) -> None:
    signature = inspect.signature(model.forward)
    try:
        signature.bind(object())
    except TypeError as error:
        raise PartitionError(
            f"Expected a network with one input, others having defaults, got {type(model).__name__}.forward{signature}."
        ) from error


def _record_mode(model: nn.Module, whole: dict[Any, str], *, training: bool) -> tuple[fx.Graph, dict[str, Any]]:
    for module in model.modules():
        module.training = training
    root = _OneInput(model)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(
                int(training)
            )  # two seeds: random constants differ between the modes, and are found
            graph = _Tracer(root, whole).trace(root)
    except _UnfollowedError:
        raise
    except Exception as error:
        raise PartitionError(
            f"The network cannot be traced by torch.fx: {_where(error)}; take control flow that depends on the data, "
            f"or on its shape, out of {type(model).__name__}.forward, into a submodule for example, or name places to "
            f"cut after where its children simply follow one another."
        ) from error
    attributes: dict[str, Any] = {}
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        numbered = [(path, int(key[len(path) + 1 :] or 0) + 1) for key, (path, _) in stack.items()]
        node.meta.clear()
        node.meta["calls"] = tuple((path[len("model.") :], n) for path, n in numbered if path != "model")
        if node.op in ("call_module", "get_attr"):
            value: Any = root
            for part in node.target.split("."):
                value = getattr(value, part)
            named = node.target.startswith("model.")  # else a constant, which fx has put on the root
            node.target = node.target.removeprefix("model.") if named else f"_recorded{node.target}"
            node.meta["returns_tuple"] = getattr(type(value), "forward", None) in RETURN_TUPLES
            attributes[node.target] = value
    return graph, attributes


def _where(error: Exception) -> str:
    """Say what went wrong, and at which line of the user's code."""
    inside = (f"{Path(torch.__file__).parent}{os.sep}", __file__, "<")
    own = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(inside)]
    where = f" at {own[-1].filename}:{own[-1].lineno} ({own[-1].line})" if own else ""
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return f"{reason}{where}"


def _join(model: nn.Module, in_training: fx.Graph, in_evaluation: fx.Graph) -> dict[str, ByMode]:
    """Put a ByMode, beside the module that asks for it, wherever the two graphs hold different constants."""
    made: dict[str, ByMode] = {}
    twins = dict(zip(in_training.nodes, in_evaluation.nodes, strict=False))
    for node, twin in twins.items():
        if (node.op, node.target, len(node.args)) != (twin.op, twin.target, len(twin.args)):
            raise _different(model, node, twin)
    if len(in_training.nodes) != len(in_evaluation.nodes):
        raise _different(model)

    def join(a: Any, b: Any, node: fx.Node) -> Any:
        if isinstance(a, fx.Node) or isinstance(b, fx.Node):
            if twins.get(a) is not b:
                raise _different(model, node, twins[node])
            return a
        if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
            return type(a)([join(x, y, node) for x, y in zip(a, b, strict=True)])
        if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            return {key: join(a[key], b[key], node) for key in a}
        if isinstance(a, slice) and isinstance(b, slice):
            return slice(*(join(x, y, node) for x, y in zip(_ends(a), _ends(b), strict=True)))
        if type(a) is type(b) and (a is b or a == b):
            return a
        owner = next((path for path, _ in reversed(calls(node)) if path != _target(node)), "")
        name = f"{owner}._by_mode_{len(made)}".lstrip(".")
        made[name] = ByMode(a, b).train(model.get_submodule(owner).training)
        with in_training.inserting_before(node):
            fetch = in_training.create_node("call_module", name)
        fetch.meta.update(calls=(), returns_tuple=False)
        return fetch

    for node, twin in twins.items():
        args = tuple(join(a, b, node) for a, b in zip(node.args, twin.args, strict=True))
        if node.kwargs.keys() != twin.kwargs.keys():
            raise _different(model, node, twin)
        node.args, node.kwargs = args, join(dict(node.kwargs), dict(twin.kwargs), node)
    return made


def _different(model: nn.Module, *nodes: fx.Node) -> Exception:
    """Blame the innermost module around the first steps that differ between training and evaluation."""
    around = [[path for path, _ in calls(node) if path != _target(node)] for node in nodes]
    guilty = max(around, key=len, default=[])
    if guilty:
        return _UnfollowedError(model.get_submodule(guilty[-1]), "it takes another path in training than in evaluation")
    return PartitionError(
        f"{type(model).__name__} takes another path in training than in evaluation (auxiliary outputs, "
        "perhaps), so that it cannot be cut; switch that off, for example by aux_logits=False."
    )


def _ends(a: slice) -> tuple[Any, Any, Any]:
    return a.start, a.stop, a.step
