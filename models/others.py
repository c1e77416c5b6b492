"""Networks of torchvision, timm and the user's own files: torchvision:NAME, timm:NAME, path/to/file.py:FACTORY.

Their weights keep their names. The number of classes comes from the data, and so does the size of the images where a
network depends on it. A trial forward finds a network that does not fit the data before training starts.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from anytime_lct.errors import ModelError
from anytime_lct.models.checks import expect_logits, expect_python
from anytime_lct.models.files import load_factory, reason, required
from anytime_lct.models.imports import importing_from

Builder = Callable[[str, tuple[int, ...], int, dict[str, Any]], nn.Module]


def has_source(name: str) -> bool:
    """Return whether a name says where the network comes from: `torchvision:resnet18`, `my/file.py:make`."""
    return ":" in name


def build(
    name: str, input_shape: tuple[int, ...], outputs: int, options: dict[str, Any], tokens: int | None = None
) -> nn.Module:
    """Make a network for inputs as `networks.build` has them; `options` are arguments of its factory.

    A factory in a file is a function or a class; it gets `input_shape`, `tokens`, and `outputs` or `num_classes`, if it
    has parameters of these names. Raises ModelError for an unknown network, or one that does not fit the data.

    >>> build("torchvision:resnet18", (3, 64, 64), 10, {})(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 10])
    """
    source, _, own = name.rpartition(":")
    if source not in SOURCES and not source.endswith(".py"):
        module = f"{source.replace('.', '/')}.py"
        remedy = f"did you mean {module}:{own}?" if Path(module).is_file() else "choose one."
        raise ModelError(
            f"Expected a network as torchvision:NAME, timm:NAME or path/to/file.py:FACTORY, got '{name}'; {remedy}"
        )
    if source in SOURCES:
        return _build(name, SOURCES[source], input_shape, outputs, options, tokens)
    path = Path(source)
    if not path.is_file():
        raise ModelError(
            f"Expected the network's file at '{path.absolute()}', which is not there; name it with --model "
            f"path/to/file.py:FACTORY."
        )
    with importing_from(path):
        try:
            return _build(name, _from_file(path, tokens), input_shape, outputs, options, tokens)
        except ModuleNotFoundError as error:
            raise ModelError(
                f"The network '{name}' imports '{error.name}', which is neither installed nor beside its file; "
                f"{_remedy(path.resolve(), str(error.name))}."
            ) from error


def _remedy(path: Path, module: str) -> str:
    """Return how a file finds a module that it imports: in a folder above it, by packages, or by pip."""
    top = module.partition(".")[0]
    above = next((f for f in path.parents if (f / top).is_dir() or (f / f"{top}.py").is_file()), None)
    if above is None or above == path.parent:
        return "install it with pip"
    return f"put an empty __init__.py into each folder from '{above / path.relative_to(above).parts[0]}' to its own"


def _build(
    name: str,
    builder: Builder,
    input_shape: tuple[int, ...],
    outputs: int,
    options: dict[str, Any],
    tokens: int | None,
) -> nn.Module:
    try:
        model = builder(name.rpartition(":")[2], input_shape, outputs, options)
    except (ModelError, ModuleNotFoundError):
        raise
    except Exception as error:
        settings = f" with {', '.join(f'{key} = {value!r}' for key, value in options.items())}" if options else ""
        side = None if options else made_for(name)
        size = "" if side is None or side in input_shape else f"; it is made for images of {side}x{side}"
        raise ModelError(f"The network '{name}' cannot be built{settings}: {reason(error)}{size}.") from error
    expect_python(name, model)
    return expect_logits(name, model, input_shape, outputs, tokens, made_for(name))


def _torchvision(name: str, input_shape: tuple[int, ...], outputs: int, options: dict[str, Any]) -> nn.Module:
    import torchvision

    expect_known("torchvision", name)
    channels, height, width = _image(name, input_shape)
    defaults: dict[str, Any] = {}
    if name.startswith("vit_"):
        defaults["image_size"] = height
    if name.startswith("maxvit"):
        defaults["input_size"] = (height, width)
    if name in ("googlenet", "inception_v3"):
        defaults |= {"aux_logits": False, "init_weights": True}
    model = torchvision.models.get_model(name, weights=None, num_classes=outputs, **{**defaults, **options})
    if channels != 3:
        _replace_first_convolution(model, channels)
    return model


def _timm(name: str, input_shape: tuple[int, ...], outputs: int, options: dict[str, Any]) -> nn.Module:
    import timm

    expect_known("timm", name)
    channels, height, width = _image(name, input_shape)
    arguments = {"num_classes": outputs, "in_chans": channels, **options}
    try:
        return timm.create_model(name, **{"img_size": (height, width), **arguments})
    except TypeError as error:
        if "img_size" not in str(error) or "img_size" in options:
            raise
        return timm.create_model(name, **arguments)  # a network for images of any size


def _from_file(path: Path, tokens: int | None) -> Builder:
    def build_from_file(name: str, input_shape: tuple[int, ...], outputs: int, options: dict[str, Any]) -> nn.Module:
        factory = load_factory(f"{path}:{name}", "network", ModelError)
        if isinstance(factory, nn.Module):
            raise ModelError(
                f"Expected a function or class '{name}' in '{path}' that builds the network, got a network, a "
                f"{type(factory).__name__}; name the class, or a function that returns a new one."
            )
        facts = {
            "input_shape": input_shape,
            "outputs": outputs,
            "num_classes": outputs,
            "tokens": outputs if tokens is None else tokens,
        }
        arguments = {key: facts[key] for key in inspect.signature(factory).parameters if key in facts} | options
        if missing := [key for key in required(factory) if key not in arguments]:
            raise ModelError(
                f"Expected '{path}:{name}' to take `outputs` or `num_classes`, the number of classes, and "
                f"`input_shape`, but it requires {', '.join(missing)} too; rename the parameter, or set it, as by "
                f"--set model.{missing[0]}={outputs}."
            )
        model = factory(**arguments)
        if not isinstance(model, nn.Module):
            raise ModelError(f"Expected '{path}:{name}' to return a torch.nn.Module, got a {type(model).__name__}.")
        return model

    return build_from_file


SOURCES: dict[str, Builder] = {"torchvision": _torchvision, "timm": _timm}


def forms_of(name: str) -> list[str]:
    """Return how a network of torchvision and timm that is called `name` is written, by each that is installed.

    >>> forms_of("squeezenet1_1")
    ['torchvision:squeezenet1_1']
    """
    installed = [source for source in SOURCES if importlib.util.find_spec(source) is not None]
    return [f"{source}:{name}" for source in installed if name in _known(source)]


def _known(source: str) -> list[str]:
    """Return the networks for classification that torchvision or timm has."""
    if source == "torchvision":
        import torchvision

        return torchvision.models.list_models(module=torchvision.models)
    import timm

    return timm.list_models()


def expect_known(source: str, name: str) -> None:
    """Raise ModelError unless torchvision or timm has a network for classification of that name."""
    known = _known(source)
    if source == "timm":
        name = name.partition(".")[0]  # after the dot, a tag of weights: resnet18.a1_in1k
    if name not in known:
        matches = difflib.get_close_matches(name, known, n=3) or known[:3]
        raise ModelError(f"{source} has no network '{name}'; did you mean {' or '.join(matches)}?")


def published(name: str) -> Any:
    """Return what torchvision or timm publish about the inputs of a network's default weights, None for others.

    Raises ModelError for a network that they do not have.
    """
    source, _, network = name.partition(":")
    if source not in SOURCES:
        return None
    expect_known(source, network)
    if source == "timm":
        import timm

        return timm.get_pretrained_cfg(network, allow_unregistered=True)
    import torchvision

    return torchvision.models.get_model_weights(network).DEFAULT.transforms()  # type: ignore[attr-defined]


def made_for(name: str) -> int | None:
    """Return the shorter side of the images that a network is made for, or None where none is published.

    Raises ModelError for a network that torchvision or timm do not have.

    >>> made_for("torchvision:efficientnet_b4")
    380
    """
    config = published(name)
    size = getattr(config, "crop_size", None) or getattr(config, "input_size", None)
    return min(size[-2:]) if size else None


def _image(name: str, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(input_shape) != 3:
        raise ModelError(f"The network '{name}' reads images (C, H, W), but the data has inputs {tuple(input_shape)}.")
    channels, height, width = input_shape
    return channels, height, width


def _replace_first_convolution(model: nn.Module, channels: int) -> None:
    """Replace the first convolution, of three channels, by one of `channels` with the same name."""
    path, first = next((path, m) for path, m in model.named_modules() if isinstance(m, nn.Conv2d))
    sizes: tuple[Any, ...] = (first.kernel_size, first.stride, first.padding)
    convolution = nn.Conv2d(channels, first.out_channels, *sizes, bias=first.bias is not None)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    parent, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(parent), attribute, convolution)
