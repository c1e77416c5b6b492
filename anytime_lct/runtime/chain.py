"""Layer groups and critics bound to buffers for one input shape, so that no tensor is copied between them.

input -> group 1 -> hidden 1 -> group 2 -> hidden 2 -> group 3 -> logits
                       |                      |
                    critic 1 -> logits     critic 2 -> logits
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from anytime_lct.exits.bundle import Manifest
from anytime_lct.runtime.graphs import Graphs, failed

# Buffers kept for the next request: one chain serves one request at a time, for one input shape.
SPARE_CHAINS, SPARE_BYTES = 16, 1 << 28


class Chain:
    """The groups and critics of a bundle for batches of one shape; serves one request at a time.

    `start` sets a batch, or what group `depth` made of one; `advance` runs one group more; `logits` asks the exit where
    the batch has come to. A graph's first run shows its output's shape; that output then stays as the buffer of all
    later runs.
    """

    def __init__(self, graphs: Graphs, manifest: Manifest) -> None:
        self.depth = 0
        self._graphs = graphs
        self._manifest = manifest
        self._values: dict[int, ort.OrtValue] = {}  # 0: the input; i: hidden i, or the logits of the last group
        self._groups: dict[int, _Bound] = {}
        self._critics: dict[int, _Bound] = {}

    def start(self, x: NDArray[Any], depth: int = 0) -> None:
        """Take a batch (depth 0), or the hidden tensor that group `depth` made of one."""
        if depth in self._values:
            self._values[depth].update_inplace(x)
        else:
            # onnxruntime's own memory: a buffer over numpy's could be less aligned, and would be slower.
            value = ort.OrtValue.ortvalue_from_shape_and_type(x.shape, x.dtype.type, "cpu")
            value.update_inplace(x)
            self._values[depth] = value
        self.depth = depth

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(value.numpy().nbytes for value in self._values.values())

    def advance(self) -> bool:
        """Run the next group; tell whether it had run before, and so needed no loading and binding."""
        i = self.depth + 1
        is_bound = i in self._groups
        if is_bound:
            self._groups[i].run()
        else:
            file = self._manifest.groups[i - 1].name
            self._groups[i] = _Bound(self._graphs, file, self._values[i - 1], self._values.get(i))
            self._values[i] = self._groups[i].output
        self.depth = i
        return is_bound

    def hidden(self) -> NDArray[np.float32]:
        """Return the tensor that crosses the cut here, (B, ..): a view of a buffer that the next request overwrites."""
        return self._values[self.depth].numpy()

    @property
    def has_asked(self) -> bool:
        """Whether the critic here has run before."""
        return self.depth in self._critics

    def logits(self) -> NDArray[np.float32]:
        """Return a copy of the logits of the exit here; runs its critic, unless the network ends here."""
        i = self.depth
        if i == self._manifest.num_groups:
            return np.array(self._values[i].numpy())
        if i in self._critics:
            self._critics[i].run()
        else:
            self._critics[i] = _Bound(self._graphs, self._manifest.critics[i].name, self._values[i], None)
        return np.array(self._critics[i].output.numpy())


class ChainPool:
    """Chains lent to one request each, and kept for the next one of that shape; safe to use from many threads.

    `spare_chains` and `spare_bytes` bound what is kept; the latest ones stay.

    >>> chain = pool.take((8, 3, 32, 32))                                              # doctest: +SKIP
    >>> pool.give_back((8, 3, 32, 32), chain)                                          # doctest: +SKIP
    """

    def __init__(
        self, graphs: Graphs, manifest: Manifest, spare_chains: int = SPARE_CHAINS, spare_bytes: int = SPARE_BYTES
    ) -> None:
        self.manifest = manifest
        self._graphs = graphs
        self._most_chains, self._most_bytes = spare_chains, spare_bytes
        self._spare: list[tuple[tuple[int, ...], Chain, int]] = []  # shape, chain, bytes
        self._lock = threading.RLock()

    @property
    def spare(self) -> list[tuple[tuple[int, ...], int]]:
        """Shape and bytes of every chain that waits for a request, the longest unused first."""
        with self._lock:
            return [(shape, size) for shape, _, size in self._spare]

    def take(self, shape: tuple[int, ...]) -> Chain:
        """Lend a chain for batches of this shape, a used one where there is one."""
        with self._lock:
            for k in range(len(self._spare) - 1, -1, -1):
                if self._spare[k][0] == shape:
                    return self._spare.pop(k)[1]
        return Chain(self._graphs, self.manifest)

    def give_back(self, shape: tuple[int, ...], chain: Chain) -> None:
        """Keep a chain for the next request of this shape, within the bounds."""
        with self._lock:
            self._spare.append((shape, chain, chain.nbytes))
            while len(self._spare) > self._most_chains or sum(size for _, _, size in self._spare) > self._most_bytes:
                del self._spare[0]


class _Bound:
    """One graph bound to the buffer it reads and the buffer it writes; making it is its first run."""

    def __init__(self, graphs: Graphs, name: str, source: ort.OrtValue, target: ort.OrtValue | None) -> None:
        self._name = name
        self._graph = graphs.load(name)
        self._binding = self._graph.io_binding()
        output = self._graph.get_outputs()[0].name
        try:
            self._binding.bind_ortvalue_input(self._graph.get_inputs()[0].name, source)
            if target is None:
                self._binding.bind_output(output, "cpu")
            else:
                self._binding.bind_ortvalue_output(output, target)
        except Exception as error:
            raise failed(name, error) from None
        self.run()
        self.output: ort.OrtValue = target or self._binding.get_outputs()[0]
        self._binding.bind_ortvalue_output(output, self.output)

    def run(self) -> None:
        try:
            self._graph.run_with_iobinding(self._binding)
        except Exception as error:
            raise failed(self._name, error) from None
