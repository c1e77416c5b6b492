"""A tracer of torch.fx that sees more than its own: modes that change, random numbers, assignments, and sizes."""

from __future__ import annotations

import operator
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute
from torch.utils._pytree import tree_flatten

from anytime_lct.cutting.sizes import BATCH, Sizes, UnknownError
from anytime_lct.cutting.snapshot import random_positions
from anytime_lct.cutting.steps import UnfollowedError, kind


class OneInput(nn.Module):
    """Calls a network with one input: its other inputs take their defaults, and fx leaves it unchanged."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input: Tensor) -> Any:
        return self.model(input)


class _Proxy(fx.Proxy):
    """A recorded value that cannot be assigned to, as in `self.weight.data = ..`: fx would drop the assignment."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node"):
            raise AttributeError(f"it assigns to {name} of a tensor")
        super().__setattr__(name, value)


class _AsNumber:
    """A recorded number as Python's own, where it is the same for every batch; raises TypeError for any other."""

    def __index__(self) -> int:
        return operator.index(self.tracer.number(self))  # type: ignore[attr-defined]

    def __int__(self) -> int:
        return int(self.tracer.number(self))  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return self.tracer.count(self)  # type: ignore[attr-defined]

    def __float__(self) -> float:
        return float(self.tracer.number(self))  # type: ignore[attr-defined]


class _Attribute(_AsNumber, Attribute):
    """An attribute of a recorded value, such as its shape."""


class _Known(_AsNumber, _Proxy):
    """A recorded value whose sizes are known."""

    def __getattr__(self, name: str) -> _Attribute:
        return _Attribute(self, name)  # type: ignore[call-arg]


class StepTracer(fx.Tracer):
    """Recurrent layers are leaves, as torch's own modules are, wherever their class is defined; buffers stay names.

    With an example of a batch, sizes are known.
    """

    proxy_buffer_attributes = True

    def __init__(self, root: nn.Module, whole: dict[Any, str], example: Tensor | None) -> None:
        super().__init__()
        self._roots, self._whole = (root, root.get_submodule("model")), whole
        self._context = _context()
        self._sizes = None if example is None else Sizes(example, partial(fetched_from, root))

    @property
    def _running(self) -> bool:
        return self._sizes is not None and self._sizes.running

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m in self._roots:
            return False
        return kind(m) in self._whole or isinstance(m, nn.RNNBase) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self) if self._sizes is None else _Known(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        with suppress(UnknownError):
            if self._sizes is not None and (value := self._sizes.of(obj.node)) is not BATCH:
                return bool(value)
        return super().to_bool(obj)

    def iter(self, obj: fx.Proxy) -> Iterator[fx.Proxy]:
        with suppress(UnknownError):
            if self._sizes is not None:
                return (obj[number] for number in range(self._sizes.count(obj.node)))  # type: ignore[index]
        return super().iter(obj)

    def number(self, obj: fx.Proxy) -> Any:
        """Return a number that is the same for every batch; raises TypeError."""
        assert self._sizes is not None
        with suppress(UnknownError):
            if isinstance(value := self._sizes.of(obj.node), int | float):
                return value
        raise TypeError("it is not the same number for every batch")

    def count(self, obj: fx.Proxy) -> int:
        """Return the length of a shape or a tensor that is the same for every batch; raises TypeError."""
        assert self._sizes is not None
        try:
            return self._sizes.count(obj.node)
        except UnknownError:
            raise TypeError("its length is not the same for every batch") from None

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _context() != self._context:
            raise RuntimeError("it changes the gradient or autocast mode")
        return super().create_node(*args, **kwargs)

    def _is_made_here(self, m: nn.Module) -> bool:
        """Whether a module is made in the forward pass, as in nn.ReLU()(x), and has no weights: it is followed."""
        is_part = any(m is part for part in self.root.modules())
        return not is_part and next(iter((*m.parameters(), *m.buffers())), None) is None

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._running or self._is_made_here(m):
            return forward(*args, **kwargs)
        if self.is_leaf_module(m, ""):
            return super().call_module(m, forward, args, kwargs)
        positions, parts = random_positions(), _parts(m)
        try:
            result = super().call_module(m, forward, args, kwargs)
            if random_positions() != positions:
                raise RuntimeError("it draws random numbers that do not depend on its input")
            if _parts(m) != parts:
                raise RuntimeError("it changes the mode, or replaces the weights or buffers, of its parts")
            return result
        except UnfollowedError:
            raise
        except Exception as error:
            if m in self._roots:
                raise
            raise UnfollowedError(m, where(error)) from error


def _parts(m: nn.Module) -> list[Any]:
    """Return the modes of a module and its parts, and which weights and buffers they hold."""
    return [
        (part.training, [*map(id, part._parameters.values()), *map(id, part._buffers.values())]) for part in m.modules()
    ]


def _context() -> tuple[Any, ...]:
    """Return the gradient mode, and in how many blocks of autocast this code runs."""
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), depth


def fetched_from(root: nn.Module, path: str) -> Any:
    return reduce(getattr, path.split("."), root)


@contextmanager
def recorded_factories(tracer: fx.Tracer) -> Iterator[None]:
    """Record calls such as torch.zeros(x.size(0), 64), which fx does not see."""
    originals = {name: getattr(torch, name) for name in ("zeros", "ones", "full")}

    def recorded(original: Any, *args: Any, **kwargs: Any) -> Any:
        values, _ = tree_flatten((args, kwargs))
        if any(isinstance(value, fx.Proxy) for value in values):
            return tracer.create_proxy("call_function", original, args, kwargs)
        return original(*args, **kwargs)

    for name, original in originals.items():
        setattr(torch, name, partial(recorded, original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(torch, name, original)


def where(error: Exception) -> str:
    """Return the reason of an error, and the line of the user's code where it occurs."""
    foreign = (f"{Path(torch.__file__).parent}{os.sep}", __file__, "<")
    own = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(foreign)]
    where = f" at {own[-1].filename}:{own[-1].lineno} ({own[-1].line})" if own else ""
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__).partition(". ")[0]
    return f"{reason}{where}"
