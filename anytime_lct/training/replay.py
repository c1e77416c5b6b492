"""A training step that is recorded once as a CUDA graph, and replayed: one launch for some thousand kernels.

    minibatch k     x, y  --copied into-->  [x, y]
                    rates of step k  ---->  [rates]
                                               |
    replay          recorded kernels: forward, judge, descend and learn of every group, and the optimizers' steps
                                               |
                    in place  <-----------  [weights, slots, statistics]        [losses]  --added to--> sums

What stands in brackets keeps its address for the whole run, as do gradients and activations, in memory of the graph.

The host's part of the step does not run in a replay. A step is therefore recorded only in a process that trains all by
itself, and where its forward passes draw no random numbers, carry no hidden state, change no other attribute of a
module and call no hook; any other step runs as it is, and so do minibatches of another shape, on the same weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from anytime_lct.cutting.snapshot import random_positions
from anytime_lct.training.method import Method, Recordable
from anytime_lct.training.minibatch import Minibatch
from anytime_lct.training.processes.team import Team

WARM_UP = 3  # steps of one shape before it is recorded: kernels are loaded, optimizers have their slots
SHARE = 1 / 3  # of the GPU's memory that a step may take at most to be recorded

Step = Callable[[Minibatch], Tensor]


class Graph(Protocol):
    """A function without arguments, recorded on a device."""

    def run(self, function: Callable[[], Tensor]) -> Tensor:
        """Run a function where the graph is recorded, so that autograd sees one stream."""
        ...

    def record(self, function: Callable[[], Tensor]) -> Tensor:
        """Record the function without running it; return its result of every replay. Raises RuntimeError."""
        ...

    def replay(self) -> None:
        """Run what is recorded."""
        ...


class CudaGraph:
    """A CUDA graph, warmed up and recorded on a stream of its own, as torch asks for."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream, self._graph = device, torch.cuda.Stream(device), torch.cuda.CUDAGraph()

    def run(self, function: Callable[[], Tensor]) -> Tensor:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = function()
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def record(self, function: Callable[[], Tensor]) -> Tensor:
        peak, whole = torch.cuda.max_memory_allocated(self._device), torch.cuda.mem_get_info(self._device)[1]
        if peak > SHARE * whole:
            raise torch.OutOfMemoryError("a step that is recorded has memory of its own, beside that of other steps")
        with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
            return function()

    def replay(self) -> None:
        self._graph.replay()


def step_of(method: Method, team: Team) -> Step:
    """Return the step of a method, which is recorded where that is possible."""
    if team.device.type == "cuda" and team.size == 1 and isinstance(method, Recordable):
        return Replay(method, CudaGraph(team.device)).step
    return method.step


class Replay:
    """The step of a method, recorded in `graph` when a few minibatches of one shape have been learnt."""

    def __init__(self, method: Recordable, graph: Graph) -> None:
        self._method = method
        self._graph: Graph | None = graph
        self._seen = Counter[tuple[torch.Size, torch.Size]]()
        self._static: Minibatch | None = None
        self._losses = torch.zeros(0)

    def step(self, batch: Minibatch) -> Tensor:
        """Learn from one minibatch, as `Method.step` does; the losses are those of the last call only."""
        graph, static = self._graph, self._static
        if graph is None:
            return self._method.step(batch)
        shape = (batch.x.shape, batch.y.shape)  # labels (B, K) where images are mixed
        if static is not None:
            fits = (static.x.shape, static.y.shape) == shape
            return self._replay(graph, static, batch) if fits else graph.run(lambda: self._method.step(batch))
        self._seen[shape] += 1
        if self._seen[shape] <= WARM_UP:
            return self._warm_up(graph, batch, last=self._seen[shape] == WARM_UP)
        return self._record(graph, batch)

    def _warm_up(self, graph: Graph, batch: Minibatch, *, last: bool) -> Tensor:
        with watching(self._method.forwards) as changes:
            losses = graph.run(lambda: self._method.step(batch))
        if changes and last:
            self._graph = None
        return losses

    def _record(self, graph: Graph, batch: Minibatch) -> Tensor:
        static = replace(batch, x=batch.x.clone(), y=batch.y.clone())
        self._set_rates(batch.step)
        try:
            self._losses = graph.record(lambda: self._method.step(static))
        except RuntimeError:  # something in the step waits for the device, or there is no memory
            self._graph = None
            return self._method.step(batch)
        self._static = static
        return self._replay(graph, static, batch)

    def _replay(self, graph: Graph, static: Minibatch, batch: Minibatch) -> Tensor:
        static.x.copy_(batch.x, non_blocking=True)
        static.y.copy_(batch.y, non_blocking=True)
        self._set_rates(batch.step)
        graph.replay()
        return self._losses

    def _set_rates(self, step: int) -> None:
        for learner in self._method.learners:
            learner.set_rate(step)


@contextmanager
def watching(forwards: Sequence[nn.Module]) -> Iterator[list[str]]:
    """Yield a list that gets an entry for whatever a replay would miss in the forward passes inside this block."""
    changes: list[str] = []
    positions: list[Any] = []

    def enter(*_: Any) -> None:
        positions.append(random_positions())

    def leave(*_: Any) -> None:
        if positions.pop() != random_positions():
            changes.append("random numbers")

    parts = [part for root in forwards for part in root.modules()]
    if any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks for part in parts):
        changes.append("hooks")
    before = _attributes(forwards)
    with ExitStack() as hooks:
        for module in forwards:
            hooks.callback(module.register_forward_pre_hook(enter).remove)
            hooks.callback(module.register_forward_hook(leave).remove)
        yield changes
    after = _attributes(forwards)
    if len(before) != len(after) or any(a is not b for a, b in zip(before, after, strict=True)):
        changes.append("attributes")


def _attributes(modules: Sequence[nn.Module]) -> list[Any]:
    """Return all values that the modules refer to by their attributes, also in containers, in order."""
    values = [value for root in modules for module in root.modules() for value in vars(module).values()]
    return [part for value in values for part in (value, *_contents(value))]


def _contents(value: Any) -> Sequence[Any]:
    return [*value.values()] if isinstance(value, dict) else [*value] if isinstance(value, list | set) else ()
