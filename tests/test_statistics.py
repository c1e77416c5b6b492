"""Intervals and paired tests equal hand arithmetic, sums over every outcome, and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from anytime_lct.analysis.statistics import interval, p_worse

Z = 1.959963984540054


def outcomes(*counts: tuple[int, int, int]) -> np.ndarray:
    """Two exits' scores, from (score of exit 1, score of exit 2, how many samples)."""
    return np.array([[a, b] for a, b, times in counts for _ in range(times)], dtype=np.float32).T


def test_wilson_by_hand():
    value, low, high = interval(np.array([1.0] * 9 + [0.0]), "accuracy")
    assert value == pytest.approx(0.9)
    # Newcombe (1998): the roots of |p - x| = Z * sqrt(x (1 - x) / n)
    for bound in (low, high):
        assert abs(value - bound) == pytest.approx(Z * math.sqrt(bound * (1 - bound) / 10))
    assert (low, high) == (pytest.approx(0.5958, abs=1e-4), pytest.approx(0.9821, abs=1e-4))


def test_wilson_at_the_ends():
    n = 20
    value, low, high = interval(np.ones(n), "accuracy")
    assert (value, high) == (1.0, pytest.approx(1.0)) and low == pytest.approx(n / (n + Z**2))
    value, low, high = interval(np.zeros(n), "accuracy")
    assert (value, low) == (0.0, pytest.approx(0.0, abs=1e-12)) and high == pytest.approx(Z**2 / (n + Z**2))


def test_wilson_covers_as_promised():
    """Every outcome of 200 samples, weighted by its chance: close to 95% of them cover the truth."""
    n, truth = 200, 0.9
    covered = 0.0
    for right in range(n + 1):
        _, low, high = interval(np.array([1.0] * right + [0.0] * (n - right)), "accuracy")
        if low <= truth <= high:
            covered += math.comb(n, right) * truth**right * (1 - truth) ** (n - right)
    assert covered == pytest.approx(0.95, abs=0.015)


def test_interval_of_bits_by_hand():
    value, low, high = interval(np.array([1.0, 2.0, 3.0, 6.0]), "bpc")
    half = Z * math.sqrt((4 + 1 + 0 + 9) / 3) / 2
    assert value == 3.0
    assert (low, high) == (pytest.approx(3 - half), pytest.approx(3 + half))


def test_an_interval_holds_its_value():
    assert interval(np.array([2.5]), "bpc") == (2.5, 2.5, 2.5)
    rng = np.random.default_rng(0)
    for n in (1, 2, 7):
        for metric in ("accuracy", "bpc"):
            value, low, high = interval(rng.integers(0, 2, n).astype(float), metric)
            assert low <= value <= high


@pytest.mark.parametrize(("for_1", "for_2"), [(0, 1), (1, 5), (3, 3), (7, 2), (0, 10), (12, 0)])
def test_mcnemar_sums_the_binomial(for_1: int, for_2: int):
    scores = outcomes((1, 0, for_1), (0, 1, for_2), (1, 1, 30), (0, 0, 4))
    n = for_1 + for_2
    p = p_worse(scores, "accuracy")
    assert p[0][1] == pytest.approx(sum(math.comb(n, k) for k in range(for_1 + 1)) / 2**n)
    assert p[1][0] == pytest.approx(sum(math.comb(n, k) for k in range(for_2 + 1)) / 2**n)
    assert p[0][0] == p[1][1] == 1.0


def test_mcnemar_without_discordant_samples():
    assert p_worse(outcomes((1, 1, 5), (0, 0, 2)), "accuracy") == [[1.0, 1.0], [1.0, 1.0]]


def test_t_by_hand():
    """Differences 1, 2, 3: t = 2 sqrt(3), and with two degrees of freedom p has a closed form."""
    scores = np.array([[2.0, 4.0, 6.0], [1.0, 2.0, 3.0]])
    t = 2 * math.sqrt(3)
    p = p_worse(scores, "bpc")
    assert p[0][1] == pytest.approx(0.5 * (1 - t / math.sqrt(2 + t**2)))
    assert p[1][0] == pytest.approx(1 - p[0][1])
    assert p[0][0] == p[1][1] == 1.0


def test_t_agrees_with_flipped_signs():
    """All 2^12 ways to exchange the exits within windows give the test that the t-test stands in for."""
    rng = np.random.default_rng(3)
    difference = rng.normal(0.3, 0.5, 12)
    signs = 1 - 2 * ((np.arange(2**12)[:, None] >> np.arange(12)) & 1)
    exact = ((signs * difference).mean(axis=1) >= difference.mean() - 1e-12).mean()
    p = p_worse(np.stack([2 + difference, np.full(12, 2.0)]), "bpc")
    assert p[0][1] == pytest.approx(exact, abs=0.02)


def test_t_without_spread():
    """Windows that all differ by the same: worse is certain, and equal is not worse."""
    p = p_worse(np.array([[2.0, 3.0], [1.0, 2.0], [1.0, 2.0]]), "bpc")
    assert p[0][1] == 0.0 and p[1][0] == 1.0 and p[1][2] == p[2][1] == 1.0


def test_p_values_are_plain_numbers():
    p = p_worse(outcomes((1, 0, 3), (0, 1, 4)), "accuracy")
    assert all(type(value) is float and 0 <= value <= 1 for row in p for value in row)
