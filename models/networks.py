"""The networks of the paper by name, and those of torchvision, timm and the user's own files."""

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
SOURCE_FORMS = ("torchvision:NAME", "timm:NAME", "path/to/file.py:FACTORY")


def build(name: str, input_shape: tuple[int, ...], outputs: int, /, **options: Any) -> nn.Module:
    """Make a network by name for inputs (C, H, W) or (T,) and `outputs` classes or symbols.

    A name with a colon has a source: torchvision:NAME, timm:NAME, path/to/file.py:FACTORY. Raises ModelError
    for an unknown name or option, or data that the network cannot read.

    >>> from torch import zeros
    >>> build("resnet20", (3, 32, 32), 10, width=8)(zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """
    if reserved := next((key for key in ("name", "input_shape", "outputs") if key in options), None):
        raise ModelError(
            f"Expected options of the network '{name}', got '{reserved}', which comes from the data; leave it out."
        )
    if others.has_source(name):
        return others.build(name, input_shape, outputs, options)
    if name not in MODELS:
        matches = difflib.get_close_matches(name, NAMES, n=3) or (*NAMES, *SOURCE_FORMS)
        raise ModelError(f"There is no network '{name}'; did you mean {' or '.join(matches)}?")
    factory = MODELS[name]
    fixed = factory.keywords if isinstance(factory, partial) else {}
    own = [key for key in inspect.signature(factory).parameters if key not in ("input_shape", "outputs", *fixed)]
    for option in options:
        if option not in own:
            matches = difflib.get_close_matches(option, own, n=1)
            hint = f", did you mean '{matches[0]}'" if matches else ""
            raise ModelError(f"The network '{name}' has no option '{option}'{hint}; it takes {', '.join(own)}.")
    if outputs < 1:
        raise ModelError(f"Expected at least one class or symbol for the network '{name}', got {outputs}.")
    return factory(input_shape, outputs, **options)
