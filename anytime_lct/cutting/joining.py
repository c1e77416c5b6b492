"""Join two recordings of a network, in training and in evaluation mode, into one whose constants depend on the mode."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from anytime_lct.cutting.steps import UnfollowedError, calls, target
from anytime_lct.errors import PartitionError


class ByMode(nn.Module):
    """A constant that depends on train or eval mode, as in F.dropout(x, p, self.training)."""

    def __init__(self, in_training: Any, in_evaluation: Any) -> None:
        super().__init__()
        self.in_training, self.in_evaluation = in_training, in_evaluation

    def forward(self) -> Any:
        return self.in_training if self.training else self.in_evaluation


def join_modes(model: nn.Module, in_training: fx.Graph, in_evaluation: fx.Graph) -> dict[str, ByMode]:
    """Insert a ByMode, in the module that uses it, wherever the two graphs hold different constants."""
    constants: dict[str, ByMode] = {}
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
        owner = next((path for path, _ in reversed(calls(node)) if path != target(node)), "")
        name = f"{owner}._by_mode_{len(constants)}".lstrip(".")
        constants[name] = ByMode(a, b).train(model.get_submodule(owner).training)
        with in_training.inserting_before(node):
            fetch = in_training.create_node("call_module", name)
        fetch.meta.update(calls=(), returns_tuple=False)
        return fetch

    for node, twin in twins.items():
        args = tuple(join(a, b, node) for a, b in zip(node.args, twin.args, strict=True))
        if node.kwargs.keys() != twin.kwargs.keys():
            raise _different(model, node, twin)
        node.args, node.kwargs = args, join(dict(node.kwargs), dict(twin.kwargs), node)
    return constants


def _different(model: nn.Module, *nodes: fx.Node) -> Exception:
    """Return the error that names the innermost module around the first steps that differ between the modes."""
    around = [[path for path, _ in calls(node) if path != target(node)] for node in nodes]
    innermost = max(around, key=len, default=[])
    if innermost:
        return UnfollowedError(
            model.get_submodule(innermost[-1]), "it takes another path in training than in evaluation"
        )
    return PartitionError(
        f"{type(model).__name__} takes another path in training than in evaluation (auxiliary outputs, "
        "perhaps), so that it cannot be cut; switch that off, for example with aux_logits=False."
    )


def _ends(a: slice) -> tuple[Any, Any, Any]:
    return a.start, a.stop, a.step
