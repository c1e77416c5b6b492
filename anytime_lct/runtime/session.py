"""Answers from a bundle: the best exit a budget allows, or every exit in turn, computing nothing twice.

input -> group 1 -> hidden 1 -> group 2 -> hidden 2 -> group 3 -> logits
                       |                      |
                    critic 1 -> logits     critic 2 -> logits
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from anytime_lct.budget import Budget
from anytime_lct.bundle import Bundle, Manifest
from anytime_lct.errors import BundleError, InputError
from anytime_lct.runtime.preprocess import check_batch, show_shape
from anytime_lct.selector import select

# Buffers kept for the next request: one chain serves one request at a time, for one input shape.
SPARE_CHAINS = 16
KNOWN_BUDGETS = 256


@dataclass(frozen=True, eq=False)
class Answer:
    """What exit `exit` says of a batch.

    `logits` are float32, (B, K) for images and (B, T, K) for text; `flops` the multiply-adds paid so far, per
    sample (for text: per character), groups and visited critics together.
    """

    exit: int
    logits: NDArray[np.float32]
    flops: int

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """Softmax of the logits over their last axis."""
        shifted = np.exp(self.logits - self.logits.max(axis=-1, keepdims=True))
        return shifted / shifted.sum(axis=-1, keepdims=True)

    @property
    def classes(self) -> NDArray[np.int64]:
        """Index of the most likely class, or next symbol, over the last axis."""
        return self.logits.argmax(axis=-1)


class AnytimeSession:
    """A bundle ready to answer; safe to use from many threads, and by many streams at once.

    `threads` are those that onnxruntime uses inside one request: with one worker thread a core, 1 is best.
    Graphs are loaded when first needed. Raises BundleError for a bundle that is not whole.

    >>> session = AnytimeSession("bundle")                                              # doctest: +SKIP
    >>> session.run(x, Budget(flops=20e6)).classes                                      # doctest: +SKIP
    >>> for answer in session.stream(x):                                                # doctest: +SKIP
    ...     if answer.probabilities.max() > 0.9: break
    """

    def __init__(self, bundle: Bundle | Path | str, threads: int = 1) -> None:
        if type(threads) is not int or threads < 1:
            raise InputError(f"Expected a positive number of threads, got {threads!r}; 1 suits overlapping requests.")
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self.manifest, self.profile = self.bundle.manifest, self.bundle.profile
        self.served = self.manifest.served
        self._graphs = _Graphs(self.bundle.path, threads)
        self._spare: list[_Chain] = []
        self._spare_lock = threading.RLock()
        self._chosen: dict[Budget, int] = {}
        self._flops = {exit: self.profile.cost(exit).flops for exit in self.served}
        self._paid = self._stream_flops()

    def choose(self, budget: Budget | None = None) -> int:
        """Return the exit that `run` answers with: the most accurate served one that fits the budget.

        Raises NothingFitsError, and BudgetError for a latency budget where the profile has no latencies.
        """
        budget = budget or Budget()
        if (exit := self._chosen.get(budget)) is None:
            exit = select(self.profile, budget, exits=self.served).exit
            if len(self._chosen) >= KNOWN_BUDGETS:
                self._chosen.clear()
            self._chosen[budget] = exit
        return exit

    def run(self, x: NDArray[Any], budget: Budget | None = None) -> Answer:
        """Answer a batch once, by `choose(budget)`: groups 1..i, then critic i only.

        `x` is (B, C, H, W) float32 or float64, or (B, T) integers.
        Raises InputError, NothingFitsError and BundleError.
        """
        return self.run_to(self.choose(budget), x)

    def run_to(self, exit: int, x: NDArray[Any]) -> Answer:
        """Answer a batch by a served exit, as `run` does by the one it chooses; raises InputError."""
        if exit not in self.served:
            raise InputError(
                f"Expected one of the served exits {show_shape(self.served)}, got {exit!r}; choose among them."
            )
        x = self.check(x)
        flops = self._flops[exit]
        if not self.manifest.groups:
            return Answer(exit, self._graphs.run(self.manifest.exits[exit].name, x), flops)
        chain = self._take(x)
        try:
            return Answer(exit, chain.logits(exit), flops)
        finally:
            self._give_back(chain)

    def stream(self, x: NDArray[Any]) -> Iterator[Answer]:
        """Answer a batch by every served exit in turn, each paying only for what lies behind the one before.

        The input is checked and copied at once; nothing runs until the first answer is asked for, and leaving
        the loop early pays nothing more. An answer stays valid.
        Raises InputError, and BundleError for a bundle without groups.
        """
        if not self.manifest.groups:
            raise BundleError(
                f"Expected a bundle with layer groups to stream from, got '{self.bundle.path}', which "
                "has whole exits "
                f"only; export it again without --only exits."
            )
        return self._stream(np.array(self.check(x)))

    def _stream(self, x: NDArray[Any]) -> Iterator[Answer]:
        chain = self._take(x)
        try:
            for exit, flops in self._paid.items():
                yield Answer(exit, chain.logits(exit), flops)
        finally:
            self._give_back(chain)

    def check(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return a batch as the network takes it, C-contiguous float32 or int64; raises InputError."""
        return check_batch(x, self.manifest)

    def _stream_flops(self) -> dict[int, int]:
        """Multiply-adds of reaching each served exit by way of the served ones before it."""
        groups, critics = self.profile.groups, self.profile.critics
        return {
            exit: sum(cost.flops for cost in groups[:exit])
            + sum(critics[i - 1].flops for i in self.served if i <= min(exit, len(critics)))
            for exit in self.served
        }

    def _take(self, x: NDArray[Any]) -> _Chain:
        with self._spare_lock:
            spare = next((chain for chain in reversed(self._spare) if chain.shape == x.shape), None)
            if spare is not None:
                self._spare.remove(spare)
        chain = spare or _Chain(self._graphs, self.manifest, x.shape)
        chain.start(x)
        return chain

    def _give_back(self, chain: _Chain) -> None:
        with self._spare_lock:
            self._spare.append(chain)
            del self._spare[:-SPARE_CHAINS]


