"""Where a traceable network can be cut.

A *legal cut* lies between two steps of the forward pass that exactly one tensor crosses:

    conv1 bn1 relu | layer1.0.conv1 ... layer1.0.relu | layer1.1.conv1 ...     | legal, at the end of a block
                                  ^ illegal: two tensors cross, the shortcut and its block's own

A *candidate* is a legal cut at the end of a block, behind which a block or a layer with weights begins.
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from anytime_lct.cutting.blocks import NORMS, ends_of_blocks
from anytime_lct.cutting.constants import with_constants
from anytime_lct.cutting.steps import IN_PLACE, calls, is_tensor
from anytime_lct.cutting.tracing import Recording, record
from anytime_lct.errors import PartitionError

LISTED_CUTS = 12
ALIASING = (nn.Identity, nn.Flatten, nn.Unflatten, _DropoutNd)  # may return the input itself, or a view of it
ALIASING_NAMES = {
    "flatten", "unflatten", "view", "view_as", "reshape", "squeeze", "unsqueeze", "transpose", "permute",
    "movedim", "swapaxes", "t", "getattr", "getitem", "expand", "narrow", "select", "contiguous", "to",
    "float", "detach", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout",
    "feature_alpha_dropout", "stochastic_depth",
}  # fmt: skip


@dataclass(frozen=True)
class Cut:
    """A legal cut: after `position` steps, where the module (or operation) `name` ends."""

    position: int
    name: str


@dataclass(frozen=True)
class Trace:
    """A recorded network, the value that crosses each legal cut, and the candidates in order of execution."""

    model: nn.Module
    recording: Recording
    crossing: dict[int, fx.Node]
    candidates: tuple[Cut, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, example: Tensor | None = None) -> Trace:
        """Record a network's steps and find where it can be cut; raises PartitionError where fx cannot follow it.

        With an example of a batch, unless it is of a text, whose length varies, the recording may be for inputs of
        its shape alone (`Recording.shape`).

        >>> [cut.name for cut in Trace.of(torchvision.models.resnet18()).candidates][:3]
        ['maxpool', 'layer1.0', 'layer1']
        """
        if example is not None and not example.is_floating_point():
            example = None
        recording = record(model, example)
        values = _live(recording)
        if example is not None and (numbers := _numbers_beside_one(model, recording, values)):
            recording = with_constants(recording, numbers, example)
            values = _live(recording)
        crossing = {
            position: live[0]
            for position, live in enumerate(values, start=1)
            if position < len(recording.steps)
            and len(live) == 1
            and live[0] is not recording.input
            and is_tensor(live[0])
            and not _overwritten(live[0], recording, position)
        }
        trace = cls(model, recording, crossing)
        ends = ends_of_blocks(model, recording, crossing)
        return replace(trace, candidates=tuple(Cut(position, trace.name(position)) for position in ends))

    @cached_property
    def positions(self) -> dict[str, int]:
        """Position where each module ends, by path, and each other operation, by its name in the graph.

        A module called several times also has `path@1`, `path@2`, ..; its plain path is where the last call ends.
        """
        ends = {call: position for position, step in self._numbered() for call in calls(step)}
        last = {path: n for path, n in sorted(ends)}
        modules = {path: ends[path, n] for path, n in last.items()}
        modules |= {f"{path}@{n}": position for (path, n), position in ends.items() if last[path] > 1}
        operations = {step.name: position for position, step in self._numbered() if step.op != "call_module"}
        return operations | modules

    @property
    def legal(self) -> tuple[Cut, ...]:
        """Every legal cut, under the name of the outermost module that ends there."""
        return tuple(Cut(position, self.name(position)) for position in self.crossing)

    def name(self, position: int) -> str:
        """Return the name of the outermost module that ends after `position` steps, or of the operation itself."""
        step = self.recording.steps[position - 1]
        names = [name for path, n in calls(step) for name in (path, f"{path}@{n}")]
        return next((name for name in [*names, step.name] if self.positions.get(name) == position), step.name)

    def find(self, name: str) -> Cut:
        """Return the legal cut where the module (or operation) `name` ends; raises PartitionError."""
        if name not in self.positions:
            near = difflib.get_close_matches(name, self.positions, n=3)
            remedy = f"did you mean {' or '.join(near)}?" if near else f"cut after {listed(self.candidates)}."
            raise PartitionError(f"The network has no place '{name}' to cut after; {remedy}")
        position = self.positions[name]
        if position not in self.crossing:
            raise PartitionError(
                f"The network cannot be cut after '{name}', {self._objection(position)}; cut at the end of "
                f"a block, for example after {listed(self.candidates)}."
            )
        return Cut(position, name)

    def hints(self, name: str) -> dict[str, Any]:
        """Return what the steps after a legal cut reveal about its tensor, as arguments of `critics.layout`."""
        position = self.find(name).position
        return {
            "class_token": self._class_token(position),
            "linear_next": self._linear_next(position),
            **self._last_layer(position),
        }

    def _class_token(self, position: int) -> bool:
        """Return whether the first token that crosses is a class token: x[:, 0] is read, and none prepended before."""
        for step in self.recording.steps[position:]:
            name = getattr(step.target, "__name__", step.target)
            if name in ("cat", "concat") and 1 in (*step.args[1:2], step.kwargs.get("dim")):
                return False
            index = step.args[1] if step.target is operator.getitem else None
            if isinstance(index, tuple) and index[:2] == (slice(None), 0):
                return True
        return False

    def _linear_next(self, position: int) -> bool:
        """Return whether the next layer is linear, not a convolution."""
        targets = [str(step.target) for step in self.recording.steps[position:] if step.op == "call_module"]
        layers = (inner for name in targets for inner in self.recording.attributes[name].modules())
        first = next((layer for layer in layers if isinstance(layer, nn.Linear | _ConvNd)), None)
        return isinstance(first, nn.Linear)

    def _last_layer(self, position: int) -> dict[str, Any]:
        """Return the channels that the last layer before a cut puts out, 0 where none has any, and if it is 1-d."""
        targets = [str(step.target) for step in self.recording.steps[:position] if step.op == "call_module"]
        layers = [inner for name in targets for inner in self.recording.attributes[name].modules()]
        last = next((layer for layer in reversed(layers) if _channels_of(layer)), None)
        channels = 0 if last is None else _channels_of(last)
        return {"channels": channels, "convolved": isinstance(last, nn.Conv1d | nn.BatchNorm1d)}

    def _numbered(self) -> Iterator[tuple[int, fx.Node]]:
        return iter(enumerate(self.recording.steps, start=1))

    def _objection(self, position: int) -> str:
        if position == len(self.recording.steps):
            return "where it ends"
        live = _live(self.recording)[position - 1]
        if len(live) != 1:
            names = (str(step.target) if step.op == "call_module" else step.name for step in live)
            return f"where {len(live)} values cross ({', '.join(names)}), not one"
        if not is_tensor(live[0]):
            return f"where the value that crosses ({live[0].name}) is not one tensor"
        return "where the next group would overwrite the tensor in place"


def _channels_of(layer: nn.Module) -> int:
    """Return the channels that a layer puts out, 0 where it puts out those that it gets."""
    if isinstance(layer, nn.RNNBase):
        return layer.hidden_size * (1 + layer.bidirectional)
    for key in ("out_channels", "out_features", "embedding_dim", "num_features"):
        if isinstance(count := getattr(layer, key, None), int):
            return count
    return layer.normalized_shape[-1] if isinstance(layer, nn.LayerNorm) else 0


def _live(recording: Recording) -> list[list[fx.Node]]:
    """Return the values that are computed and still needed after 1, 2, .. steps."""
    last_use = {source: step for step in recording.steps for source in step.all_input_nodes}
    needed, after = [recording.input], []
    for step in recording.steps:
        needed = [value for value in needed if value is recording.result or last_use.get(value) is not step]
        if step in last_use or step is recording.result:
            needed.append(step)
        after.append(needed)
    return after


def _numbers_beside_one(model: nn.Module, recording: Recording, values: list[list[fx.Node]]) -> set[fx.Node]:
    """Return the numbers that cross beside one tensor where a block ends."""
    beside = [p for p, live in enumerate(values, 1) if len(live) > 1 and sum(map(is_tensor, live)) == 1]
    ends = ends_of_blocks(model, recording, [p for p in beside if p < len(recording.steps)])
    return {value for position in ends for value in values[position - 1] if not is_tensor(value)}


def _overwritten(value: fx.Node, recording: Recording, position: int) -> bool:
    """Return whether a later step writes into the tensor, which critic and backward pass still need."""
    aliases = {value}
    for step in recording.steps[position:]:
        source = step.args[0] if step.args else step.kwargs.get("input")
        if not isinstance(source, fx.Node) or source not in aliases:
            continue
        module = recording.attributes.get(str(step.target)) if step.op == "call_module" else None
        name = str(getattr(step.target, "__name__", step.target))
        if module is not None and str(step.target) in recording.whole and not isinstance(module, NORMS):
            if any(getattr(inner, "inplace", False) for inner in module.modules()):
                return True  # possibly: its first operation is not known
            aliases.add(step)
        elif getattr(module, "inplace", False) or step.kwargs.get("inplace") or step.target in IN_PLACE:
            return True
        if module is None and name.endswith("_") and not name.endswith("__"):
            return True
        if isinstance(module, ALIASING) or (module is None and name in ALIASING_NAMES):
            aliases.add(step)
    return False


def listed(cuts: Sequence[Cut]) -> str:
    """Return the names of the first dozen cuts, for messages."""
    names = [cut.name for cut in cuts]
    return (", ".join(names[:LISTED_CUTS]) + (" .." if len(names) > LISTED_CUTS else "")) or "no module"
