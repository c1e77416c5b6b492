"""Residual critics of maps, sized to a budget: their blocks, their multiply-adds, and the module.

    map (C, H, W) -> [average pool] -> basic blocks of stride 2 down to 8x8, twice as wide each
                                    -> basic blocks of stride 1 -> average -> linear -> logits

The widths shrink together until the critic is within its budget; the last blocks, which cost least, get what is left.
Where the first block would be narrow, the critic has fewer blocks, or pools the map first. Where a budget leaves more
than the widths can use, it gets more blocks. A critic so built is a short imitation of the groups behind it (as in
Nokland and Eidnes 2019; Belilovsky et al. 2020). Signals are maps of width 1, whose kernels are 3x1, down to a height
of 64, as many positions as 8x8 has, and volumes (C, D, H, W) have 3-d kernels, down to 4x4x4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from torch import nn
from torchvision.models.resnet import BasicBlock

SIDE, SIGNAL_SIDE, VOLUME_SIDE = 8, 64, 4  # of the last map: 64 positions
BLOCKS, MOST_BLOCKS = 3, 6  # measured: benchmarks/results/levers.md
SMALLEST_CAP, LARGEST_CAP = 32, 256  # of a block's width, where the budget allows it
NARROW, STEP = 16, 8  # channels: pool first where the first block is narrower; widths are multiples of STEP
SCALES = 64


@dataclass(frozen=True)
class ResidualPlan:
    """The sizes of a critic that reads maps (B, channels, *sides); without blocks it pools and is linear."""

    channels: int
    sides: tuple[int, ...]
    outputs: int
    pool: int
    widths: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def is_signal(self) -> bool:
        """Whether the map is a signal, of width 1."""
        return len(self.sides) == 2 and self.sides[1] == 1 < self.sides[0]

    @property
    def side(self) -> int:
        """The side that decides how often blocks stride: the shortest one; of a signal its height."""
        return self.sides[0] if self.is_signal else min(self.sides)

    @property
    def last_side(self) -> int:
        """The largest side of the last map."""
        return SIGNAL_SIDE if self.is_signal else VOLUME_SIDE if len(self.sides) == 3 else SIDE

    @property
    def multiply_adds(self) -> int:
        """The multiply-adds per sample, as `counting` counts them."""
        total, channels = 0, self.channels
        sides = [max(1, side // self.pool) for side in self.sides]
        taps = 3 if self.is_signal else 3 ** len(sides)
        for inner, stride in zip(self.widths, self.strides, strict=True):
            sides = [math.ceil(side / stride) for side in sides]
            shortcut = channels * inner if _projects(channels, inner, stride) else 0
            total += math.prod(sides) * (taps * inner * (channels + inner) + shortcut)
            channels = inner
        return total + channels * self.outputs

    def build(self) -> nn.Sequential:
        """Make the critic."""
        is_volume = len(self.sides) == 3
        layers: list[nn.Module] = []
        if self.pool > 1 and is_volume:
            layers.append(nn.AvgPool3d(self.pool))
        elif self.pool > 1:
            layers.append(nn.AvgPool2d((self.pool, 1) if self.is_signal else self.pool))
        channels = self.channels
        for inner, stride in zip(self.widths, self.strides, strict=True):
            layers.append(self._block(channels, inner, stride))
            channels = inner
        average = nn.AdaptiveAvgPool3d(1) if is_volume else nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(*layers, average, nn.Flatten(), nn.Linear(channels, self.outputs))

    def _block(self, channels: int, inner: int, stride: int) -> BasicBlock:
        is_volume = len(self.sides) == 3
        convolution, norm = (nn.Conv3d, nn.BatchNorm3d) if is_volume else (nn.Conv2d, nn.BatchNorm2d)
        shortcut = None
        if _projects(channels, inner, stride):
            shortcut = nn.Sequential(convolution(channels, inner, 1, stride, bias=False), norm(inner))
        block: Any = BasicBlock(channels, inner, stride, shortcut, norm_layer=norm)
        if self.is_signal:
            block.conv1 = nn.Conv2d(channels, inner, (3, 1), (stride, 1), (1, 0), bias=False)
            block.conv2 = nn.Conv2d(inner, inner, (3, 1), padding=(1, 0), bias=False)
        if is_volume:
            block.conv1 = nn.Conv3d(channels, inner, 3, stride, 1, bias=False)
            block.conv2 = nn.Conv3d(inner, inner, 3, 1, 1, bias=False)
        return block


def plan(shape: tuple[int, ...], outputs: int, depth: int | None = None, budget: float | None = None) -> ResidualPlan:
    """Size the critic of maps (C, H, W) or volumes (C, D, H, W) to a `budget` of multiply-adds per sample.

    It has `depth` blocks, by default 3 and up to 6 where the budget allows, and more where 8x8 needs more strides.
    Without a budget its widths are the largest. Where nothing else is cheap enough it averages the map and is linear.

    >>> plan((16, 32, 32), outputs=10, budget=6e6).widths
    (24, 64)
    """
    channels, *sides = shape
    linear = ResidualPlan(channels, tuple(sides), outputs, 1, (), ())
    narrow = linear
    for pool, blocks in product((1, 2, 4, 8), (depth,) if depth else range(BLOCKS, 0, -1)):
        if pool > 1 and linear.side < pool * linear.last_side:
            break
        largest = _largest(linear, pool, blocks)
        if budget is None:
            return largest
        if largest.multiply_adds <= budget:
            return largest if depth else _deeper(largest, budget)
        fitted = _fitted(largest, budget)
        if fitted is not None and fitted.widths[0] >= min(NARROW, largest.widths[0]):
            return fitted
        narrow = fitted or narrow
    return narrow


def _largest(linear: ResidualPlan, pool: int, blocks: int) -> ResidualPlan:
    widths, strides, channels = list[int](), list[int](), linear.channels
    side = linear.side // pool
    while side > linear.last_side or len(widths) < blocks:
        stride = 2 if side > linear.last_side else 1
        channels = min(LARGEST_CAP, max(SMALLEST_CAP, stride * channels))
        widths.append(channels)
        strides.append(stride)
        side = math.ceil(side / stride)
    return replace(linear, pool=pool, widths=tuple(widths), strides=tuple(strides))


def _deeper(critic: ResidualPlan, budget: float) -> ResidualPlan:
    while len(critic.widths) < MOST_BLOCKS:
        longer = replace(critic, widths=(*critic.widths, critic.widths[-1]), strides=(*critic.strides, 1))
        if longer.multiply_adds > budget:
            break
        critic = longer
    return critic


def _fitted(largest: ResidualPlan, budget: float) -> ResidualPlan | None:
    """Return the widest plan within the budget, None where there is none."""
    scaled = (
        replace(largest, widths=tuple(max(STEP, width * scale // SCALES // STEP * STEP) for width in largest.widths))
        for scale in range(SCALES, -1, -1)
    )
    fitted = next((critic for critic in scaled if critic.multiply_adds <= budget), None)
    if fitted is None:
        return None
    for block in reversed(range(len(fitted.widths))):
        for width in range(largest.widths[block], fitted.widths[block], -STEP):
            wider = replace(fitted, widths=(*fitted.widths[:block], width, *fitted.widths[block + 1 :]))
            if wider.multiply_adds <= budget:
                fitted = wider
                break
    return fitted


def _projects(channels: int, inner: int, stride: int) -> bool:
    return stride > 1 or channels != inner
