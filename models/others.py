"""Networks of other makes: torchvision:NAME, timm:NAME, and path/to/file.py:factory.

They keep the names of their weights. The number of classes comes from the data, and so does the size of the images
where a network has to know it. One trial run tells early, and in a sentence, what does not fit.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anytime_lct.errors import ModelError

Build = Callable[[str, tuple[int, ...], int, dict[str, Any]], nn.Module]


def is_other(name: str) -> bool:
    """Tell whether a name says where the network comes from: `torchvision:resnet18`, `my/file.py:make`."""
    return ":" in name


def build(name: str, input_shape: tuple[int, ...], outputs: int, options: dict[str, Any]) -> nn.Module:
    """Make a network for inputs (C, H, W) or (T,) and `outputs` classes; `options` go to its maker.

    A factory of a file gets `input_shape` and `outputs` where it takes arguments of these names. The factory may be a
    class. Raises ModelError where there is no such network, or it does not suit the data.

    >>> build("torchvision:resnet18", (3, 64, 64), 10, {})(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 10])
    """
    source, _, rest = name.rpartition(":")
    if source not in SOURCES and not source.endswith(".py"):
        raise ModelError(
            f"Expected a network as torchvision:NAME, timm:NAME or path/to/file.py:FACTORY, got '{name}'; choose one."
        )
    make = SOURCES.get(source, _from_file(Path(source)) if source.endswith(".py") else _torchvision)
    try:
        model = make(rest, input_shape, outputs, options)
    except (ModelError, ImportError):
        raise
    except Exception as error:
        told = f" with {', '.join(f'{key} = {value!r}' for key, value in options.items())}" if options else ""
        raise ModelError(f"The network '{name}' cannot be made{told}: {_reason(error)}.") from error
    _try(name, model, input_shape, outputs)
    return model


def _torchvision(name: str, input_shape: tuple[int, ...], outputs: int, options: dict[str, Any]) -> nn.Module:
    import torchvision

    expect_known("torchvision", name)
    channels, height, width = _image(name, input_shape)
    given: dict[str, Any] = {}
    if name.startswith("vit_"):
        given["image_size"] = height
    if name.startswith("maxvit"):
        given["input_size"] = (height, width)
    if name in ("googlenet", "inception_v3"):
        given |= {"aux_logits": False, "init_weights": True}
    model = torchvision.models.get_model(name, weights=None, num_classes=outputs, **{**given, **options})
    if channels != 3:
        _take_channels(model, channels)
    return model


def _timm(name: str, input_shape: tuple[int, ...], outputs: int, options: dict[str, Any]) -> nn.Module:
    import timm

    expect_known("timm", name)
    channels, height, width = _image(name, input_shape)
    given = {"num_classes": outputs, "in_chans": channels, **options}
    try:
        return timm.create_model(name, **{"img_size": (height, width), **given})
    except TypeError as error:
        if "img_size" not in str(error) or "img_size" in options:
            raise
        return timm.create_model(name, **given)  # a network that takes images of any size


def _from_file(path: Path) -> Build:
    def make(name: str, input_shape: tuple[int, ...], outputs: int, options: dict[str, Any]) -> nn.Module:
        factory = getattr(_module(path), name, None)
        if not callable(factory):
            raise ModelError(f"Expected a function or class '{name}' in '{path}' that makes the network, found none.")
        known = inspect.signature(factory).parameters
        facts = {"input_shape": input_shape, "outputs": outputs}
        model = factory(**{key: value for key, value in facts.items() if key in known}, **options)
        if not isinstance(model, nn.Module):
            raise ModelError(f"Expected '{path}:{name}' to return a torch.nn.Module, got a {type(model).__name__}.")
        return model

    return make


SOURCES: dict[str, Build] = {"torchvision": _torchvision, "timm": _timm}


def _module(path: Path) -> Any:
    """Run a file once in a process, with its own folder open to its imports."""
    if not path.is_file():
        raise ModelError(f"Expected the network's file at '{path.absolute()}', which is not there; name another.")
    key = f"anytime_lct_network_{path.resolve()}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[key] = module
        sys.path.insert(0, str(path.resolve().parent))
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[key]
            raise ModelError(f"The network's file '{path}' cannot be read: {_reason(error)}.") from error
        finally:
            sys.path.remove(str(path.resolve().parent))
    return sys.modules[key]


def expect_known(source: str, name: str) -> None:
    """Raise ModelError unless torchvision or timm has a network for classification of that name."""
    if source == "torchvision":
        import torchvision

        known = torchvision.models.list_models(module=torchvision.models)
    else:
        import timm

        known, name = timm.list_models(), name.partition(".")[0]  # timm's names may say which weights: resnet18.a1_in1k
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or known[:3]
        raise ModelError(f"{source} has no network '{name}'; did you mean {' or '.join(near)}?")


def _image(name: str, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(input_shape) != 3:
        raise ModelError(f"The network '{name}' reads images (C, H, W), but the data has inputs {tuple(input_shape)}.")
    channels, height, width = input_shape
    return channels, height, width


def _take_channels(model: nn.Module, channels: int) -> None:
    """Put a first convolution that reads so many channels, under its own name, in place of the one that reads three."""
    path, first = next((path, m) for path, m in model.named_modules() if isinstance(m, nn.Conv2d))
    sizes: tuple[Any, ...] = (first.kernel_size, first.stride, first.padding)
    made = nn.Conv2d(channels, first.out_channels, *sizes, bias=first.bias is not None)
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    holder, _, field = path.rpartition(".")
    setattr(model.get_submodule(holder), field, made)


def _try(name: str, model: nn.Module, input_shape: tuple[int, ...], outputs: int) -> None:
    dtype = torch.float32 if len(input_shape) > 1 else torch.int64
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            Z = model.eval()(torch.zeros(2, *input_shape, dtype=dtype))
    except Exception as error:
        raise ModelError(
            f"The network '{name}' cannot read inputs {tuple(input_shape)}: {_reason(error)}; change the network's "
            f"options or the size of the inputs."
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode
    if not isinstance(Z, Tensor) or Z.shape[-1] != outputs:
        came = f"of shape {tuple(Z.shape)}" if isinstance(Z, Tensor) else f"that is a {type(Z).__name__}"
        raise ModelError(
            f"Expected logits of {outputs} classes from the network '{name}', got an answer {came}; let its factory "
            f"take `outputs`."
        )


def _reason(error: Exception) -> str:
    """The error's first line, and the last line of a file of the user's own that it went through."""
    said = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    inside = (str(Path(torch.__file__).parent.parent), __file__, "<")
    own = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(inside)]
    return said.rstrip(".") + (f" (at {own[-1].filename}:{own[-1].lineno}: {own[-1].line})" if own else "")
