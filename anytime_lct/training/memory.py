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


STATUS, RESET, MACHINE = Path("/proc/self/status"), Path("/proc/self/clear_refs"), Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")  # the memory of a container: limit, use, and the part of that which is only cached
CONTAINER = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def available(device: torch.device) -> int | None:
    """Return the bytes that are free on a device, in a container at most those that it may use; None where unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu" or not MACHINE.exists():
        return None
    amounts = [_field(MACHINE, "MemAvailable:") * 1024]
    for limit, use, statistics, cached in CONTAINER:
        with contextlib.suppress(OSError, ValueError):  # another kind of container, or no limit
            most, used = (int((CGROUP / name).read_text(encoding="ascii")) for name in (limit, use))
            amounts.append(most - used + _field(CGROUP / statistics, cached))
    return max(0, min(amounts))


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
    return _field(STATUS, f"{field}:") * 1024 if STATUS.exists() else 0


def _field(path: Path, name: str) -> int:
    """Return the number behind a name in one of the system's files of statistics; 0 where it is not there."""
    lines = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return next((int(words[1]) for words in lines if words[:1] == [name]), 0)
