"""The answer to a batch: its logits, the exits that gave them, and their cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anytime_lct.exits.budget import StopReason


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer to a batch: `logits` float32, (B, K) for images and (B, T, K) for text.

    `exit` is the deepest exit that answered, and `exits` (B,) the one that answered each sample. `flops` are the
    multiply-adds per sample (for text: per character) of groups and visited critics together; the mean over the batch
    where samples differ. `exits_run` counts the exits that were computed; `stopped` is why no deeper exit answered.
    """

    exit: int
    logits: NDArray[np.float32]
    flops: float
    exits: NDArray[np.int64]
    exits_run: int = 1
    stopped: StopReason = "budget"

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """Softmax of the logits over their last axis."""
        shifted = np.exp(self.logits - self.logits.max(axis=-1, keepdims=True))
        return shifted / shifted.sum(axis=-1, keepdims=True)

    @property
    def classes(self) -> NDArray[np.int64]:
        """Index of the most likely class, or next symbol, over the last axis."""
        return self.logits.argmax(axis=-1)
