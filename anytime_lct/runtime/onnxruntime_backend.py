"""Graphs in onnxruntime, on any of its execution providers; those on the CPU share one pool of memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

# Bytes of an input from which a run gives memory back: for small ones that would take a fifth of their time.
LARGE = 1 << 18
# An ONNX file: y = x, which every provider can compute.
IDENTITY = (
    b'\x08\x07:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)

Providers = Mapping[str, Mapping[str, str]]
"""onnxruntime's names of providers, the first to be asked first, with the options of each."""


def is_there(providers: Providers) -> bool:
    """Return whether the first of the providers is in the installed onnxruntime, and starts on this machine."""
    first = next(iter(providers))
    if first not in ort.get_available_providers():
        return False
    backend = OnnxruntimeBackend(providers, "cpu", 1)
    try:
        return backend.open(IDENTITY).providers[0] == first  # others stand in for one that does not start
    except Exception:  # onnxruntime's exceptions share no base class
        return False


class OnnxruntimeBackend:
    """onnxruntime with buffers on `device`, cpu or cuda, and `threads` threads inside a request."""

    feeds_states = True

    def __init__(self, providers: Providers, device: str, threads: int) -> None:
        self.device = device
        self.has_free_memory = False
        self._providers, self._threads = providers, threads

    def open(self, content: bytes) -> OnnxruntimeGraph:
        """Return the graph in an ONNX file of this content."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        _share_memory(options)
        options.log_severity_level = 4  # errors are raised; nothing is printed
        if self._threads > 1:
            # Every graph has its own threads: those that wait must not spin on the cores of the one that runs.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = [(name, dict(values)) for name, values in self._providers.items()]
        return OnnxruntimeGraph(self, ort.InferenceSession(content, options, providers=providers))

    def buffer(self, x: NDArray[Any]) -> OnnxruntimeBuffer:
        """Return a new buffer that holds a copy of `x`, in onnxruntime's own memory: numpy's may be less aligned."""
        value = ort.OrtValue.ortvalue_from_shape_and_type(x.shape, x.dtype.type, self.device)
        value.update_inplace(x)
        return OnnxruntimeBuffer(value, x.itemsize)

    def run_options(self, size: int) -> ort.RunOptions | None:
        """Return the options of a run on `size` bytes: whether it gives back the memory that the pool does not use."""
        if size < LARGE and not self.has_free_memory:
            return None
        self.has_free_memory = False
        return _register_pool()


class OnnxruntimeBuffer:
    """A tensor of onnxruntime, with elements of so many bytes."""

    def __init__(self, value: ort.OrtValue, itemsize: int) -> None:
        self.value = value
        self.nbytes = math.prod(value.shape()) * itemsize

    def write(self, x: NDArray[Any]) -> None:
        """Copy an array of the buffer's shape and type into it."""
        self.value.update_inplace(x)

    def read(self) -> NDArray[np.float32]:
        """Return what is in it: a view on a processor, a copy from another device."""
        return self.value.numpy()


class OnnxruntimeGraph:
    """A graph loaded into onnxruntime; `providers` are those that it runs on."""

    def __init__(self, backend: OnnxruntimeBackend, session: ort.InferenceSession) -> None:
        self.session = session
        self.backend = backend
        self.inputs = [each.name for each in session.get_inputs()]
        self.outputs = [each.name for each in session.get_outputs()]

    @property
    def providers(self) -> Sequence[str]:
        """onnxruntime's names of the providers that the graph can run on."""
        return self.session.get_providers()

    def run(self, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run it on arrays by name, and return its outputs."""
        options = self.backend.run_options(next(iter(feeds.values())).nbytes)
        return [np.asarray(output) for output in self.session.run(None, feeds, options)]

    def bind(self, source: OnnxruntimeBuffer, target: OnnxruntimeBuffer | None) -> OnnxruntimeBound:
        """Bind it to buffers and run it once; without a target to a new one, of the shape of the output."""
        return OnnxruntimeBound(self, source, target)


class OnnxruntimeBound:
    """A graph bound to its buffers."""

    def __init__(self, graph: OnnxruntimeGraph, source: OnnxruntimeBuffer, target: OnnxruntimeBuffer | None) -> None:
        self._session, self._backend, self._size = graph.session, graph.backend, source.nbytes
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input(graph.inputs[0], source.value)
        if target is None:
            self._binding.bind_output(graph.outputs[0], graph.backend.device)
        else:
            self._binding.bind_ortvalue_output(graph.outputs[0], target.value)
        self.run()
        self.output = target or OnnxruntimeBuffer(self._binding.get_outputs()[0], itemsize=4)
        self._binding.bind_ortvalue_output(graph.outputs[0], self.output.value)

    def run(self) -> None:
        """Run the graph; raises what onnxruntime raises."""
        self._session.run_with_iobinding(self._binding, self._backend.run_options(self._size))


def _share_memory(options: ort.SessionOptions) -> None:
    """Let a graph use the memory of the one before it, which is still in the cache, instead of its own pool.

    One pool for the process needs less memory, and makes `stream` 1% faster (benchmarks/overhead.py).
    """
    _register_pool()
    options.add_session_config_entry("session.use_env_allocators", "1")


@functools.cache
def _register_pool() -> ort.RunOptions | None:
    """Register the pool, once, and return the options of a run that gives back the memory that the pool does not use.

    Else the pool would keep the memory of the largest batch to the end. None where the host program has registered a
    pool of its own, which is used then.
    """
    cpu = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    try:
        ort.create_and_register_allocator(cpu, None)
    except Exception:
        return None
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options
