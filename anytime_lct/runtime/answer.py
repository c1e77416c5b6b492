"""The answer to a batch: its logits, the exits that gave them, and their cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anytime_lct.exits.budget import StopReason
from anytime_lct.runtime.confidence import softmax


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer to a batch: `logits` float32, (B, K) for images and (B, T, K) for text; in regression, the numbers.

    `exit` is the deepest exit that answered, and `exits` (B,) the one that answered each sample. `flops` are the
    multiply-adds per sample (for text: per character) of groups and visited critics together; the mean over the batch
    where samples differ. `exits_run` counts the exits that were computed; `stopped` is why no deeper exit answered.
    `temperatures`, of `exits` in the profile, is one number or (B,).
    """

    exit: int
    logits: NDArray[np.float32]
    flops: float
    exits: NDArray[np.int64]
    exits_run: int = 1
    stopped: StopReason = "budget"
    temperatures: float | NDArray[np.floating] = 1.0

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """Softmax of the logits, divided by their temperature, over their last axis: what confidence is measured on."""
        per_sample = np.reshape(self.temperatures, (-1, *(1,) * (self.logits.ndim - 1)))
        return softmax(self.logits, per_sample).astype(np.float32)

    @property
    def classes(self) -> NDArray[np.int64]:
        """Index of the most likely class, or next symbol, over the last axis."""
        return self.logits.argmax(axis=-1)
