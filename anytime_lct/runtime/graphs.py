"""The bundle's ONNX graphs, each loaded once, when it is first needed, by the backend of an execution provider.

A graph that is loaded late is compared with the manifest that the session has read: a bundle that another process has
replaced since must not mix two networks. A forked process loads its own, since a backend's threads stay behind.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anytime_lct.errors import BundleError
from anytime_lct.exits.bundle import Bundle
from anytime_lct.runtime.backend import Backend, LoadedGraph
from anytime_lct.runtime.outside import has_outside_data
from anytime_lct.runtime.providers import CPU, Provider
from anytime_lct.runtime.states import names_of, with_inputs

State = dict[str, NDArray[np.float32]]
"""The state of a graph's recurrent layers, by the names of its inputs for them."""


class Graphs:
    """The bundle's ONNX graphs on a provider, each loaded once, when it is first needed."""

    def __init__(self, bundle: Bundle, threads: int, provider: Provider = CPU) -> None:
        self._folder = bundle.path
        self._sums = {file.name: file.sha256 for file in bundle.manifest.files()}
        self._threads, self._provider = threads, provider
        self._start()

    def _start(self) -> None:
        self.backend: Backend = self._provider.start(self._threads)
        self._loaded: dict[tuple[str, bool], LoadedGraph] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()

    @property
    def loaded(self) -> set[str]:
        """Names of the files that are loaded."""
        return {name for name, _ in self._loaded}

    def load(self, name: str, *, fed: bool = False) -> LoadedGraph:
        """Return a graph by its file's name, loaded on the first call; raises BundleError.

        With `fed`, the states of its recurrent layers are inputs.
        """
        if self._process != os.getpid():
            for each in (
                self.backend,
                *self._loaded.values(),
            ):  # to delete it would wait for threads that stayed behind
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))
            self._start()
        if (graph := self._loaded.get((name, fed))) is None:
            states = self.states(name) if fed else []
            with self._lock:
                if (graph := self._loaded.get((name, fed))) is None:
                    graph = self._loaded[name, fed] = self._open(name, states)
        return graph

    def run(self, name: str, x: NDArray[Any]) -> NDArray[np.float32]:
        """Run a graph on a batch and return its output; raises BundleError."""
        graph = self.load(name)
        try:
            return graph.run({graph.inputs[0]: x})[0]
        except Exception as error:
            raise run_error(name, error) from None

    def states(self, name: str) -> list[str]:
        """Return the names of the states of a graph's recurrent layers."""
        return names_of(self.load(name).outputs)

    def go_on(self, name: str, x: NDArray[Any], state: State) -> tuple[NDArray[np.float32], State]:
        """Run a graph on a batch from the state that an earlier run left, {} at first; return its output and its state.

        Raises BundleError.
        """
        names = self.states(name)
        graph = self.load(name, fed=bool(names))
        try:
            output, *states = graph.run({graph.inputs[0]: x} | state)
        except Exception as error:
            raise run_error(name, error) from None
        return output, dict(zip(names, states, strict=True))

    def _open(self, name: str, states: list[str]) -> LoadedGraph:
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
            graph = self.backend.open(with_inputs(content, states))
        except Exception as error:  # the exceptions of backends share no base class
            raise _no_graph(path, error) from None
        if len(graph.inputs) != 1 or len(graph.outputs) != 1 + len(names_of(graph.outputs)):
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


def run_error(name: str, error: Exception) -> BundleError:
    """Return the error of a graph that fails when it runs."""
    return BundleError(f"The bundle's graph '{name}' cannot run ({_first_line(error)}); export the bundle again.")


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if not line.startswith("Exception from")]  # OpenVINO's
    return (lines or [type(error).__name__])[0].rstrip(".")
