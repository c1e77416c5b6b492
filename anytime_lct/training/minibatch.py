"""A minibatch on its way through the layer groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Minibatch:
    """Inputs (of the network, or of a worker's first group), labels, the step, and what is to happen after it.

    `last` ends a stretch of minibatches that flow without a gap; `save` asks for a checkpoint; `rows` of the `joint`
    rows of all replicas are here, 0 for a minibatch that is nobody's share.
    """

    x: Tensor
    y: Tensor
    step: int
    last: bool = False
    save: bool = False
    rows: int = 0
    joint: int = 0

    @property
    def share(self) -> float:
        """Which part of the joint minibatch is here."""
        return self.rows / self.joint if self.joint else 1.0
