"""Intervals and paired tests on the samples of a split."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from anytime_lct.task import MetricName

LEVEL = 0.95
Z = float(stats.norm.ppf(0.5 + LEVEL / 2))


def interval(scores: NDArray[np.floating], metric: MetricName) -> tuple[float, float, float]:
    """Return the mean of scores (S,) and its 95% interval: Wilson's for accuracy, the normal one for BPC."""
    scores = np.asarray(scores, dtype=np.float64)
    n, mean = len(scores), float(scores.mean())
    if metric == "accuracy":
        centre = (mean + Z**2 / (2 * n)) / (1 + Z**2 / n)
        half = Z / (1 + Z**2 / n) * math.sqrt(mean * (1 - mean) / n + Z**2 / (4 * n**2))
        return mean, max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))  # rounding at 0 and 1
    half = Z * float(scores.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return mean, mean - half, mean + half


def p_worse(scores: NDArray[np.floating], metric: MetricName) -> list[list[float]]:
    """Return the one-sided p-values of "exit i is no worse than exit j" on the same samples, scores (N, S).

    Accuracy: the exact test of McNemar, the chance of as few discordant samples in favour of i, or fewer, if
    both were equally likely. BPC: a paired t-test. The diagonal is 1.
    """
    scores = np.asarray(scores, dtype=np.float64)
    exits = range(len(scores))
    return [[1.0 if i == j else _p(scores[i], scores[j], metric) for j in exits] for i in exits]


def _p(a: NDArray[np.floating], b: NDArray[np.floating], metric: MetricName) -> float:
    if metric == "accuracy":
        for_a, for_b = int(((a > 0) & (b == 0)).sum()), int(((a == 0) & (b > 0)).sum())
        return float(stats.binom.cdf(for_a, for_a + for_b, 0.5)) if for_a + for_b else 1.0
    difference = a - b  # bits: a is worse where it is positive
    spread = float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    if spread == 0.0:
        return 0.0 if difference.mean() > 0 else 1.0
    t = float(difference.mean()) / (spread / math.sqrt(len(difference)))
    return float(stats.t.sf(t, len(difference) - 1))
