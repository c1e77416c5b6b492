"""Keep freed memory within the process, where glibc would give it back to the system after every step.

Training frees its activations and asks for the very same ones a step later. glibc hands blocks of over 32 MiB, and the
free end of the heap, back to the system at once, which then clears every page anew: on CPUs, an eighth of the time of
a training step of a ResNet-50 (benchmarks/workers.py measures with it).
"""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # parameters of mallopt(3)


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed for the next request; return whether it took it.

    The process then holds its peak of memory to its end. On systems with another C library nothing changes.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(MMAP_MAX, 0)) and bool(mallopt(TRIM_THRESHOLD, -1))
