"""Numbers that a forward pass reads of its tensors' shapes: known where they are the same for every size of the batch.

Recorded steps run on tensors that have a shape and no storage, at several sizes of the batch. A number that is the same
at all of them is a constant of the network for inputs of this shape, and one that always equals the size of the batch
is that size. Nothing is known of numbers that depend on the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import map_arg

from anytime_lct.errors import PartitionError

BATCHES = (1, 2, 257)
BATCH = object()  # what `Sizes.of` returns for the size of the batch


class UnknownError(Exception):
    """A value is a tensor, depends on the batch or the data, or the steps before it cannot run."""


class Sizes:
    """Values of recorded steps that are no tensors, for inputs like `example` in batches of any size.

    `fetch` returns the module or tensor that a step names.
    """

    def __init__(self, example: Tensor, fetch: Callable[[str], Any]) -> None:
        self._fetch, self._mode = fetch, FakeTensorMode(allow_non_fake_inputs=True)
        with self._mode:
            self._inputs = [torch.empty(rows, *example.shape[1:], dtype=example.dtype) for rows in BATCHES]
        self._values = dict[fx.Node, list[Any]]()
        self.running = False

    def of(self, node: fx.Node) -> Any:
        """Return the value of a step, or BATCH where it is the size of the batch; raises UnknownError."""
        values = self._run_until(node)
        if not all(map(_is_plain, values)):
            raise UnknownError
        if all(type(value) is type(values[0]) and value == values[0] for value in values):
            return values[0]
        if values == list(BATCHES):
            return BATCH
        raise UnknownError

    def count(self, node: fx.Node) -> int:
        """Return the length of a shape, a tuple or a tensor; raises UnknownError."""
        values = self._run_until(node)
        try:
            lengths = {len(value) for value in values}
        except TypeError:
            raise UnknownError from None
        if len(lengths) != 1:
            raise UnknownError
        return lengths.pop()

    def _run_until(self, node: fx.Node) -> list[Any]:
        """Return the values of a step, for each size of the batch, after all steps that it comes from."""
        needed, waiting = set[fx.Node](), [node]
        while waiting:
            step = waiting.pop()
            if step not in needed and step not in self._values:
                needed.add(step)
                waiting += step.all_input_nodes
        self.running = True
        try:
            for step in node.graph.nodes if needed else ():
                if step in needed:
                    self._values[step] = [self._run(step, number) for number in range(len(BATCHES))]
        finally:
            self.running = False
        return self._values[node]

    def _run(self, step: fx.Node, number: int) -> Any:
        if step.op == "placeholder":
            return self._inputs[number]
        if step.op == "get_attr":
            return self._fetch(str(step.target))
        values = {source: self._values[source][number] for source in step.all_input_nodes}
        if any(isinstance(value, UnknownError) for value in values.values()):
            return UnknownError()
        args: Any
        kwargs: Any
        args, kwargs = map_arg((step.args, step.kwargs), values.__getitem__)
        try:
            with self._mode, torch.no_grad():
                if step.op == "call_module":
                    with _evaluating(self._fetch(str(step.target))) as module:
                        return module(*args, **kwargs)
                if step.op == "call_method":
                    return getattr(args[0], str(step.target))(*args[1:], **kwargs)
                function: Any = step.target
                return function(*args, **kwargs)
        except Exception:  # of any operation, and where a value of the data is asked for
            return UnknownError()


def expect_shape(x: Tensor, shape: tuple[int, ...]) -> None:
    """Raise PartitionError unless each input has the shape that a network is cut for."""
    if tuple(x.shape[1:]) != shape:
        raise PartitionError(
            f"Expected inputs of shape {shape}, for which the network is cut, as its forward pass depends on their "
            f"size, got {tuple(x.shape[1:])}; cut it with an example of that shape."
        )


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """Set a module to evaluation, in which a batch of one is never too small."""
    modes = [(part, part.training) for part in module.modules()]
    for part, _ in modes:
        part.training = False
    try:
        yield module
    finally:
        for part, mode in modes:
            part.training = mode


def _is_plain(value: Any) -> bool:
    """Whether a value is a number, or a tuple of numbers such as a shape."""
    return all(map(_is_plain, value)) if isinstance(value, tuple | list) else isinstance(value, int | float)
