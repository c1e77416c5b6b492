"""Record a network's forward pass as a list of steps, with torch.fx.

    forward:  x = relu(conv1(x)); return fc(flatten(dropout(x, 0.5, self.training)))
    steps:    conv1, relu, dropout, flatten, fc

Weights used outside modules, constants, and arguments that depend on train or eval mode are not steps: they are fetched
where a step needs them, so that they need not cross a cut. A module is one step, and runs unchanged, where fx cannot
follow it (control flow that depends on shapes, another path in training than in evaluation), or where it does more than
its operations say: its `train()` is its own, or its forward pass changes the gradient or autocast mode, draws random
numbers that do not depend on its input, assigns to a tensor or buffer, or changes a part's mode. The batch size, as in
x.view(x.size(0), -1), is read again from the input of each group.
"""

from __future__ import annotations

import inspect
import os
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from anytime_lct.cutting.joining import ByMode, join_modes
from anytime_lct.cutting.snapshot import Snapshot, random_positions
from anytime_lct.cutting.steps import (
    RETURN_TUPLES,
    UnfollowedError,
    calls,
    is_batch_size,
    is_constant,
    is_item,
    is_shape,
    is_tensor,
    is_writing,
    kind,
    target,
)
from anytime_lct.errors import PartitionError


@dataclass(frozen=True)
class Recording:
    """The steps of a forward pass with one input and one result, and the modules and tensors that they name.

    `fetched` holds the nodes that are not steps: weights, constants, and what is computed of these alone. `whole` maps
    the paths of modules that are one step each, because fx cannot follow them, to the reason. `batch_size` holds the
    nodes of the input's batch size, the first size of every tensor between two groups.
    """

    input: fx.Node
    steps: tuple[fx.Node, ...]
    result: fx.Node
    attributes: dict[str, Any]
    fetched: frozenset[fx.Node]
    whole: dict[str, str]
    batch_size: frozenset[fx.Node]


class _OneInput(nn.Module):
    """Calls a network with one input: its other inputs take their defaults, and fx leaves it unchanged."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input: Tensor) -> Any:
        return self.model(input)


class _Proxy(fx.Proxy):
    """A recorded value that cannot be assigned to, as in `self.weight.data = ..`: fx would drop the assignment."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node"):
            raise AttributeError(f"it assigns to {name} of a tensor")
        super().__setattr__(name, value)


class _Tracer(fx.Tracer):
    """Recurrent layers are leaves, as torch's own modules are, wherever their class is defined; buffers stay names."""

    proxy_buffer_attributes = True

    def __init__(self, root: nn.Module, whole: dict[Any, str]) -> None:
        super().__init__()
        self._roots, self._whole = (root, root.get_submodule("model")), whole
        self._context = _context()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m in self._roots:
            return False
        return kind(m) in self._whole or isinstance(m, nn.RNNBase) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _context() != self._context:
            raise RuntimeError("it changes the gradient or autocast mode")
        return super().create_node(*args, **kwargs)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.is_leaf_module(m, ""):
            return super().call_module(m, forward, args, kwargs)
        positions, parts = random_positions(), _parts(m)
        try:
            result = super().call_module(m, forward, args, kwargs)
            if random_positions() != positions:
                raise RuntimeError("it draws random numbers that do not depend on its input")
            if _parts(m) != parts:
                raise RuntimeError("it changes the mode, or replaces the weights or buffers, of its parts")
            return result
        except UnfollowedError:
            raise
        except Exception as error:
            if m in self._roots:
                raise
            raise UnfollowedError(m, _where(error)) from error


def _parts(m: nn.Module) -> list[Any]:
    """Return the modes of a module and its parts, and which weights and buffers they hold."""
    return [
        (part.training, [*map(id, part._parameters.values()), *map(id, part._buffers.values())]) for part in m.modules()
    ]


def _context() -> tuple[Any, ...]:
    """Return the gradient mode, and in how many blocks of autocast this code runs."""
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), depth


