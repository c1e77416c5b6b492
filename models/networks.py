"""The networks of this toolkit by name, and those of torchvision, timm and the user's own files."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from anytime_lct.errors import ModelError
from anytime_lct.models import others
from anytime_lct.models.earlywide import earlywide
from anytime_lct.models.fractalnet import fractalnet
from anytime_lct.models.lstm import lstm
from anytime_lct.models.mlp import mlp
from anytime_lct.models.msdnet import msdnet, msdnet_imagenet
from anytime_lct.models.resnet import BOTTLENECKS, bottleneck, small
from anytime_lct.models.sequences import lstm_classifier

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "resnet": small,
    **{f"resnet{depth}": partial(small, depth=depth) for depth in (20, 32, 56)},
    **{f"resnet{depth}": partial(bottleneck, depth=depth) for depth in BOTTLENECKS},
    "earlywide": earlywide,
    "msdnet": msdnet,
    "msdnet-imagenet": msdnet_imagenet,
    "fractalnet": fractalnet,
    "lstm": lstm,
    "lstm-classifier": lstm_classifier,
}
AUTO = "auto"  # stands for the network that suits the inputs
NAMES = tuple(MODELS)
OPTION_TEXTS = {
    "hidden": "Units of each hidden layer.",
    "dropout": "Share of units that are dropped in training.",
    "depth": "Layers.",
    "width": "Channels of the first layer (of msdnet: at each scale, the finest first; of fractalnet: of each block).",
    "blocks": "Residual blocks of each part.",
    "stride": "Stride of the first layer: a power of 2, or by the images' size (auto).",
    "stem": "First layers: for small images (cifar), large ones (imagenet), or by their size (auto).",
    "layers": "LSTM layers (of msdnet: the layers of each block, with an exit behind every block).",
    "growth": "Channels that a layer adds at each scale.",
    "bottleneck": "Width of the 1x1 convolutions at each scale, as a multiple of what the next convolution returns.",
    "prune": "Whether the finest scales are dropped at even distances (max), or none is (min).",
    "columns": "Columns of a fractal network, of 1, 2, 4 .. convolutions in each block.",
    "drop_path": "Share of its inputs that each join of columns loses in training.",
    "reduction": "Share of the channels that is left behind a transition.",
    "units": "Units of an LSTM layer.",
    "embedding": "Size of the embedding of a character or a token.",
}
SOURCE_FORMS = ("torchvision:NAME", "timm:NAME", "path/to/file.py:FACTORY")


def build(
    name: str, input_shape: tuple[int, ...], outputs: int, tokens: int | None = None, /, **options: Any
) -> nn.Module:
    """Make a network by name for images (C, H, W) or text (T,) and `outputs` classes or symbols.

    With `tokens` inputs are arrays instead: numbers of so many tokens (T,), or floats of any shape where it is 0.
    A name with a colon has a source: torchvision:NAME, timm:NAME, path/to/file.py:FACTORY. Raises ModelError
    for an unknown name or option, or data that the network cannot read.

    >>> from torch import zeros
    >>> build("resnet20", (3, 32, 32), 10, width=8)(zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """
    if reserved := next((key for key in ("name", "input_shape", "outputs", "tokens") if key in options), None):
        raise ModelError(
            f"Expected options of the network '{name}', got '{reserved}', which comes from the data; leave it out."
        )
    if others.has_source(name):
        return others.build(name, input_shape, outputs, options, tokens)
    if name.endswith(".py"):
        raise ModelError(f"Expected {name}:FACTORY, got '{name}' alone; name the function or class that makes it.")
    if name not in MODELS:
        matches = others.forms_of(name) or difflib.get_close_matches(name, NAMES, n=3) or (*NAMES, *SOURCE_FORMS)
        raise ModelError(f"There is no network '{name}'; did you mean {' or '.join(matches)}?")
    own = list(default_options(name))
    for option in options:
        if option not in own:
            matches = difflib.get_close_matches(option, own, n=1)
            hint = f", did you mean '{matches[0]}'" if matches else ""
            raise ModelError(f"The network '{name}' has no option '{option}'{hint}; it takes {', '.join(own)}.")
    if outputs < 1:
        raise ModelError(f"Expected at least one class or symbol for the network '{name}', got {outputs}.")
    factory = MODELS[name]
    if "tokens" in inspect.signature(factory).parameters:
        return factory(input_shape, outputs, tokens, **options)
    if tokens:
        raise ModelError(
            f"The network '{name}' does not read numbers of tokens, which the data has; choose lstm-classifier, or a "
            f"network of your own."
        )
    return factory(input_shape, outputs, **options)


def suited(input_shape: tuple[int, ...], tokens: int | None) -> dict[str, Any]:
    """Return the name of a network of this toolkit that suits such inputs, as `build` has them, and options.

    >>> suited((3, 32, 32), None), suited((128, 9), 0)
    ({'name': 'resnet20'}, {'name': 'lstm-classifier'})
    """
    if tokens or (tokens is not None and len(input_shape) == 2):
        return {"name": "lstm-classifier"}
    if tokens is None:
        return {"name": "resnet20" if len(input_shape) == 3 else "lstm"}
    return {"name": "mlp", "hidden": [256, 256, 256, 256]}


def default_options(name: str) -> dict[str, Any]:
    """Return the options of a network of this toolkit with their defaults; none for those of other sources.

    >>> default_options("resnet")
    {'depth': 20, 'width': 16, 'dropout': 0.0}
    """
    if name not in MODELS:
        return {}
    factory = MODELS[name]
    fixed = factory.keywords if isinstance(factory, partial) else {}
    parameters = inspect.signature(factory).parameters
    own = [key for key in parameters if key not in ("input_shape", "outputs", "tokens", *fixed)]
    defaults = ((key, parameters[key].default) for key in own)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in defaults}
