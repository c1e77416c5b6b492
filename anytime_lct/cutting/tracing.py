"""Record a network's forward pass as a list of steps, with torch.fx.

    forward:  x = relu(conv1(x)); return fc(flatten(dropout(x, 0.5, self.training)))
    steps:    conv1, relu, dropout, flatten, fc

Weights used outside modules, constants, and arguments that depend on train or eval mode are not steps: they are fetched
where a step needs them, so that they need not cross a cut. A module is one step, and runs unchanged, where fx cannot
follow it (control flow that depends on shapes, another path in training than in evaluation), or where it does more than
its operations say: its `train()` is its own, or its forward pass changes the gradient or autocast mode, draws random
numbers that do not depend on its input, assigns to a tensor or buffer, or changes a part's mode. The batch size, as in
x.view(x.size(0), -1), is read again from the input of each group.

Where fx cannot follow the network itself, and the shape of its inputs is known, control flow that depends on sizes
takes the way that it takes for that shape and any size of the batch (`sizes`).
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from anytime_lct.cutting.joining import ByMode, join_modes
from anytime_lct.cutting.snapshot import Snapshot
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
from anytime_lct.cutting.tracer import OneInput, StepTracer, fetched_from, recorded_factories, where
from anytime_lct.errors import PartitionError


@dataclass(frozen=True)
class Recording:
    """The steps of a forward pass with one input and one result, and the modules and tensors that they name.

    `fetched` holds the nodes that are not steps: weights, constants, and what is computed of these alone. `whole` maps
    the paths of modules that are one step each, because fx cannot follow them, to the reason. `batch_size` holds the
    nodes of the input's batch size, the first size of every tensor between two groups. `shape` is that of an input,
    where the steps are those for inputs of this shape alone.
    """

    input: fx.Node
    steps: tuple[fx.Node, ...]
    result: fx.Node
    attributes: dict[str, Any]
    fetched: frozenset[fx.Node]
    whole: dict[str, str]
    batch_size: frozenset[fx.Node]
    shape: tuple[int, ...] | None = None


def record(model: nn.Module, example: Tensor | None = None) -> Recording:
    """Record a network in train and in eval mode; the network is unchanged.

    `example` is a batch whose shape inputs have, if it is known: it is used where fx cannot follow the forward pass, or
    most of the network, without. Raises PartitionError where fx cannot follow it, where the two modes take different
    paths, and where the network has not one input and one tensor as its result.
    """
    _check_signature(model)
    recording = None
    try:
        recording = _record(model, None)
        if example is None or not _is_mostly_whole(model, recording):
            return recording
        of_shape = _record(model, example)
    except PartitionError:
        if recording is not None:
            return recording
        if example is None:
            raise
        of_shape = _record(model, example)
    return replace(of_shape, shape=tuple(example.shape[1:]))


def _is_mostly_whole(model: nn.Module, recording: Recording) -> bool:
    """Return whether a module that is one step, as fx cannot follow it, has most of the weights."""
    sizes = [sum(p.numel() for p in model.get_submodule(path).parameters()) for path in recording.whole]
    return 2 * max(sizes, default=0) > sum(p.numel() for p in model.parameters())


def _record(model: nn.Module, example: Tensor | None) -> Recording:
    whole: dict[Any, str] = {
        kind(module): "its train() is its own"
        for module in model.modules()
        if module is not model and type(module).train is not nn.Module.train and not _sets_modes_alone(module)
    }
    while True:
        try:
            with torch.inference_mode(False), torch.enable_grad():
                in_training, attributes, twins = _record_both(model, whole, example)
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


def _sets_modes_alone(module: nn.Module) -> bool:
    """Return whether a module's own train() sets the modes of all its parts, as torch's does, and nothing else.

    One that freezes norms, or merges weights as adapters do, is no such train().
    """
    snapshot = Snapshot(module)
    for mode in (True, False):
        with snapshot:
            before = [_fields(part) | {"training": mode} for part in module.modules()]
            try:
                module.train(mode)
            except Exception:  # of the user's code
                return False
            if list(map(_fields, module.modules())) != before:
                return False
            values = (*module.parameters(), *module.buffers())
            if not all(each.is_meta or torch.equal(each, snapshot.values[id(each)]) for each in values):
                return False
    return True


def _fields(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module, to be compared: plain values, which others it has, and entries of dicts."""

    def shown(value: Any) -> Any:
        return value if isinstance(value, bool | int | float | str) else id(value)

    return {
        key: [(name, shown(entry)) for name, entry in value.items()] if isinstance(value, dict) else shown(value)
        for key, value in vars(module).items()
    }


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


def _record_both(
    model: nn.Module, whole: dict[Any, str], example: Tensor | None
) -> tuple[fx.Graph, dict[str, Any], dict[str, Any]]:
    """Record in train and in eval mode and join the two; raises UnfollowedError for a module that is not in `whole`."""
    in_training, attributes = _record_mode(model, whole, example, training=True)
    in_evaluation, twins = _record_mode(model, whole, example, training=False)
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


def _record_mode(
    model: nn.Module, whole: dict[Any, str], example: Tensor | None, *, training: bool
) -> tuple[fx.Graph, dict[str, Any]]:
    root = OneInput(model)
    try:
        with Snapshot(model, values=False):
            for module in model.modules():
                module.training = training
            tracer = StepTracer(root, whole, example)
            with recorded_factories(tracer) if example is not None else nullcontext():
                graph = tracer.trace(root)
    except UnfollowedError:
        raise
    except Exception as error:
        raise PartitionError(
            f"The network cannot be traced by torch.fx: {where(error)}; take this, like control flow that depends on "
            f"the data or its batch, out of {type(model).__name__}.forward, into a submodule, which runs as it is, "
            f"or name places to cut after where its children simply follow one another."
        ) from error
    attributes: dict[str, Any] = {}
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        numbered = [(path, int(key[len(path) + 1 :] or 0) + 1) for key, (path, _) in stack.items()]
        node.meta.clear()
        node.meta["calls"] = tuple((path[len("model.") :], n) for path, n in numbered if path != "model")
        if node.op in ("call_module", "get_attr"):
            value = fetched_from(root, node.target)
            of_model = node.target.startswith("model.")  # else a constant that fx stores on the root
            node.target = node.target.removeprefix("model.") if of_model else f"_recorded{node.target}"
            node.meta["returns_tuple"] = getattr(type(value), "forward", None) in RETURN_TUPLES
            attributes[node.target] = value
    for node in reversed(list(graph.nodes) if example is not None else []):
        if not node.users and node.op in ("call_function", "call_method") and not is_tensor(node):
            graph.erase_node(node)  # a size that control flow has gone by
    return graph, attributes
