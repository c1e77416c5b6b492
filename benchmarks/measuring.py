"""What the benchmarks share: alternated timing with medians of ratios, saved bytes, and how results are written."""

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
    """Time calls in turns; return, for each, the median seconds and the median ratio to the first of its round."""
    for _ in range(warmup):
        for call in calls:
            call()
    seconds = []
    for number in range(rounds):
        times = [0.0] * len(calls)
        order = range(len(calls)) if number % 2 == 0 else reversed(range(len(calls)))
        for k in order:
            start = time.perf_counter()
            calls[k]()
            times[k] = time.perf_counter() - start
        seconds.append(times)
    summaries = []
    for k in range(len(calls)):
        of_rounds = [times[k] / times[0] for times in seconds]
        low, _, high = statistics.quantiles(of_rounds, n=4)
        summaries.append(
            {
                "median_seconds": statistics.median(times[k] for times in seconds),
                "median_ratio": statistics.median(of_rounds),
                "quartiles": [low, high],
            }
        )
    return summaries


class SavedBytes:
    """Count the bytes of activations that are saved for backward at once, each storage once; weights left out."""

    def __init__(self, module: nn.Module) -> None:
        self._weights = {value.untyped_storage().data_ptr() for value in [*module.parameters(), *module.buffers()]}
        self._holders: Counter[int] = Counter()
        self.now = self.peak = 0

    def __enter__(self) -> SavedBytes:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda held: held.tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *reason: Any) -> None:
        self._hooks.__exit__(*reason)

    def _pack(self, tensor: Tensor) -> _Held:
        held = _Held(tensor)
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key not in self._weights:
            if not self._holders[key]:
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
            self._holders[key] += 1
            weakref.finalize(held, self._release, key, storage.nbytes())
        return held

    def _release(self, key: int, size: int) -> None:
        self._holders[key] -= 1
        if not self._holders[key]:
            self.now -= size


class _Held:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def write(name: str, result: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write a result with the machine and versions it was measured on."""
    packages = ("torch", "torchvision", "onnxruntime", "numpy")
    where = {
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**result, "measured_on": where}, indent=1) + "\n", encoding="utf-8")
    return path
