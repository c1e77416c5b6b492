"""Memory of a training process: freed blocks are kept for the next step, and the peak is measured.

Training frees its activations and allocates equal ones a step later. glibc returns blocks of over 32 MiB, and the free
end of the heap, to the system at once, which then has to clear every page again: on CPUs, an eighth of the time of a
training step of a ResNet-50 (benchmarks/workers.py measures with it).
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
    """Make glibc keep freed memory for the next allocation; return whether it agreed.

    The process then holds its peak of memory until it ends. On systems with another C library nothing changes.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(MMAP_MAX, 0)) and bool(mallopt(TRIM_THRESHOLD, -1))


STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """The peak of memory since this object was made, without the interpreter, its libraries and the data.

    On a CPU, freed memory is first returned to the system, because training would reuse it without being counted, and
    the peak that the system records is reset.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._baseline = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
                trim(0)
            with contextlib.suppress(OSError):  # without permission, the peak is that of the whole process
                RESET.write_text("5", encoding="ascii")
            self._baseline = _resident("VmRSS")

    def bytes(self) -> int:
        """Return the peak in bytes: torch's allocator on a GPU, else resident memory; 0 where it is not known."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return max(0, _resident("VmHWM") - self._baseline)


def write_peaks(path: Path, memory: PeakMemory, team: Team) -> None:
    """Write the peaks of all processes, by rank, into RUN/memory.json; every process calls this alike."""
    peaks = torch.zeros(team.size, dtype=torch.float64)
    peaks[team.rank] = memory.bytes()
    peaks = team.sum(peaks)
    if team.leads:
        record = {"peak_bytes": [int(peak) for peak in peaks.tolist()]}
        disk.write(path / run_folder.MEMORY, json.dumps(record), CheckpointError, "make room and use --resume")


def _resident(field: str) -> int:
    """Return bytes of this process: VmRSS, resident now, or VmHWM, the most since it started."""
    lines = STATUS.read_text(encoding="utf-8").splitlines() if STATUS.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)
