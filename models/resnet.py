"""Residual networks: the small CIFAR family of He et al. (2016), and bottleneck networks with either stem."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from anytime_lct.errors import ModelError
from anytime_lct.models.options import expect_dropout, expect_image

BOTTLENECKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 182: (3, 8, 46, 3)}
CIFAR_STEM_BELOW = 64


class SmallResNet(nn.Module):
    """Three stages of basic blocks, 1, 2 and 4 times `width` wide: (B, C, H, W) to logits (B, outputs)."""

    def __init__(self, channels: int, outputs: int, depth: int, width: int, dropout: float) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = stage(width, width, blocks, stride=1)
        self.layer2 = stage(width, 2 * width, blocks, stride=2)
        self.layer3 = stage(2 * width, 4 * width, blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.fc = nn.Linear(4 * width, outputs)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.flatten(self.avgpool(x))
        return self.fc(x if self.dropout is None else self.dropout(x))


def small(
    input_shape: tuple[int, ...], outputs: int, depth: int = 20, width: int = 16, dropout: float = 0.0
) -> SmallResNet:
    """Make a residual network of 6n+2 layers for small images; 1x1 projections where the shape changes.

    `dropout` acts on the input of the classifier.
    """
    channels, _, _ = expect_image("resnet", input_shape, smallest=4)
    if not isinstance(depth, int) or depth < 8 or (depth - 2) % 6:
        raise ModelError(f"Expected a depth of 6n+2 layers (8, 14, 20, 32, 56 ..) for 'resnet', got {depth!r}.")
    if not isinstance(width, int) or width < 1:
        raise ModelError(f"Expected a width of at least 1 for 'resnet', got {width!r}.")
    expect_dropout("resnet", dropout)
    return SmallResNet(channels, outputs, depth, width, dropout)


def bottleneck(
    input_shape: tuple[int, ...],
    outputs: int,
    depth: int = 50,
    stem: Literal["auto", "cifar", "imagenet"] = "auto",
) -> ResNet:
    """Make torchvision's bottleneck ResNet of 50, 101, 152 or 182 layers, (B, C, H, W) to (B, outputs).

    With the ImageNet stem it is torchvision's own network, so that its weights load. The CIFAR stem (images below
    64x64) is a 3x3 convolution of stride 1 without max-pool, and the last map is flattened into the classifier, which
    follows from the parameter counts of Table VIII.
    """
    channels, height, width = expect_image(f"resnet{depth}", input_shape, smallest=32 if stem == "imagenet" else 8)
    if stem not in ("auto", "cifar", "imagenet"):
        raise ModelError(f"Expected the stem cifar, imagenet or auto for 'resnet{depth}', got {stem!r}.")
    network = ResNet(Bottleneck, list(BOTTLENECKS[depth]), num_classes=outputs)
    if stem == "imagenet" or (stem == "auto" and min(height, width) >= CIFAR_STEM_BELOW):
        if channels != 3:
            network.conv1 = _he(nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False))
        return network
    network.conv1 = _he(nn.Conv2d(channels, 64, 3, padding=1, bias=False))
    network.maxpool = nn.Identity()  # type: ignore[assignment]
    network.avgpool = nn.Identity()  # type: ignore[assignment]
    network.fc = nn.Linear(2048 * _eighth(height) * _eighth(width), outputs)
    return network


def stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    """Make basic blocks in a row, (B, inputs, H, W) to (B, outputs, H / stride, W / stride); the first strides."""
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    return nn.Sequential(
        BasicBlock(inputs, outputs, stride, shortcut),
        *(BasicBlock(outputs, outputs) for _ in range(blocks - 1)),
    )


def initialize(network: nn.Module) -> None:
    """Draw the weights of all convolutions for ReLU units (He et al., 2015), from torch's random state."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            _he(module)


def _he(convolution: nn.Conv2d) -> nn.Conv2d:
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


def _eighth(size: int) -> int:
    """Return the size of a map after three strides of 2."""
    for _ in range(3):
        size = (size + 1) // 2
    return size
