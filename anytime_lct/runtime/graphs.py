"""The bundle's ONNX graphs in onnxruntime: each loaded once, when it is first needed, all in one pool of memory.

A graph that is loaded late is compared with the manifest that the session has read: a bundle that another process has
replaced since must not mix two networks. A forked process loads its own, since onnxruntime's threads stay behind.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from anytime_lct.errors import BundleError
from anytime_lct.exits.bundle import Bundle
from anytime_lct.runtime.outside import has_outside_data
from anytime_lct.runtime.states import names_of, with_inputs

State = dict[str, NDArray[np.float32]]
"""The state of a graph's recurrent layers, by the names of its inputs for them."""

# Bytes of an input from which a run gives memory back: for small ones that would take a fifth of their time.
LARGE = 1 << 18


class Graphs:
    """The bundle's ONNX graphs, each loaded once, when it is first needed."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self._folder = bundle.path
        self._sums = {file.name: file.sha256 for file in bundle.manifest.files()}
        self._threads = threads
        self.has_free_memory = False  # large buffers that the pool has got back
        self._start()

    def _start(self) -> None:
        self._loaded: dict[tuple[str, bool], ort.InferenceSession] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()

    @property
    def loaded(self) -> set[str]:
        """Names of the files that are loaded."""
        return {name for name, _ in self._loaded}

    def load(self, name: str, *, fed: bool = False) -> ort.InferenceSession:
        """Return a graph by its file's name, loaded on the first call; raises BundleError.

        With `fed`, the states of its recurrent layers are inputs.
        """
        if self._process != os.getpid():
            for graph in self._loaded.values():  # to delete it would wait for threads that stayed behind
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(graph))
            self._start()
        if (graph := self._loaded.get((name, fed))) is None:
            states = self.states(name) if fed else []
            with self._lock:
                if (graph := self._loaded.get((name, fed))) is None:
                    graph = self._loaded[name, fed] = self._open(name, states)
        return graph

    def run_options(self, size: int) -> ort.RunOptions | None:
        """Return the options of a run on `size` bytes: whether it gives back the memory that the pool does not use."""
        if size < LARGE and not self.has_free_memory:
            return None
        self.has_free_memory = False
        return _register_pool()

    def run(self, name: str, x: NDArray[Any]) -> NDArray[np.float32]:
        """Run a graph on a batch and return its output; raises BundleError."""
        graph = self.load(name)
        try:
            return np.asarray(graph.run(None, {graph.get_inputs()[0].name: x}, self.run_options(x.nbytes))[0])
        except Exception as error:
            raise run_error(name, error) from None

    def states(self, name: str) -> list[str]:
        """Return the names of the states of a graph's recurrent layers."""
        return names_of([each.name for each in self.load(name).get_outputs()])

    def go_on(self, name: str, x: NDArray[Any], state: State) -> tuple[NDArray[np.float32], State]:
        """Run a graph on a batch from the state that an earlier run left, {} at first; return its output and its state.

        Raises BundleError.
        """
        names = self.states(name)
        graph = self.load(name, fed=bool(names))
        try:
            feeds = {graph.get_inputs()[0].name: x} | state
            output, *states = map(np.asarray, graph.run(None, feeds, self.run_options(x.nbytes)))
        except Exception as error:
            raise run_error(name, error) from None
        return output, dict(zip(names, states, strict=True))

    def _open(self, name: str, states: list[str]) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        _share_memory(options)
        options.log_severity_level = 4  # errors are raised; nothing is printed
        if self._threads > 1:
            # Every graph has its own threads: those that wait must not spin on the cores of the one that runs.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = self._folder / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise BundleError(
                f"The bundle's file '{path}' cannot be read: {error.strerror or error}; copy or export it again."
            ) from None
        if hashlib.sha256(content).hexdigest() != self._sums[name]:
            raise BundleError(f"The bundle's file '{path}' was replaced after the bundle was opened; open it again.")
        _check_contained(path, content)
        try:
            graph = ort.InferenceSession(with_inputs(content, states), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise _no_graph(path, error) from None
        outputs = [each.name for each in graph.get_outputs()]
        if len(graph.get_inputs()) != 1 or len(outputs) != 1 + len(names_of(outputs)):
            raise BundleError(f"Expected one input and one output in '{path}', got others; export the bundle again.")
        return graph


def _check_contained(path: Path, content: bytes) -> None:
    """Raise BundleError for a graph with data outside of its file, which no checksum covers."""
    try:
        is_outside = has_outside_data(content)
    except ValueError as error:
        raise _no_graph(path, error) from None
    if is_outside:
        raise BundleError(
            f"Expected the weights of '{path}' inside the file, got a graph that names others; export the bundle again."
        )


def _no_graph(path: Path, error: Exception) -> BundleError:
    return BundleError(
        f"The bundle's file '{path}' is no ONNX graph that onnxruntime can load ({_first_line(error)}); export the "
        "bundle again."
    )


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


def run_error(name: str, error: Exception) -> BundleError:
    """Return the error of a graph that fails when it runs."""
    return BundleError(f"The bundle's graph '{name}' cannot run ({_first_line(error)}); export the bundle again.")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
