"""What a session needs of an execution provider: graphs, and buffers that they read and write without a copy.

`onnxruntime_backend` and `openvino_backend` have it. Whatever fails in them raises an error of theirs.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Buffer(Protocol):
    """Memory of the provider's device, for one tensor."""

    nbytes: int

    def write(self, x: NDArray[Any]) -> None:
        """Copy an array of the buffer's shape and type into it."""
        ...

    def read(self) -> NDArray[np.float32]:
        """Return what is in it: a view on a processor, which later runs change, and a copy from any other device."""
        ...


class Bound(Protocol):
    """A graph bound to the buffer that it reads and the one that it writes, `output`; for one thread at a time."""

    @property
    def output(self) -> Buffer: ...

    def run(self) -> None: ...


class LoadedGraph(Protocol):
    """A graph with the names of its inputs and outputs; safe to use from many threads."""

    inputs: list[str]
    outputs: list[str]

    def run(self, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run it on arrays by name, and return its outputs."""
        ...

    def bind(self, source: Any, target: Any) -> Bound:
        """Bind it to buffers of its backend and run it once; without a target to a new one, of the output's shape."""
        ...


class Backend(Protocol):
    """An execution provider that runs; many threads may use it.

    `has_free_memory` is whether large buffers are no longer used, `feeds_states` whether the states of recurrent layers
    can be inputs.
    """

    feeds_states: bool
    has_free_memory: bool

    def open(self, content: bytes) -> LoadedGraph:
        """Return the graph in an ONNX file of this content."""
        ...

    def buffer(self, x: NDArray[Any]) -> Buffer:
        """Return a new buffer that holds a copy of `x`."""
        ...
