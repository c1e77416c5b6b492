"""The device meta in the place of a GPU: tensors without values, whose readers get a value that is no number of theirs.

What mixes devices fails, as on a GPU, and what only a GPU runs is run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

META = torch.device("meta")
READERS = {getattr(Tensor, name) for name in "cpu tolist item numpy __bool__ __int__ __float__ __index__".split()}


class ReadingMeta(TorchFunctionMode):
    """Let readers of meta tensors see ones, as if they were copied to the CPU."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in READERS:
            args = (_read(args[0]), *args[1:])
        if func is Tensor.copy_ and args[0].device != META:
            args = (args[0], _read(args[1]), *args[2:])
        return func(*args, **(kwargs or {}))


def _read(tensor: Tensor) -> Tensor:
    return torch.ones(tensor.shape, dtype=tensor.dtype) if tensor.device == META else tensor


def sgd(weights: Any, lr: float, **_: Any) -> torch.optim.SGD:
    """Make an optimizer for meta tensors, for which there are no fused kernels."""
    return torch.optim.SGD(weights, lr, momentum=0.9)
