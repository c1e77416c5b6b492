"""The grid of a multi-scale network: which block computes which layers at which scales, and how wide they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Prune = Literal["max", "min"]


@dataclass(frozen=True)
class Grid:
    """Which layers compute which scales, 0 the finest, and how many channels there are; layer 0 is the stem.

    `layers` are those of each block; `width`, `growth` and `bottleneck` have one number for each scale.
    """

    layers: tuple[int, ...]
    width: tuple[int, ...]
    growth: tuple[int, ...]
    bottleneck: tuple[int, ...]
    prune: Prune
    reduction: float

    @property
    def coarsest(self) -> int:
        return len(self.width) - 1

    @property
    def depth(self) -> int:
        return sum(self.layers)

    def last_layer(self, scale: int) -> int:
        """Return the last layer that has the scale: with prune max, the finest are dropped at even distances."""
        if self.prune == "min" or scale == self.coarsest:
            return self.depth
        return min(self.depth, (scale + 1) * math.ceil(self.depth / len(self.width)))

    def is_transition(self, layer: int) -> bool:
        """Return whether all channels are reduced behind a layer: where a scale has gone, or after each third."""
        if self.prune == "min":
            return layer in (self.depth // 3, 2 * self.depth // 3)
        return any(layer == self.last_layer(scale) + 1 for scale in range(self.coarsest))

    def front(self, block: int, scale: int) -> int:
        """Return the last layer of a scale that the first `block` blocks need for their exit."""
        return max(0, min(sum(self.layers[:block]) - (self.coarsest - scale), self.last_layer(scale)))

    def cells(self, block: int) -> list[tuple[int, int]]:
        """Return (layer, scale) of all that block 1, 2, .. computes, coarse scales before the fine ones they read."""
        return [
            (layer, scale)
            for layer in range(1, self.depth + 1)
            for scale in range(self.coarsest, -1, -1)
            if self.front(block - 1, scale) < layer <= self.front(block, scale)
        ]

    def reads_finer(self, layer: int, scale: int) -> bool:
        """Return whether a cell reads the next finer scale of the layer before."""
        return scale > 0 and layer - 1 <= self.last_layer(scale - 1)

    def channels(self, layer: int, scale: int) -> int:
        """Return the channels of a scale behind a layer."""
        count = self.width[scale]
        for each in range(1, layer + 1):
            count += self.growth[scale]
            count = max(1, int(self.reduction * count)) if self.is_transition(each) else count
        return count

    def crossing(self, block: int) -> dict[int, int]:
        """Return the scales that blocks after `block` (0: the stem) read, coarsest first, with their channels."""
        later = [cell for after in range(block, len(self.layers)) for cell in self.cells(after + 1)]
        read = {scale for _, scale in later} | {cell[1] - 1 for cell in later if self.reads_finer(*cell)}
        scales = sorted(read | {self.coarsest}, reverse=True)
        return {scale: self.channels(self.front(block, scale), scale) for scale in scales}
