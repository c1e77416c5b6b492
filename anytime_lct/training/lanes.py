"""Lanes of a GPU, one for each layer group: what a group has left to do runs beside the work of the next one.

    lane 1   | F c B             c_1 |        F forward, c the critic, B backward and step, c_1 the critic's step
    lane 2      | F c B         c_2 |
    lane 3         | F c B     c_3 |          as four workers would, on one device: a small group fills no GPU
    lane 4            | F B       |

A lane is a stream, which keeps the memory that it frees: together, lanes hold the activations of all groups. There are
lanes only where that is little.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

MEASURED = 2  # steps without lanes, whose peak of memory decides
SHARE = 1 / 16  # of the GPU's memory that all lanes may hold


class Lanes:
    """Up to `count` lanes on a device; without any, all work is on the caller's stream, in order."""

    def __init__(self, device: torch.device, count: int) -> None:
        self._device, self._count = device, count if device.type == "cuda" else 0
        self._streams: list[torch.cuda.Stream] = []
        self._steps = 0

    def fork(self) -> None:
        """Let lanes start from the work that is on the caller's stream; before the third step, decide on them."""
        if self._count > 1 and self._steps == MEASURED:
            peak = self._count * torch.cuda.max_memory_allocated(self._device)
            if peak < SHARE * torch.cuda.get_device_properties(self._device).total_memory:
                self._streams = [torch.cuda.Stream(self._device) for _ in range(self._count)]
        self._steps += 1
        for stream in self._streams:
            stream.wait_stream(torch.cuda.current_stream(self._device))

    def on(self, lane: int) -> AbstractContextManager[object]:
        """Return a block whose work is on a lane."""
        return torch.cuda.stream(self._streams[lane]) if self._streams else nullcontext()

    def hand(self, tensor: Tensor, source: int, target: int) -> None:
        """Let lane `target` go on when the work that is on lane `source` by now is done, with a tensor of it."""
        if 0 <= target < len(self._streams):
            self._streams[target].wait_stream(self._streams[source])
            tensor.record_stream(self._streams[target])

    def join(self) -> None:
        """Let the caller's stream go on when all lanes are done."""
        for stream in self._streams:
            torch.cuda.current_stream(self._device).wait_stream(stream)
