"""The multilayer perceptron of Table III."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from math import prod
from typing import Any

from torch import nn

from anytime_lct.errors import ModelError
from anytime_lct.models.options import expect_dropout


def mlp(
    input_shape: tuple[int, ...],
    outputs: int,
    tokens: int | None = None,
    hidden: Sequence[int] | int = (300, 150),
    dropout: float = 0.0,
) -> nn.Sequential:
    """Make a perceptron with ReLU units on the flattened input, images (B, C, H, W) or floats (B, ..), to (B, outputs).

    The default, with ten outputs, is the 300-150-10 network of Table III. `dropout` acts on every hidden layer.
    """
    if tokens or (tokens is None and len(input_shape) != 3):
        raise ModelError(
            f"The network 'mlp' reads images or floats, but the data has {'tokens' if tokens else 'text'} "
            f"{tuple(input_shape)}."
        )
    sizes: list[Any] = list(hidden) if isinstance(hidden, list | tuple) else [hidden]
    if any(type(size) is not int or size < 1 for size in sizes):
        raise ModelError(f"Expected hidden sizes of at least 1, got {sizes}; write for example hidden = [300, 150].")
    expect_dropout("mlp", dropout)
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    features = prod(input_shape)
    for number, size in enumerate(sizes, start=1):
        layers[f"linear{number}"] = nn.Linear(features, size)
        layers[f"relu{number}"] = nn.ReLU()
        if dropout:
            layers[f"dropout{number}"] = nn.Dropout(dropout)
        features = size
    layers["output"] = nn.Linear(features, outputs)
    return nn.Sequential(layers)
