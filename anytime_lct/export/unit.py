"""The first and the last layer of what is exported: inputs and numbers are in the unit of the data there."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FromUnit(nn.Module):
    """Turns arrays (B, ..) as the data has them into network inputs: less `mean`, divided by `std` (`Facts`)."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class InUnit(nn.Module):
    """Turns the outputs (B, K) of a network of numbers into the unit of the data (`Facts`)."""

    centers: Tensor

    def __init__(self, centers: tuple[float, ...], scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("centers", torch.tensor(centers))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.centers
