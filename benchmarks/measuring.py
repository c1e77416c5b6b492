"""Shared by the benchmarks: alternated timing with medians of ratios, saved bytes, and writing of results."""

from __future__ import annotations

import json
import platform
import statistics
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anytime_lct.stopwatch import machine

RESULTS = Path(__file__).parent / "results"


def ratios(calls: Sequence[Callable[[], object]], rounds: int, warmup: int = 3) -> list[dict[str, float]]:
    """Time calls in alternation; return for each the median seconds and the median ratio to the first of its round."""
    for _ in range(warmup):
        for call in calls:
            call()
    seconds = []
    for index in range(rounds):
        times = [0.0] * len(calls)
        order = range(len(calls)) if index % 2 == 0 else reversed(range(len(calls)))
        for k in order:
            start = time.perf_counter()
            calls[k]()
            times[k] = time.perf_counter() - start
        seconds.append(times)
    summaries = []
    for k in range(len(calls)):
        round_ratios = [times[k] / times[0] for times in seconds]
        low, _, high = statistics.quantiles(round_ratios, n=4)
        summaries.append(
            {
                "median_seconds": statistics.median(times[k] for times in seconds),
                "median_ratio": statistics.median(round_ratios),
                "quartiles": [low, high],
            }
        )
    return summaries


class SavedBytes:
    """Count the bytes of activations saved for backward, now and at the peak, each storage once; no weights."""

    def __init__(self, module: nn.Module) -> None:
        self._weights = {value.untyped_storage().data_ptr() for value in [*module.parameters(), *module.buffers()]}
        self._holders: Counter[int] = Counter()
        self.now = self.peak = 0

    def __enter__(self) -> SavedBytes:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda saved: saved.tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *reason: Any) -> None:
        self._hooks.__exit__(*reason)

    def _pack(self, tensor: Tensor) -> _Saved:
        saved = _Saved(tensor)
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key not in self._weights:
            if not self._holders[key]:
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
            self._holders[key] += 1
            weakref.finalize(saved, self._release, key, storage.nbytes())
        return saved

    def _release(self, key: int, size: int) -> None:
        self._holders[key] -= 1
        if not self._holders[key]:
            self.now -= size


class _Saved:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def write(name: str, result: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write a result with the machine and the versions that it was measured with; return the path."""
    packages = ("torch", "torchvision", "onnxruntime", "numpy")
    environment = {
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**result, "measured_on": environment}, indent=1) + "\n", encoding="utf-8")
    return path