class _Graphs:
    """The bundle's ONNX graphs, each loaded once, when it is first needed."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._folder = folder
        self._threads = threads
        self._loaded: dict[str, ort.InferenceSession] = {}
        self._lock = threading.Lock()

    def load(self, name: str) -> ort.InferenceSession:
        if (graph := self._loaded.get(name)) is None:
            with self._lock:
                if (graph := self._loaded.get(name)) is None:
                    graph = self._loaded[name] = self._open(name)
        return graph

    def run(self, name: str, x: NDArray[Any]) -> NDArray[np.float32]:
        graph = self.load(name)
        try:
            return np.asarray(graph.run(None, {graph.get_inputs()[0].name: x})[0])
        except Exception as error:
            raise _failed(name, error) from None

    def _open(self, name: str) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        _share_memory(options)
        options.log_severity_level = 4  # errors come as exceptions; nothing is printed
        if self._threads > 1:
            # Every graph has a pool of its own: those that wait must not burn the cores of the one that runs.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = self._folder / name
        try:
            graph = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise BundleError(
                f"The bundle's file '{path}' is no ONNX graph that onnxruntime can load "
                f"({_first_line(error)}); "
                f"export the bundle again."
            ) from None
        if len(graph.get_inputs()) != 1 or len(graph.get_outputs()) != 1:
            raise BundleError(f"Expected one input and one output in '{path}', got others; export the bundle again.")
        return graph


class _Chain:
    """Groups and critics bound to buffers for one input shape, so that no tensor is copied between them.

    Serves one request at a time. `start` sets a batch; `logits(i)` runs only the groups not yet run for it.
    A graph's first run shows its output's shape; that output then stays as the buffer of all later runs.
    """

    def __init__(self, graphs: _Graphs, manifest: Manifest, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self._graphs = graphs
        self._manifest = manifest
        dtype = np.float32 if manifest.input_dtype == "float32" else np.int64
        self._values = [ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, "cpu")]  # input, hidden 1, ..
        self._groups: list[_Bound] = []
        self._critics: dict[int, _Bound] = {}
        self._passed = 0

    def start(self, x: NDArray[Any]) -> None:
        self._values[0].update_inplace(x)
        self._passed = 0

    def logits(self, exit: int) -> NDArray[np.float32]:
        """Return a copy of the logits of exit i, which the next request does not touch."""
        while self._passed < exit:
            if self._passed == len(self._groups):
                file = self._manifest.groups[self._passed]
                self._groups.append(_Bound(self._graphs, file.name, self._values[self._passed]))
                self._values.append(self._groups[-1].output)
            else:
                self._groups[self._passed].run()
            self._passed += 1
        if exit == self._manifest.num_groups:
            return np.array(self._values[exit].numpy())
        if exit in self._critics:
            self._critics[exit].run()
        else:
            self._critics[exit] = _Bound(self._graphs, self._manifest.critics[exit].name, self._values[exit])
        return np.array(self._critics[exit].output.numpy())


class _Bound:
    """One graph bound to the buffer it reads and the buffer it writes; making it is its first run."""

    def __init__(self, graphs: _Graphs, name: str, source: ort.OrtValue) -> None:
        self._name = name
        self._graph = graphs.load(name)
        self._binding = self._graph.io_binding()
        output = self._graph.get_outputs()[0].name
        try:
            self._binding.bind_ortvalue_input(self._graph.get_inputs()[0].name, source)
            self._binding.bind_output(output, "cpu")
        except Exception as error:
            raise _failed(name, error) from None
        self.run()
        self.output: ort.OrtValue = self._binding.get_outputs()[0]
        self._binding.bind_ortvalue_output(output, self.output)

    def run(self) -> None:
        try:
            self._graph.run_with_iobinding(self._binding)
        except Exception as error:
            raise _failed(self._name, error) from None


def _share_memory(options: ort.SessionOptions) -> None:
    """Let a graph work in the memory that the one before it left, still warm in cache, instead of a pool of its own.

    One pool for the process: less memory, and `stream` is a percent faster (benchmarks/overhead.py).
    """
    with contextlib.suppress(Exception):  # refused where the host program has registered one of its own: share that
        _register_pool()
    options.add_session_config_entry("session.use_env_allocators", "1")


@functools.cache
def _register_pool() -> None:
    cpu = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(cpu, None)


def _failed(name: str, error: Exception) -> BundleError:
    return BundleError(f"The bundle's graph '{name}' cannot run ({_first_line(error)}); export the bundle again.")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
