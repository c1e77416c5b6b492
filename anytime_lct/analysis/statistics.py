"""Intervals and paired tests on the samples of a split."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from anytime_lct.exits.tasks import METRICS, MetricName

LEVEL = 0.95
QUANTILE = float(stats.norm.ppf((1 + LEVEL) / 2))


def interval(scores: NDArray[np.floating], metric: MetricName) -> tuple[float, float, float]:
    """Return the mean of scores (S,) and its 95% interval: Wilson's for accuracy, the normal one for BPC.

    Of RMSE it is the root of the mean of squared errors, and of the bounds of its normal interval.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if METRICS[metric].of_hits:
        test = stats.binomtest(round(scores.sum()), len(scores))
        low, high = test.proportion_ci(LEVEL, method="wilson")
        return float(scores.mean()), float(low), float(high)
    value, low, high = mean_interval(scores)
    return (math.sqrt(value), math.sqrt(max(0.0, low)), math.sqrt(high)) if METRICS[metric].root else (value, low, high)


def mean_interval(values: NDArray[np.floating]) -> tuple[float, float, float]:
    """Return the mean of values (S,) and its 95% interval, the normal one."""
    n, mean = len(values), float(values.mean())
    error = float(stats.sem(values)) if n > 1 else 0.0
    if error == 0:
        return mean, mean, mean
    low, high = stats.norm.interval(LEVEL, loc=mean, scale=error)
    return mean, float(low), float(high)


def margin(deviation: float, samples: int) -> float:
    """Return half of the 95% interval of a mean, the normal one.

    >>> round(margin(30.0, 900), 2)
    1.96
    """
    return QUANTILE * deviation / math.sqrt(samples)


def p_worse(scores: NDArray[np.floating], metric: MetricName) -> list[list[float]]:
    """Return the one-sided p-values of "exit i is no worse than exit j" on the same samples, scores (N, S).

    Accuracy: McNemar's exact test, the probability of at most so many discordant samples in favour of i if both were
    equally likely. BPC and RMSE: a paired t-test. The diagonal is 1.
    """
    scores = np.asarray(scores, dtype=np.float64)
    exits = range(len(scores))
    return [[1.0 if i == j else _p(scores[i], scores[j], metric) for j in exits] for i in exits]


def _p(a: NDArray[np.floating], b: NDArray[np.floating], metric: MetricName) -> float:
    if METRICS[metric].of_hits:
        for_a, for_b = int(((a > 0) & (b == 0)).sum()), int(((a == 0) & (b > 0)).sum())
        return float(stats.binomtest(for_a, for_a + for_b, alternative="less").pvalue) if for_a + for_b else 1.0
    if len(a) < 2 or np.ptp(a - b) == 0:  # equal differences have no variance
        return 0.0 if (a - b).mean() > 0 else 1.0
    return float(stats.ttest_rel(a, b, alternative="greater").pvalue)  # bits and errors: more are worse
