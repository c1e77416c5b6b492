"""Adaptive max pooling in operators that ONNX has: the largest values of windows, along one dimension after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

DIMENSIONS: dict[Any, int] = {F.adaptive_max_pool1d: 1, F.adaptive_max_pool2d: 2, F.adaptive_max_pool3d: 3}


class PoolingByWindows(TorchFunctionMode):
    """Within this mode, adaptive max pooling is written out, for torch's exporter, which does not know it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in DIMENSIONS or kwargs.get("return_indices") or len(args) > 2:
            return func(*args, **kwargs)
        x, size = (*args, *kwargs.values())[:2]  # `input` and `output_size`
        return pooled(x, [size] * DIMENSIONS[func] if isinstance(size, int) else list(size))


def pooled(x: Tensor, size: list[int | None]) -> Tensor:
    """Pool the last dimensions of `x` to these sizes, None: as it is; windows overlap where a size does not divide.

    >>> pooled(torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]), [2])
    tensor([2., 4.])
    """
    for dim, out in zip(range(-len(size), 0), size, strict=True):
        if out is not None:
            side = x.shape[dim]
            bounds = [(k * side // out, -(-(k + 1) * side // out)) for k in range(out)]
            x = torch.cat([x.narrow(dim, a, b - a).amax(dim, keepdim=True) for a, b in bounds], dim)
    return x
