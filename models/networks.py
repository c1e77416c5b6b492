"""The networks that the paper uses, by name, and those of other makes."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from anytime_lct.errors import ModelError
from anytime_lct.models import others
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
OTHERS = ("torchvision:NAME", "timm:NAME", "path/to/file.py:FACTORY")


def build(name: str, input_shape: tuple[int, ...], outputs: int, /, **options: Any) -> nn.Module:
    """Make a network by name for inputs (C, H, W) or (T,) and `outputs` classes or symbols.

    A name with a colon says where it comes from: torchvision:NAME, timm:NAME, path/to/file.py:FACTORY. Raises
    ModelError for an unknown name or option, or data that the network cannot read.

    >>> from torch import zeros
    >>> build("resnet20", (3, 32, 32), 10, width=8)(zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """
    if given := next((key for key in ("name", "input_shape", "outputs") if key in options), None):
        raise ModelError(f"Expected options of the network '{name}', got '{given}', which the data say; leave it out.")
    if others.is_other(name):
        return others.build(name, input_shape, outputs, options)
    if name not in MODELS:
        near = difflib.get_close_matches(name, NAMES, n=3)
        raise ModelError(f"There is no network '{name}'; did you mean {' or '.join(near or (*NAMES, *OTHERS))}?")
    factory = MODELS[name]
    fixed = factory.keywords if isinstance(factory, partial) else {}
    taken = {"input_shape", "outputs", *fixed}
    known = [option for option in inspect.signature(factory).parameters if option not in taken]
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            meant = f", did you mean '{near[0]}'" if near else ""
            raise ModelError(f"The network '{name}' has no option '{option}'{meant}; it takes {', '.join(known)}.")
    if outputs < 1:
        raise ModelError(f"Expected at least one class or symbol for the network '{name}', got {outputs}.")
    return factory(input_shape, outputs, **options)
