"""Layer groups and critics bound to buffers for one input shape, so that no tensor is copied between them.

input -> group 1 -> hidden 1 -> group 2 -> hidden 2 -> group 3 -> logits
                       |                      |
                    critic 1 -> logits     critic 2 -> logits
"""

from __future__ import annotations

import math
import os
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anytime_lct.exits.bundle import Manifest
from anytime_lct.runtime.backend import Buffer
from anytime_lct.runtime.graphs import Graphs, run_error

# Bounds on the buffers that wait for a next request: one chain serves one request at a time, for one input shape.
MAX_SPARE_CHAINS, MAX_SPARE_BYTES = 16, 1 << 28
# Larger buffers, of more than one sample, do not wait: the batch takes much longer than to allocate them again.
LARGE_BYTES = 1 << 24


class Chain:
    """The groups and critics of a bundle for batches of one shape; serves one request at a time.

    `start` sets a batch, or the hidden tensor behind group `depth`; `advance` runs the next group; `logits` runs the
    exit at the current depth. The output of a graph's first run, which shows its shape, is the buffer of all later
    runs.
    """

    def __init__(self, graphs: Graphs, manifest: Manifest) -> None:
        self.depth = 0
        self.nbytes = 0  # of the buffers
        self._graphs = graphs
        self._manifest = manifest
        self._values: dict[int, Buffer] = {}  # 0: the input; i: hidden i, or the logits of the last group
        self._groups: dict[int, _BoundGraph] = {}
        self._critics: dict[int, _BoundGraph] = {}

    def start(self, x: NDArray[Any], depth: int = 0) -> None:
        """Set a batch (depth 0), or the hidden tensor behind group `depth`."""
        if depth in self._values:
            self._values[depth].write(x)
        else:
            self._values[depth] = self._graphs.backend.buffer(x)
            self.nbytes += x.nbytes
        self.depth = depth

    def advance(self) -> bool:
        """Run the next group; return whether it was loaded and bound before."""
        i = self.depth + 1
        is_bound = i in self._groups
        if is_bound:
            self._groups[i].run()
        else:
            file, target = self._manifest.groups[i - 1].name, self._values.get(i)
            group = self._groups[i] = _BoundGraph(self._graphs, file, self._values[i - 1], target)
            if target is None:
                self._values[i] = group.output
                self.nbytes += group.output.nbytes
        self.depth = i
        return is_bound

    def hidden(self) -> NDArray[np.float32]:
        """Return the tensor at the current cut, (B, ..): on a CPU a view that the next request overwrites."""
        return self._values[self.depth].read()

    @property
    def is_critic_bound(self) -> bool:
        """Whether the critic at the current depth was loaded and bound before."""
        return self.depth in self._critics

    def logits(self) -> NDArray[np.float32]:
        """Run the exit at the current depth, the critic or the end of the network; return a copy of its logits."""
        i = self.depth
        if i == self._manifest.num_groups:
            return np.array(self._values[i].read())
        if i in self._critics:
            self._critics[i].run()
        else:
            critic = _BoundGraph(self._graphs, self._manifest.critics[i].name, self._values[i], None)
            self._critics[i] = critic
            self.nbytes += critic.output.nbytes
        return np.array(self._critics[i].output.read())


class ChainPool:
    """Chains lent to one request each, and stored for the next one of that shape; safe to use from many threads.

    `spare_chains` and `spare_bytes` bound the stored chains; the longest unused are dropped.

    >>> chain = pool.take((8, 3, 32, 32))                                              # doctest: +SKIP
    >>> pool.give_back((8, 3, 32, 32), chain)                                          # doctest: +SKIP
    """

    def __init__(
        self,
        graphs: Graphs,
        manifest: Manifest,
        spare_chains: int = MAX_SPARE_CHAINS,
        spare_bytes: int = MAX_SPARE_BYTES,
    ) -> None:
        self.manifest = manifest
        self._graphs = graphs
        self._max_chains, self._max_bytes = spare_chains, spare_bytes
        self._start()

    def _start(self) -> None:
        self._spare: list[tuple[tuple[int, ...], Chain, int]] = []  # shape, chain, bytes
        self._lock = threading.RLock()
        self._process = os.getpid()

    @property
    def spare(self) -> list[tuple[tuple[int, ...], int]]:
        """Shape and bytes of every chain that waits for a request, the longest unused first."""
        with self._lock:
            return [(shape, size) for shape, _, size in self._spare]

    def take(self, shape: tuple[int, ...]) -> Chain:
        """Lend a chain for batches of this shape, a stored one where there is one."""
        if self._process != os.getpid():  # the graphs of the spare chains belong to the process that was forked
            self._start()
        with self._lock:
            for k in range(len(self._spare) - 1, -1, -1):
                if self._spare[k][0] == shape:
                    return self._spare.pop(k)[1]
        return Chain(self._graphs, self.manifest)

    def give_back(self, shape: tuple[int, ...], chain: Chain) -> None:
        """Store a chain for the next request of this shape, within the bounds."""
        size = math.prod(shape[:1] if len(shape) > 2 else shape)
        if size > 1 and chain.nbytes > LARGE_BYTES:
            self._graphs.backend.has_free_memory = True
            return
        with self._lock:
            self._spare.append((shape, chain, chain.nbytes))
            while len(self._spare) > self._max_chains or sum(size for _, _, size in self._spare) > self._max_bytes:
                del self._spare[0]


class _BoundGraph:
    """A group or critic bound to the buffer that it reads and the buffer that it writes; making it runs it once."""

    def __init__(self, graphs: Graphs, name: str, source: Buffer, target: Buffer | None) -> None:
        self._name = name
        graph = graphs.load(name)
        try:
            self._bound = graph.bind(source, target)
        except Exception as error:
            raise run_error(name, error) from None
        self.output = self._bound.output

    def run(self) -> None:
        try:
            self._bound.run()
        except Exception as error:
            raise run_error(self._name, error) from None
