"""The last layer of what is exported of a network that answers numbers: their unit in the data."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class InUnit(nn.Module):
    """Turns the outputs (B, K) of a network of numbers into the unit of the data (`Facts`)."""

    centers: Tensor

    def __init__(self, centers: tuple[float, ...], scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("centers", torch.tensor(centers))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.centers
