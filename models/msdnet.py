"""Multi-scale dense networks with an exit behind every block (Huang et al., ICLR 2018).

Every layer adds features at several scales. At a scale they come from the same scale and, strided, from the next finer
one, and are concatenated with all features before; a classifier reads the coarsest scale alone. What it needs of layer
n is therefore a diagonal of the grid, and a block computes just that (the paper's lazy evaluation):

    layer   0   1   2   3   4   5             block 1 ends at layer 3, block 2 at layer 5:
    fine    .   1   2   2                     exit 1 needs the fine scale up to layer 1
    middle  .   1   1   2   2                 and the middle one up to layer 2
    coarse  .   1   1   1   2   2  -> logits

So all that a block computes is part of its own exit, and all its weights learn from the critic behind it.
One tensor crosses from block to block: finer maps are folded into channels at the coarsest side and concatenated,

    16x32x32, 32x16x16, 64x8x8  ->  (64 + 4 * 32 + 16 * 16)x8x8, the coarsest scale first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytime_lct.errors import ModelError
from anytime_lct.models.grid import Grid, Prune
from anytime_lct.models.options import expect_image, expect_wholes
from anytime_lct.models.resnet import initialize

LARGE_FROM, HEAD_WIDTH = 64, 128


def fold(maps: Mapping[int, Tensor]) -> Tensor:
    """Make one tensor of the maps of several scales, coarsest first: (B, channels of all, H, W) of the coarsest.

    >>> fold({1: torch.zeros(2, 5, 4, 4), 0: torch.zeros(2, 3, 8, 8)}).shape
    torch.Size([2, 17, 4, 4])
    """
    ratios = [2 ** (max(maps) - scale) for scale in maps]
    parts = [F.pixel_unshuffle(x, ratio) if ratio > 1 else x for x, ratio in zip(maps.values(), ratios, strict=True)]
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def unfold(x: Tensor, channels: Mapping[int, int]) -> dict[int, Tensor]:
    """Return the maps that `fold` made one tensor of, by scale; `channels` are theirs, in the same order."""
    if len(channels) == 1:
        return dict.fromkeys(channels, x)
    maps, start = dict[int, Tensor](), 0
    for scale, count in channels.items():
        ratio = 2 ** (max(channels) - scale)
        end = start + count * ratio**2
        maps[scale] = F.pixel_shuffle(x[:, start:end], ratio) if ratio > 1 else x[:, start:end]
        start = end
    return maps


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Make a convolution with batch norm and ReLU, to maps of the input's side / stride."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _bottleneck(inputs: int, outputs: int, factor: int, stride: int = 1) -> nn.Sequential:
    """Make a 1x1 convolution to at most `factor` times the outputs, and a 3x3 convolution behind it."""
    inner = min(inputs, factor * outputs)
    return nn.Sequential(*_convolution(inputs, inner, 1), *_convolution(inner, outputs, 3, stride))


class ScaleStem(nn.Module):
    """Layer 0: the image at every scale, each made of the next finer one; (B, C, H, W) to a folded tensor."""

    def __init__(self, grid: Grid, channels: int, large: bool) -> None:
        super().__init__()
        first = _convolution(channels, grid.width[0], 7 if large else 3, 2 if large else 1)
        if large:
            first.append(nn.MaxPool2d(3, stride=2, padding=1))
        coarser = (_convolution(fine, coarse, 3, stride=2) for fine, coarse in pairwise(grid.width))
        self.scales = nn.ModuleList([first, *coarser])
        self.crossing = grid.crossing(0)

    def forward(self, x: Tensor) -> Tensor:
        maps: dict[int, Tensor] = {}
        for scale, convolution in enumerate(self.scales):
            maps[scale] = x = convolution(x)
        return fold({scale: maps[scale] for scale in self.crossing})


class ScaleCell(nn.Module):
    """One layer at one scale: new features of the scale and of the next finer one, behind those that there are."""

    def __init__(self, grid: Grid, layer: int, scale: int) -> None:
        super().__init__()
        inputs, growth = grid.channels(layer - 1, scale), grid.growth[scale]
        strided = growth // 2 if grid.reads_finer(layer, scale) else 0
        self.own = _bottleneck(inputs, growth - strided, grid.bottleneck[scale])
        self.finer = self.transition = None
        if strided:
            finer = grid.channels(layer - 1, scale - 1)
            self.finer = _bottleneck(finer, strided, grid.bottleneck[scale - 1], stride=2)
        if grid.is_transition(layer):
            self.transition = _convolution(inputs + growth, grid.channels(layer, scale), 1)

    def forward(self, x: Tensor, finer: Tensor | None) -> Tensor:
        features = [x, self.own(x)] if self.finer is None else [x, self.finer(finer), self.own(x)]
        x = torch.cat(features, dim=1)
        return x if self.transition is None else self.transition(x)


class ScaleBlock(nn.Module):
    """The cells from one exit to the next, folded tensor to folded tensor."""

    def __init__(self, grid: Grid, block: int) -> None:
        super().__init__()
        order = grid.cells(block)
        self.scales = [scale for _, scale in order]
        self.cells = nn.ModuleDict(
            {f"layer{layer}_scale{scale}": ScaleCell(grid, layer, scale) for layer, scale in order}
        )
        self.entering, self.crossing = grid.crossing(block - 1), grid.crossing(block)

    def forward(self, x: Tensor) -> Tensor:
        maps = unfold(x, self.entering)
        for scale, cell in zip(self.scales, self.cells.values(), strict=True):
            maps[scale] = cell(maps[scale], maps.get(scale - 1))
        return fold({scale: maps[scale] for scale in self.crossing})


class ScaleExit(nn.Module):
    """A classifier of the coarsest scale, the first channels of a folded tensor: (B, folded, H, W) to logits (B, K)."""

    def __init__(self, crossing: Mapping[int, int], width: int, outputs: int) -> None:
        super().__init__()
        channels = crossing[max(crossing)]
        self.channels = channels if len(crossing) > 1 else None
        self.convolutions = nn.Sequential(
            *_convolution(channels, width, 3, stride=2), *_convolution(width, width, 3, stride=2)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(width, outputs)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        coarsest = x if self.channels is None else x[:, : self.channels]
        return self.fc(self.flatten(self.pool(self.convolutions(coarsest))))


class MSDNet(nn.Module):
    """Blocks of multi-scale dense layers, (B, C, H, W) to logits (B, outputs) of the last classifier.

    It is cut after its `exit_places`, and `exit_head` makes the classifiers behind the cuts.
    """

    def __init__(self, grid: Grid, channels: int, outputs: int, large: bool) -> None:
        super().__init__()
        self.grid, self.outputs, self.large = grid, outputs, large
        blocks = range(1, len(grid.layers) + 1)
        self.stem = ScaleStem(grid, channels, large)
        self.blocks = nn.Sequential(*(ScaleBlock(grid, block) for block in blocks))
        initialize(self)
        self.exit_places = tuple(f"blocks.{block - 1}" for block in blocks[:-1])
        self.classifier = self._classifier(len(blocks))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.stem(x)))

    def exit_head(self, place: str) -> nn.Module:
        """Return a new classifier that reads what crosses the cut after `place`, one of `exit_places`.

        >>> msdnet((3, 32, 32), 10).exit_head("blocks.0")(torch.zeros(2, 472, 8, 8)).shape
        torch.Size([2, 10])
        """
        if place not in self.exit_places:
            raise ModelError(
                f"The network 'msdnet' has no exit after '{place}'; cut after {', '.join(self.exit_places) or 'none'}."
            )
        return self._classifier(self.exit_places.index(place) + 1)

    def _classifier(self, block: int) -> ScaleExit:
        crossing = self.grid.crossing(block)
        return ScaleExit(crossing, crossing[self.grid.coarsest] if self.large else HEAD_WIDTH, self.outputs)


def msdnet(
    input_shape: tuple[int, ...],
    outputs: int,
    layers: Sequence[int] = (1, 2, 3, 4),
    width: Sequence[int] = (16, 32, 64),
    growth: Sequence[int] = (6, 12, 24),
    bottleneck: Sequence[int] = (1, 2, 4),
    prune: Prune = "max",
    reduction: float = 0.5,
) -> MSDNet:
    """Make a multi-scale dense network of the paper's sizes for CIFAR, with an exit behind each of its blocks.

    `layers` are the layers of every block. The other lists have one number for each scale, finest first: the channels
    of the stem, those that a layer adds, and how many times as wide its 1x1 convolutions may be. With `prune` max the
    finest scale is dropped after every third of the layers (with three scales) and all channels are multiplied by
    `reduction`; with min scales live as long as an exit reads them, and channels are reduced after each third of the
    layers. Images of 64x64 and more get the stem for ImageNet, which strides by 4, and classifiers as wide as what they
    read. Raises ModelError.
    """
    depths = expect_wholes("msdnet", "layers", layers)
    widths = expect_wholes("msdnet", "width", width)
    growths = expect_wholes("msdnet", "growth", growth, len(widths), smallest=2)
    bottlenecks = expect_wholes("msdnet", "bottleneck", bottleneck, len(widths))
    if prune not in get_args(Prune):
        raise ModelError(f"Expected prune max or min for the network 'msdnet', got {prune!r}.")
    if not isinstance(reduction, int | float) or not 0 < reduction <= 1:
        raise ModelError(f"Expected a reduction above 0 up to 1 for the network 'msdnet', got {reduction!r}.")
    grid = Grid(depths, widths, growths, bottlenecks, prune, reduction)
    channels, *sides = expect_image("msdnet", input_shape, smallest=1)
    large = min(sides) >= LARGE_FROM
    step = (4 if large else 1) * 2**grid.coarsest
    if any(side % step for side in sides):
        near = [max(step, step * round(side / step)) for side in sides]
        raise ModelError(
            f"The network 'msdnet' with {len(widths)} scales needs images whose sides divide by {step}, but the data "
            f"has {sides[0]}x{sides[1]}; resize them (of images in a folder: --set data.image_size={near}), or give "
            f"model.width, model.growth and model.bottleneck fewer numbers."
        )
    return MSDNet(grid, channels, outputs, large)


def msdnet_imagenet(
    input_shape: tuple[int, ...],
    outputs: int,
    layers: Sequence[int] = (4, 4, 4, 4, 4),
    width: Sequence[int] = (32, 64, 128, 128),
    growth: Sequence[int] = (16, 32, 64, 64),
    bottleneck: Sequence[int] = (1, 2, 4, 4),
    prune: Prune = "max",
    reduction: float = 0.5,
) -> MSDNet:
    """Make a multi-scale dense network of the paper's sizes for ImageNet; see `msdnet`."""
    return msdnet(input_shape, outputs, layers, width, growth, bottleneck, prune, reduction)
