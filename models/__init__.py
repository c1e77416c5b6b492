"""The networks that the paper uses, by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from anytime_lct.errors import ModelError
from anytime_lct.models.lstm import lstm
from anytime_lct.models.mlp import mlp
from anytime_lct.models.resnet import BOTTLENECKS, bottleneck, small

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "resnet": small,
    **{f"resnet{depth}": partial(small, depth=depth) for depth in (20, 32, 56)},
    **{f"resnet{depth}": partial(bottleneck, depth=depth) for depth in BOTTLENECKS},
    "lstm": lstm,
}
NAMES = tuple(MODELS)


def build(name: str, input_shape: tuple[int, ...], outputs: int, **options: Any) -> nn.Module:
    """Make a network by name for inputs of `input_shape`, (C, H, W) or (T,), and `outputs` classes or symbols.

    Raises ModelError for an unknown name or option, or data that the network cannot read.

    >>> build("resnet20", (3, 32, 32), 10, width=8)(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, NAMES, n=3)
        raise ModelError(f"There is no network '{name}'; did you mean {' or '.join(near or NAMES)}?")
    factory = MODELS[name]
    fixed = factory.keywords if isinstance(factory, partial) else {}
    known = [key for key in inspect.signature(factory).parameters if key not in ("input_shape", "outputs", *fixed)]
    for option in options:
        if option not in known:
            raise ModelError(
                f"The network '{name}' has no option '{option}'; it takes {', '.join(known) or 'no options'}."
            )
    return factory(input_shape, outputs, **options)