def record(model: nn.Module) -> Recording:
    """Record a network in train and in eval mode; the network is unchanged.

    Raises PartitionError where fx cannot follow the forward pass, where the two modes take different paths,
    and where the network has not one input and one tensor as its result.
    """
    _check_signature(model)
    whole: dict[Any, str] = {
        kind(module): "its train() is its own"
        for module in model.modules()
        if module is not model and type(module).train is not nn.Module.train
    }
    while True:
        try:
            with torch.inference_mode(False), torch.enable_grad():
                in_training, attributes, twins = _record_both(model, whole)
            break
        except UnfollowedError as unfollowed:  # again, with that kind of module as one step
            whole[unfollowed.kind] = str(unfollowed)
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
            "cut the part that returns one."
        )
    for node in nodes:
        source = node.args[0] if is_item(node) else None
        if isinstance(source, fx.Node) and not is_tensor(source):
            node.meta["calls"] = calls(source)  # an LSTM ends where its output is taken from the tuple
    fetched: set[fx.Node] = set()
    for node in in_training.nodes:
        if node.op == "get_attr" or isinstance(attributes.get(target(node)), ByMode) or is_constant(node, fetched):
            fetched.add(node)
    shapes = [node for node in placeholder.users if is_shape(node)]
    batch_size = {node for node in (*placeholder.users, *(u for s in shapes for u in s.users)) if is_batch_size(node)}
    shapes = [node for node in shapes if batch_size.issuperset(node.users)]
    others = {*fetched, *batch_size, *shapes}
    steps = _deferred([node for node in nodes if node not in others], others)
    modules = {str(node.target): attributes[str(node.target)] for node in steps if node.op == "call_module"}
    reasons = {path: whole[kind(module)] for path, module in modules.items() if kind(module) in whole}
    return Recording(placeholder, steps, result, attributes, frozenset(fetched), reasons, frozenset(batch_size))


def _deferred(steps: list[fx.Node], others: set[fx.Node]) -> tuple[fx.Node, ...]:
    """Return the steps in order, those that need no input of the network just before their first use.

    So what a module makes of a learned query crosses no cut. `others` are the nodes that are fetched where needed.
    """
    free = set(others)
    for step in steps:
        if step.users and free.issuperset(step.all_input_nodes) and not is_writing(step):
            free.add(step)
    order = list(steps)
    for step in reversed(steps):
        if step in free and (uses := [order.index(user) for user in step.users if user in order]):
            order.remove(step)
            order.insert(min(uses) - 1, step)
    return tuple(order)


def _record_both(model: nn.Module, whole: dict[Any, str]) -> tuple[fx.Graph, dict[str, Any], dict[str, Any]]:
    """Record in train and in eval mode and join the two; raises UnfollowedError for a module that is not in `whole`."""
    in_training, attributes = _record_mode(model, whole, training=True)
    in_evaluation, twins = _record_mode(model, whole, training=False)
    attributes |= join_modes(model, in_training, in_evaluation)
    return in_training, attributes, twins


def _check_signature(model: nn.Module) -> None:
    try:
        signature = inspect.signature(model.forward)
    except ValueError as error:
        raise PartitionError(
            f"Expected a network as written in Python, got a {type(model).__name__}; cut it before torch.jit."
        ) from error
    try:
        signature.bind(object())
    except TypeError as error:
        raise PartitionError(
            f"Expected a network with one input, or defaults for the others, got "
            f"{type(model).__name__}.forward{signature}."
        ) from error


def _record_mode(model: nn.Module, whole: dict[Any, str], *, training: bool) -> tuple[fx.Graph, dict[str, Any]]:
    root = _OneInput(model)
    try:
        with Snapshot(model, values=False):
            for module in model.modules():
                module.training = training
            graph = _Tracer(root, whole).trace(root)
    except UnfollowedError:
        raise
    except Exception as error:
        raise PartitionError(
            f"The network cannot be traced by torch.fx: {_where(error)}; take this, like control flow that depends on "
            f"the data or on its shape, out of {type(model).__name__}.forward, into a submodule, which runs as it is, "
            f"or name places to cut after where its children simply follow one another."
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
            of_model = node.target.startswith("model.")  # else a constant that fx stores on the root
            node.target = node.target.removeprefix("model.") if of_model else f"_recorded{node.target}"
            node.meta["returns_tuple"] = getattr(type(value), "forward", None) in RETURN_TUPLES
            attributes[node.target] = value
    return graph, attributes


def _where(error: Exception) -> str:
    """Return the reason of an error, and the line of the user's code where it occurs."""
    foreign = (f"{Path(torch.__file__).parent}{os.sep}", __file__, "<")
    own = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(foreign)]
    where = f" at {own[-1].filename}:{own[-1].lineno} ({own[-1].line})" if own else ""
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return f"{reason}{where}"
