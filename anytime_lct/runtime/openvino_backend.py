"""Graphs in OpenVINO, on the CPU: the package `openvino` stands beside any onnxruntime, on processors of any maker."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray


class OpenVINOBackend:
    """OpenVINO with `threads` threads inside a request, and so many requests at once that all cores have work."""

    feeds_states = False  # a constant of the graph stays one, also where an input has its name

    def __init__(self, threads: int) -> None:
        self.has_free_memory = False
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        streams = max(1, cores // threads)
        self._core = ov.Core()
        self._options = {
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams * threads,
            "ENABLE_CPU_PINNING": False,  # every graph has its own threads, which one core would share
            "EXECUTION_MODE_HINT": "ACCURACY",  # float32 stays float32
        }

    def open(self, content: bytes) -> OpenVINOGraph:
        """Return the graph in an ONNX file of this content."""
        return OpenVINOGraph(self._core.compile_model(self._core.read_model(content), "CPU", self._options))

    def buffer(self, x: NDArray[Any]) -> OpenVINOBuffer:
        """Return a new buffer that holds a copy of `x`."""
        return OpenVINOBuffer(ov.Tensor(x))


class OpenVINOBuffer:
    """A tensor of OpenVINO, in the memory of the processor."""

    def __init__(self, tensor: ov.Tensor) -> None:
        self.tensor = tensor
        self.nbytes = tensor.byte_size

    def write(self, x: NDArray[Any]) -> None:
        """Copy an array of the buffer's shape and type into it."""
        self.tensor.data[...] = x

    def read(self) -> NDArray[np.float32]:
        """Return a view of what is in it."""
        return self.tensor.data


class OpenVINOGraph:
    """A graph compiled by OpenVINO."""

    def __init__(self, compiled: ov.CompiledModel) -> None:
        self.compiled = compiled
        self.inputs = [each.any_name for each in compiled.inputs]
        self.outputs = [each.any_name for each in compiled.outputs]
        self._local = threading.local()  # a request of OpenVINO serves one thread at a time

    def run(self, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run it on arrays by name, and return its outputs."""
        if (request := getattr(self._local, "request", None)) is None:
            request = self._local.request = self.compiled.create_infer_request()
        return list(request.infer(feeds).values())

    def bind(self, source: OpenVINOBuffer, target: OpenVINOBuffer | None) -> OpenVINOBound:
        """Bind it to buffers and run it once; without a target to a new one, of the shape of the output."""
        return OpenVINOBound(self, source, target)


class OpenVINOBound:
    """A graph bound to its buffers."""

    def __init__(self, graph: OpenVINOGraph, source: OpenVINOBuffer, target: OpenVINOBuffer | None) -> None:
        self._request = graph.compiled.create_infer_request()
        self._request.set_input_tensor(0, source.tensor)
        if target is not None:
            self._request.set_output_tensor(0, target.tensor)
        self.run()
        self.output = target or OpenVINOBuffer(ov.Tensor(self._request.get_output_tensor(0).data))
        self._request.set_output_tensor(0, self.output.tensor)

    def run(self) -> None:
        """Run the graph; raises what OpenVINO raises."""
        self._request.infer(share_outputs=True)
