"""Record a network's forward pass as a list of steps, with torch.fx.

    forward:  x = relu(conv1(x)); return fc(flatten(dropout(x, 0.5, self.training)))
    steps:    conv1, relu, dropout, flatten, fc

Weights used outside modules, constants, and arguments that depend on train or eval mode are not steps: they are fetched
where a step needs them, so that they need not cross a cut. A module that fx cannot follow (control flow that depends on
shapes, another path in training than in evaluation) is one step, and runs unchanged. The batch size, as in
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
from anytime_lct.cutting.steps import (
    RETURN_TUPLES,
    UnfollowedError,
    calls,
    is_batch_size,
    is_constant,
    is_item,
    is_shape,
    is_tensor,
    kind,
    target,
)
from anytime_lct.errors import PartitionError


@dataclass(frozen=True)
class Recording:
    """The steps of a forward pass with one input and one result, and the modules and tensors that they name.

    `whole` maps the paths of modules that are one step each, because fx cannot follow them, to the reason. `batch_size`
    holds the nodes of the input's batch size, the first size of every tensor between two groups.
    """

    input: fx.Node
    steps: tuple[fx.Node, ...]
    result: fx.Node
    attributes: dict[str, Any]
    whole: dict[str, str]
    batch_size: frozenset[fx.Node]


class _OneInput(nn.Module):
    """Calls a network with one input: its other inputs take their defaults, and fx leaves it unchanged."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input: Tensor) -> Any:
        return self.model(input)


class _Tracer(fx.Tracer):
    """Recurrent layers are leaves, as torch's own modules are, wherever their class is defined; buffers stay names."""

    proxy_buffer_attributes = True

    def __init__(self, root: nn.Module, whole: dict[Any, str]) -> None:
        super().__init__()
        self._roots, self._whole = (root, root.get_submodule("model")), whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m in self._roots:
            return False
        return kind(m) in self._whole or isinstance(m, nn.RNNBase) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except UnfollowedError:
            raise
        except Exception as error:
            if m in self._roots:
                raise
            raise UnfollowedError(m, _where(error)) from error


def record(model: nn.Module) -> Recording:
    """Record a network in train and in eval mode; the network is unchanged.

    Raises PartitionError where fx cannot follow the forward pass, where the two modes take different paths,
    and where the network has not one input and one tensor as its result.
    """
    _check_signature(model)
    whole: dict[Any, str] = {}
    while True:
        try:
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
    steps = tuple(node for node in nodes if node not in fetched and node not in {*batch_size, *shapes})
    modules = {node.target: attributes[node.target] for node in steps if node.op == "call_module"}
    reasons = {path: whole[kind(module)] for path, module in modules.items() if kind(module) in whole}
    return Recording(placeholder, steps, result, attributes, reasons, frozenset(batch_size))


def _record_both(model: nn.Module, whole: dict[Any, str]) -> tuple[fx.Graph, dict[str, Any], dict[str, Any]]:
    """Record in train and in eval mode and join the two; raises UnfollowedError for a module that is not in `whole`."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        in_training, attributes = _record_mode(model, whole, training=True)
        in_evaluation, twins = _record_mode(model, whole, training=False)
    finally:
        for module, mode in modes:
            module.training = mode
    attributes |= join_modes(model, in_training, in_evaluation)
    return in_training, attributes, twins


def _check_signature(model: nn.Module) -> None:
    signature = inspect.signature(model.forward)
    try:
        signature.bind(object())
    except TypeError as error:
        raise PartitionError(
            f"Expected a network with one input, or defaults for the others, got "
            f"{type(model).__name__}.forward{signature}."
        ) from error


def _record_mode(model: nn.Module, whole: dict[Any, str], *, training: bool) -> tuple[fx.Graph, dict[str, Any]]:
    for module in model.modules():
        module.training = training
    root = _OneInput(model)
    try:
        with torch.random.fork_rng(devices=[]):
            # Two seeds: random constants differ between the modes, and are detected.
            torch.default_generator.manual_seed(int(training))
            graph = _Tracer(root, whole).trace(root)
    except UnfollowedError:
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
