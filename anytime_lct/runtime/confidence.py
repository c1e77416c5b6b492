"""How sure an answer is of itself: one number of 0 to 1 for each sample, from logits made softer by a temperature."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anytime_lct.exits.thresholds import Measure


def confidence(
    logits: NDArray[np.floating], measure: Measure = "max-probability", temperature: float = 1.0
) -> NDArray[np.float32]:
    """Return (B,) confidences of (B, K) logits, or of (B, T, K): of what comes after the last step.

    max-probability   the largest probability
    margin            the largest less the second largest
    entropy           1 - H(p) / log K: 1 where all is on one class, 0 where all are alike

    `temperature` divides the logits first (Guo et al., 2017); fitted on held-out data it makes the largest probability
    mean what it says.

    >>> confidence(np.array([[0.0, 0.0]]), "entropy").tolist()
    [0.0]
    """
    last = logits if logits.ndim == 2 else logits[:, -1]
    shifted = last.astype(np.float64) / temperature
    shifted -= shifted.max(axis=1, keepdims=True)
    p = np.exp(shifted)
    p /= p.sum(axis=1, keepdims=True)
    if measure == "max-probability":
        sure = p.max(axis=1)
    elif measure == "margin":
        two = np.partition(p, -2, axis=1)[:, -2:] if p.shape[1] > 1 else np.stack([0 * p[:, 0], p[:, 0]], axis=1)
        sure = two[:, 1] - two[:, 0]
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = -np.where(p > 0, p * np.log(p), 0.0).sum(axis=1)
        sure = 1.0 - entropy / np.log(max(2, p.shape[1]))
    return np.clip(sure, 0.0, 1.0).astype(np.float32)
