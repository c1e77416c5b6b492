"""Data and a network as users write them into a file: the digits, and a small convolutional network."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset


def data() -> dict[str, object]:
    digits = load_digits()
    x, y = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32), torch.tensor(digits.target)
    bounds = {"train": slice(0, 600), "validation": slice(600, 700), "test": slice(700, 800)}
    return {**{part: TensorDataset(x[rows], y[rows]) for part, rows in bounds.items()}, "classes": list("0123456789")}


def network(outputs: int = 10, width: int = 8) -> nn.Module:
    first = [nn.Conv2d(1, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()]
    second = [nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU()]
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, outputs))
