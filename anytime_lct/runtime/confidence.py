"""The confidence of an answer: one number from 0 to 1 for each sample, of logits divided by a temperature."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anytime_lct.exits.thresholds import Measure


def confidence(
    logits: NDArray[np.floating], measure: Measure = "max-probability", temperature: float = 1.0
) -> NDArray[np.float32]:
    """Return (B,) confidences of (B, K) logits, or of the last step of (B, T, K) logits.

    max-probability   the largest probability
    margin            the largest minus the second largest probability
    entropy           1 - H(p) / log K: 1 where one class has probability 1, 0 where all are equal

    `temperature` divides the logits first (Guo et al., 2017); fitted on held-out data, it calibrates the probabilities.

    >>> confidence(np.array([[0.0, 0.0]]), "entropy").tolist()
    [0.0]
    """
    p = softmax(logits if logits.ndim == 2 else logits[:, -1], temperature)
    if measure == "max-probability":
        values = p.max(axis=1)
    elif measure == "margin":
        top = np.partition(p, -2, axis=1)[:, -2:] if p.shape[1] > 1 else np.stack([0 * p[:, 0], p[:, 0]], axis=1)
        values = top[:, 1] - top[:, 0]
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = -np.where(p > 0, p * np.log(p), 0.0).sum(axis=1)
        values = 1.0 - entropy / np.log(max(2, p.shape[1]))
    return np.clip(values, 0.0, 1.0).astype(np.float32)


def softmax(logits: NDArray[np.floating], temperature: float | NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the probabilities of logits (.., K) divided by a temperature, or by one that is broadcast.

    >>> softmax(np.array([0.0, np.log(9.0)]), 2.0).tolist()
    [0.25, 0.75]
    """
    shifted = logits.astype(np.float64) / temperature
    shifted -= shifted.max(axis=-1, keepdims=True)
    p = np.exp(shifted)
    p /= p.sum(axis=-1, keepdims=True)
    return p
