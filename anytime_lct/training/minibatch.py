"""A minibatch on its way through the layer groups."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Minibatch:
    """Inputs (of the network, or of a worker's first group), labels, the step, and what happens after it.

    `last` ends a stretch of minibatches that flow without a gap; `save` requests a checkpoint; `rows` of the `joint`
    rows of all replicas are here, 0 and 0 where the minibatch is not split between replicas. `labels` is y on the CPU,
    for links, where the minibatch is on another device.
    """

    x: Tensor
    y: Tensor
    step: int
    last: bool = False
    save: bool = False
    rows: int = 0
    joint: int = 0
    labels: Tensor | None = None

    @property
    def share(self) -> float:
        """The share of the joint minibatch's rows that is here."""
        return self.rows / self.joint if self.joint else 1.0
