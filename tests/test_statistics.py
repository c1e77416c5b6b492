"""Intervals and p-values equal hand arithmetic and sums of binomial coefficients as exact fractions."""

from __future__ import annotations

from fractions import Fraction
from math import comb, sqrt

import numpy as np
import pytest
from scipy import stats

from anytime_lct.analysis.statistics import interval, p_worse

Z = 1.959963984540054


def at_most(k: int, n: int) -> float:
    """Chance of at most k heads in n throws."""
    return float(sum(Fraction(comb(n, i), 2**n) for i in range(k + 1)))


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (7, 10), (931, 1000)])
def test_wilson_interval_holds_the_shares_that_the_count_does_not_refute(right: int, n: int):
    value, low, high = interval(np.array([1.0] * right + [0.0] * (n - right)), "accuracy")
    assert value == pytest.approx(right / n)
    for bound in (low, high):
        if 1e-9 < bound < 1 - 1e-9:
            assert abs(value - bound) == pytest.approx(Z * sqrt(bound * (1 - bound) / n))
    assert 0 <= low <= value <= high <= 1 and low < high


def test_wilson_interval_by_hand():
    _, low, high = interval(np.array([1.0, 0.0, 0.0, 0.0]), "accuracy")  # 1 of 4
    centre, half = (0.25 + Z**2 / 8) / (1 + Z**2 / 4), sqrt(0.25 * 0.75 / 4 + Z**2 / 64) * Z / (1 + Z**2 / 4)
    assert (low, high) == pytest.approx((centre - half, centre + half))
    assert (low, high) == pytest.approx((0.0456, 0.6994), abs=1e-4)


def test_normal_interval_of_bits_by_hand():
    value, low, high = interval(np.array([1.0, 2.0, 3.0]), "bpc")
    assert value == 2.0
    assert (low, high) == pytest.approx((2 - Z / sqrt(3), 2 + Z / sqrt(3)))


def test_mcnemar_by_hand():
    a = [1, 1, 1, 0, 0, 0, 0, 1]
    b = [1, 1, 0, 1, 1, 1, 0, 1]  # three samples are b's alone, one is a's
    p = p_worse(np.array([a, b], dtype=np.float32), "accuracy")
    assert p[0][1] == pytest.approx(5 / 16)  # at most 1 head in 4: (1 + 4) / 16
    assert p[1][0] == pytest.approx(15 / 16)  # at most 3 heads in 4
    assert p[0][0] == p[1][1] == 1.0


def test_mcnemar_against_fractions():
    scores = np.random.default_rng(0).random((4, 500)) < np.array([[0.7], [0.72], [0.8], [0.8]])
    p = p_worse(scores.astype(np.float32), "accuracy")
    for i in range(4):
        for j in range(4):
            mine, theirs = int((scores[i] & ~scores[j]).sum()), int((~scores[i] & scores[j]).sum())
            expected = at_most(mine, mine + theirs) if i != j else 1.0
            assert p[i][j] == pytest.approx(expected, rel=1e-9)


def test_equal_exits_are_not_worse_than_each_other():
    same = np.array([[1.0, 0.0, 1.0]] * 2)
    assert p_worse(same, "accuracy") == p_worse(same, "bpc") == [[1.0, 1.0], [1.0, 1.0]]


def test_bits_are_compared_in_pairs():
    generator = np.random.default_rng(0)
    text = generator.normal(2.0, 1.0, 40)  # windows differ far more than exits do
    scores = np.stack([text + 0.05 + generator.normal(0, 0.05, 40), text])
    p = p_worse(scores, "bpc")
    assert p[0][1] == pytest.approx(stats.ttest_rel(scores[0], scores[1], alternative="greater").pvalue)
    assert p[0][1] < 1e-4 and p[1][0] == pytest.approx(1 - p[0][1])


def test_always_worse_by_the_same():
    p = p_worse(np.array([[1.5, 2.5], [1.0, 2.0]]), "bpc")
    assert p == [[1.0, 0.0], [1.0, 1.0]]
