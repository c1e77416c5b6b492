"""Residual critics of maps, sized to a budget: their blocks, their multiply-adds, and the module.

    map (C, H, W) -> [average pool] -> basic blocks of stride 2 down to 8x8, twice as wide each
                                    -> basic blocks of stride 1 -> average -> linear -> logits

The widths shrink together until the critic is within its budget; the last blocks, which cost least, get what is left.
Where the first block would be narrow, the critic has fewer blocks, or pools the map first. Where a budget leaves more
than the widths can use, it gets more blocks. A critic so built is a short imitation of the groups behind it (as in
Nokland and Eidnes 2019; Belilovsky et al. 2020). Signals are maps of width 1, whose kernels are 3x1, down to a height
of 64, as many positions as 8x8 has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product

from torch import nn
from torchvision.models.resnet import BasicBlock

SIDE = 8  # of the last map
BLOCKS, MOST_BLOCKS = 3, 6  # measured: benchmarks/results/levers.md
SMALLEST_CAP, LARGEST_CAP = 32, 256  # of a block's width, where the budget allows it
NARROW, STEP = 16, 8  # channels: pool first where the first block is narrower; widths are multiples of STEP
SCALES = 64


@dataclass(frozen=True)
class ResidualPlan:
    """The sizes of a critic that reads maps (B, channels, height, width); without blocks it pools and is linear."""

    channels: int
    height: int
    width: int
    outputs: int
    pool: int
    widths: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def is_signal(self) -> bool:
        """Whether the map is a signal, of width 1."""
        return self.width == 1 < self.height

    @property
    def side(self) -> int:
        """The side that decides how often blocks stride: the shorter one; of a signal its height."""
        return self.height if self.is_signal else min(self.height, self.width)

    @property
    def last_side(self) -> int:
        """The largest side of the last map."""
        return SIDE * SIDE if self.is_signal else SIDE

    @property
    def multiply_adds(self) -> int:
        """The multiply-adds per sample, as `counting` counts them."""
        total, channels = 0, self.channels
        height, width = self.height // self.pool, max(1, self.width // self.pool)
        taps = 3 if self.is_signal else 9
        for inner, stride in zip(self.widths, self.strides, strict=True):
            height, width = math.ceil(height / stride), math.ceil(width / stride)
            shortcut = channels * inner if _projects(channels, inner, stride) else 0
            total += height * width * (taps * inner * (channels + inner) + shortcut)
            channels = inner
        return total + channels * self.outputs

    def build(self) -> nn.Sequential:
        """Make the critic."""
        pool = (self.pool, 1) if self.is_signal else self.pool
        layers: list[nn.Module] = [nn.AvgPool2d(pool)] if self.pool > 1 else []
        channels = self.channels
        for inner, stride in zip(self.widths, self.strides, strict=True):
            shortcut = None
            if _projects(channels, inner, stride):
                shortcut = nn.Sequential(nn.Conv2d(channels, inner, 1, stride, bias=False), nn.BatchNorm2d(inner))
            block = BasicBlock(channels, inner, stride, shortcut)
            if self.is_signal:
                block.conv1 = nn.Conv2d(channels, inner, (3, 1), (stride, 1), (1, 0), bias=False)
                block.conv2 = nn.Conv2d(inner, inner, (3, 1), padding=(1, 0), bias=False)
            layers.append(block)
            channels = inner
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, self.outputs))


def plan(
    shape: tuple[int, int, int], outputs: int, depth: int | None = None, budget: float | None = None
) -> ResidualPlan:
    """Size the critic of maps of a `shape` (C, H, W) to a `budget` of multiply-adds per sample.

    It has `depth` blocks, by default 3 and up to 6 where the budget allows, and more where 8x8 needs more strides.
    Without a budget its widths are the largest. Where nothing else is cheap enough it averages the map and is linear.

    >>> plan((16, 32, 32), outputs=10, budget=6e6).widths
    (24, 64)
    """
    channels, height, width = shape
    linear = ResidualPlan(channels, height, width, outputs, 1, (), ())
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
