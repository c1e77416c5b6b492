"""The moving average of a module's weights and statistics over the steps of a run, which the run keeps instead of them.

After t steps with weights w_1 .. w_t it is sum_k d^(t-k) w_k / sum_k d^(t-k): with a decay d of 0.999, the last
thousand steps or so. Both sums are state, so that short runs are averaged like long ones, and a run can resume.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """The average of the trained weights of a module, and of the statistics of its norms."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._add = get_ema_multi_avg_fn(decay)
        norms = [(name, norm) for name, norm in module.named_modules() if isinstance(norm, _NormBase)]
        statistics = {f"{name}.{key}".lstrip("."): b for name, norm in norms for key, b in norm.named_buffers()}
        trained = {name: weight.detach() for name, weight in module.named_parameters() if weight.requires_grad}
        self._values = trained | {name: b for name, b in statistics.items() if b.is_floating_point()}
        self._sums = {name: torch.zeros_like(value) for name, value in self._values.items()}
        self._one = torch.ones((), device=next(iter(trained.values())).device)
        self._count = torch.zeros_like(self._one)

    def update(self) -> None:
        """Add the weights as they are now; both sums are in units of 1 / (1 - d)."""
        self._add([*self._sums.values(), self._count], [*self._values.values(), self._one], 0)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the module the average within this block, in place, where there is one."""
        before = {name: value.clone() for name, value in self._values.items()}
        if self._count:
            self._assign({name: value / self._count for name, value in self._sums.items()})
        try:
            yield
        finally:
            self._assign(before)

    def state(self, kind: str) -> dict[str, Tensor]:
        """Return both sums, as `kind_average.NAME` and `kind_averaged`."""
        return {f"{kind}_averaged": self._count, **{f"{kind}_average.{name}": s for name, s in self._sums.items()}}

    def load(self, kind: str, flat: Mapping[str, Tensor]) -> None:
        """Load what `state` returned; raises ValueError where it is of another module."""
        for name, value in self.state(kind).items():
            if name not in flat:
                raise ValueError(f"it has no '{name}'")
            value.copy_(flat[name])

    def _assign(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                self._values[name].copy_(value)
