"""Earlywide: a residual network for early exits, which strides at once and is wide where maps are small."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from anytime_lct.errors import ModelError
from anytime_lct.models.options import expect_dropout, expect_image, expect_whole, expect_wholes
from anytime_lct.models.resnet import initialize, stage

NAME = "earlywide"
STRIDES, STEM_SIDE = (1, 2, 4, 8, 16), 32  # the map behind the stem has about this side


class EarlyWide(nn.Module):
    """Basic blocks on maps of half and a quarter of the stem's side, 2.5 and 5 times `width` wide.

    With images of 32x32 and a width of 16:

        x 3x32x32 -> stem 16x32x32 -> layer1 40x16x16 -> layer2 80x8x8, three blocks -> mean, logits (B, outputs)
    """

    def __init__(
        self, channels: int, outputs: int, width: int, blocks: tuple[int, ...], stride: int, dropout: float
    ) -> None:
        super().__init__()
        kernel = max(3, stride + 1)
        self.conv1 = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        half, quarter = math.ceil(2.5 * width), 5 * width
        self.layer1 = stage(width, half, blocks[0], stride=2)
        self.layer2 = stage(half, quarter, blocks[1], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.fc = nn.Linear(quarter, outputs)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        x = self.flatten(self.avgpool(x))
        return self.fc(x if self.dropout is None else self.dropout(x))


def earlywide(
    input_shape: tuple[int, ...],
    outputs: int,
    width: int = 16,
    blocks: Sequence[int] = (1, 3),
    stride: int | Literal["auto"] = "auto",
    dropout: float = 0.0,
) -> EarlyWide:
    """Make a residual network whose multiply-adds lie behind its first two strides, so that exits can be cheap.

    The default takes 26.3M multiply-adds for an image of 3x32x32: 2%, 22%, 44%, 72% of them up to the stem and the
    ends of the first three blocks. `blocks` are the blocks on maps of half and of a quarter of the stem's side. The
    stem is one convolution of `stride`, by default the power of 2 behind which the shorter side is nearest to 32.
    `dropout` acts on the input of the classifier. Raises ModelError.

    >>> earlywide((3, 224, 224), 10).conv1.stride
    (8, 8)
    """
    channels, *sides = expect_image(NAME, input_shape, smallest=4)
    expect_whole(NAME, "a width", width)
    parts = expect_wholes(NAME, "blocks", blocks, length=2)
    expect_dropout(NAME, dropout)
    if stride != "auto" and stride not in STRIDES:
        raise ModelError(f"Expected a stride of 1, 2, 4, 8, 16 or auto for the network '{NAME}', got {stride!r}.")
    step = min(STRIDES, key=lambda s: abs(math.log2(min(sides) / s / STEM_SIDE))) if stride == "auto" else stride
    return EarlyWide(channels, outputs, width, parts, step, dropout)
