"""Memory of a training process: what is freed is kept for the next step, and the peak is told.

Training frees its activations and asks for the very same ones a step later. glibc hands blocks of over 32 MiB, and the
free end of the heap, back to the system at once, which then clears every page anew: on CPUs, an eighth of the time of
a training step of a ResNet-50 (benchmarks/workers.py measures with it).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import sys
from pathlib import Path

import torch

from anytime_lct import disk
from anytime_lct.errors import CheckpointError
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.training.processes.team import Team

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


STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Counts from when it is made, so that the interpreter, its libraries and the data are left out.

    On a CPU what was freed until then is given back to the system first, or else it would be used again for nothing,
    and the system's own peak begins anew.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
                trim(0)
            with contextlib.suppress(OSError):  # a system that does not let: its peak is of the whole process
                RESET.write_text("5", encoding="ascii")
            self._before = _resident("VmRSS")

    def bytes(self) -> int:
        """Return the peak in bytes: torch's allocator on a GPU, else resident; 0 where the system does not say."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return max(0, _resident("VmHWM") - self._before)


def write_peaks(path: Path, memory: PeakMemory, team: Team) -> None:
    """Write the peaks of all processes, by rank, into RUN/memory.json; every process calls this alike."""
    peaks = torch.zeros(team.size, dtype=torch.float64)
    peaks[team.rank] = memory.bytes()
    peaks = team.sum(peaks)
    if team.leads:
        told = {"peak_bytes": [int(peak) for peak in peaks.tolist()]}
        disk.write(path / run_folder.MEMORY, json.dumps(told), CheckpointError, "make room and use --resume")


def _resident(field: str) -> int:
    """Return bytes of this process: VmRSS, resident now, or VmHWM, the most since it began."""
    lines = STATUS.read_text(encoding="utf-8").splitlines() if STATUS.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)
