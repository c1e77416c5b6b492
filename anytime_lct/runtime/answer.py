"""What a batch was told, by which exits, and at what cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anytime_lct.exits.budget import Stopped


@dataclass(frozen=True, eq=False)
class Answer:
    """What a batch was told: `logits` float32, (B, K) for images and (B, T, K) for text.

    `exit` is the deepest exit that answered; `exits` (B,) says which answered each sample, where samples stop one by
    one. `flops` are the multiply-adds paid per sample (for text: per character), groups and visited critics together;
    the mean of the batch where samples differ. `exits_run` counts the exits that were computed on the way, `stopped`
    says why no deeper exit answered.
    """

    exit: int
    logits: NDArray[np.float32]
    flops: float
    exits: NDArray[np.int64]
    exits_run: int = 1
    stopped: Stopped = "budget"

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """Softmax of the logits over their last axis."""
        shifted = np.exp(self.logits - self.logits.max(axis=-1, keepdims=True))
        return shifted / shifted.sum(axis=-1, keepdims=True)

    @property
    def classes(self) -> NDArray[np.int64]:
        """Index of the most likely class, or next symbol, over the last axis."""
        return self.logits.argmax(axis=-1)
