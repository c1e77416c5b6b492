"""Measured time of torch modules on one thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from anytime_lct.stopwatch import REPEATS, machine, median_seconds

__all__ = ["machine", "median_latencies"]


def median_latencies(calls: Sequence[Callable[[], object]], repeats: int = REPEATS) -> list[float]:
    """Return the median seconds of each call on one torch thread; the number of threads is put back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return median_seconds(calls, repeats)
    finally:
        torch.set_num_threads(threads)
