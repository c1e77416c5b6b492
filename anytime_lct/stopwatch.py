"""Measured times of computations on this machine's processor."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

WARMUP, REPEATS, SECONDS = 3, 30, 1.5


def median_seconds(calls: Sequence[Callable[[], object]], repeats: int = REPEATS) -> list[float]:
    """Return the median seconds of each call; the calls take turns, so that a busy moment slows all of them.

    Slow calls are repeated less often, at least three times: measuring takes about 1.5 seconds per call.
    """
    for _ in range(WARMUP - 1):
        for call in calls:
            call()
    slowest = max(_seconds(call) for call in calls)
    rounds = max(3, min(repeats, int(SECONDS / max(slowest, 1e-6))))
    seconds = [[_seconds(call) for call in calls] for _ in range(rounds)]
    return [statistics.median(times) for times in zip(*seconds, strict=True)]


def machine() -> str:
    """Describe the processor in a few words.

    >>> machine()
    'AMD EPYC 7B13, 2 cores'
    """
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {os.cpu_count()} cores"


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
