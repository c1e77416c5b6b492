"""Facts about a recorded step of a forward pass: which module calls it, whether it is a tensor, a number or a shape."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx, nn

Call = tuple[str, int]  # a module's path, and which call of that module, counted from 1
RETURN_TUPLES = {nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward, nn.MultiheadAttention.forward}
RETURN_NUMBERS = {"size", "dim", "numel", "ndimension", "item", "tolist", "stride", "__len__"}
IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow}
TENSOR_ATTRIBUTES = {"T", "mT", "H", "mH", "data", "real", "imag"}


class UnfollowedError(Exception):
    """A submodule that torch.fx cannot follow, and that has to be one step."""

    def __init__(self, module: nn.Module, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind(module)


def kind(module: nn.Module) -> Any:
    """Return what decides together whether fx can follow it: a module's class, or a single module of torch itself."""
    return module if type(module).__module__.startswith("torch.nn") else type(module)


def calls(node: fx.Node) -> tuple[Call, ...]:
    """Return the module calls around a step, from the outermost in, its own module last."""
    return node.meta["calls"]


def is_item(node: fx.Node) -> bool:
    """Return whether a step takes one item, by number, out of a tuple (or a tensor)."""
    return node.target is operator.getitem and isinstance(node.args[1], int)


def is_tensor(node: fx.Node) -> bool:
    """Return whether a step's value is certainly one tensor, no tuple and no number; nothing is run."""
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


def is_writing(node: fx.Node) -> bool:
    """Return whether a step is an operation that writes into a tensor, by its name."""
    name = str(getattr(node.target, "__name__", node.target))
    return node.op != "call_module" and ((name.endswith("_") and not name.endswith("__")) or node.target in IN_PLACE)


def is_constant(node: fx.Node, fetched: set[fx.Node]) -> bool:
    """Return whether a value depends on weights and constants only, so that any group can recompute it."""
    if is_writing(node) or node.op not in ("call_function", "call_method"):
        return False
    return bool(node.all_input_nodes) and fetched.issuperset(node.all_input_nodes)


def is_shape(node: fx.Node) -> bool:
    """Return whether a step is x.shape, or x.size() without a number."""
    if node.target is getattr:
        return bool(node.args[1] == "shape")
    return node.target == "size" and len(node.args) == 1 and not node.kwargs


def is_batch_size(node: fx.Node) -> bool:
    """Return whether a step is x.size(0), or item 0 of a shape."""
    source = node.args[0] if node.args else None
    if is_item(node):
        return isinstance(source, fx.Node) and is_shape(source) and bool(node.args[1] == 0)
    return node.target == "size" and (*node.args[1:], *node.kwargs.values()) == (0,)


def _is_number(node: fx.Node) -> bool:
    return node.target in RETURN_NUMBERS or (node.target is getattr and node.args[1] not in TENSOR_ATTRIBUTES)


def target(node: fx.Node) -> str:
    return str(node.target) if node.op in ("call_module", "get_attr") else ""
