"""Which exits to visit, and how sure each must be, for the best accuracy at a mean cost: searched on validation data.

A rule visits exits v_1 < .. < v_m. A sample that stops at v_k has paid f_1..f_{v_k} and the critics of v_1..v_k, C_k.
Of the samples that arrive at v_k the share q_k stops, the surest first, by the measure of confidence:

    log(q_k / (1 - q_k)) = a + b k,   q_m = 1;      p_k = q_k (1 - q_1) .. (1 - q_{k-1});      sum of p_k C_k = budget

With b = 0 these are the geometric shares of Huang et al., Multi-Scale Dense Networks, 2018; with up to three visited
exits all shares are of this kind. For every set of exits and every slope b the budget fixes a, and the shares fix the
thresholds, as quantiles: nothing is left to be fitted to single samples. Which exits, slope and measure are best is
told by cross-validation: thresholds from four fifths of the validation samples, accuracy on the fifth, five times.
Where no rule that spends the budget beats the best fixed exit, deeper exits add nothing: rules that spend less compete.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from anytime_lct.analysis import statistics
from anytime_lct.analysis.measure import Judge
from anytime_lct.data.batches import Split
from anytime_lct.errors import NothingFitsError
from anytime_lct.evaluation import Evaluation
from anytime_lct.exits.budget import check_positive, show_count
from anytime_lct.exits.profile import Profile, Quality
from anytime_lct.exits.thresholds import MEASURES, MeanCost, Measure, Thresholds
from anytime_lct.runtime.confidence import confidence

SHARES_OF_BUDGET = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)
SLOPES = (0.0, 0.5, -0.5, 1.0, -1.0, 1.5, -1.5, 2.0, -2.0, 3.0, -3.0)
# Exits that a rule visits at most: there are too many sets of them in a network of many exits.
MOST_VISITED, MOST_VISITED_OF_MANY, MANY = 4, 3, 8
FOLDS = 5
# A rule whose thresholds cannot split equal confidences may miss its budget by so much.
TOLERANCE = 0.005
Confidences = dict[Measure, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Samples:
    """What `exits` say of the S samples of a split; row k of every array is exit `exits[k]`.

    `sure` has the confidences by measure, float32 (N, S); `right` is bool, `losses` in nats, both (N, S).
    """

    exits: tuple[int, ...]
    sure: Confidences
    right: NDArray[np.bool_]
    losses: NDArray[np.floating]


@dataclass(frozen=True)
class _Candidate:
    """Visited exits with the costs of stopping at each, and the shares that are to stop there."""

    visited: tuple[int, ...]
    costs: tuple[float, ...]
    shares: tuple[float, ...]
    measure: Measure


def watch(judge: Judge, split: Split, exits: Sequence[int], temperatures: Sequence[float]) -> Samples:
    """Evaluate `exits` on a split and keep how sure each is of every sample; logits are divided by `temperatures`.

    >>> watch(judging(network, data), "validation", (1, 2, 3), (1.2, 1.1, 1.3)).right.shape   # doctest: +SKIP
    (3, 6000)
    """
    seen: dict[Measure, list[NDArray[np.float32]]] = {measure: [] for measure in MEASURES}

    def witness(outputs: Sequence[Tensor], y: Tensor) -> None:
        logits = [Z.float().cpu().numpy() for Z in outputs]
        for measure, parts in seen.items():
            parts.append(np.stack([confidence(z, measure, T) for z, T in zip(logits, temperatures, strict=True)]))

    found: Evaluation = judge(split, witness)
    sure: Confidences = {measure: np.concatenate(parts, axis=1) for measure, parts in seen.items()}
    return Samples(tuple(exits), sure, found.scores.numpy() > 0, found.losses.numpy())


def search(
    profile: Profile,
    validation: Samples,
    test: Samples,
    mean_flops: float,
    measures: Sequence[Measure] = MEASURES,
) -> Thresholds:
    """Search the rule of the best accuracy at a mean cost of `mean_flops`, on validation; report it on test.

    The rule spends the budget if that beats the best fixed exit, and may spend less otherwise; where no rule beats the
    fixed exit, it is the rule. Raises NothingFitsError for a budget below the cheapest exit, and BudgetError.

    >>> search(profile, validation, test, 20e6).at                                            # doctest: +SKIP
    {1: 0.9725, 2: 0.8816, 4: 0.0}
    """
    check_positive(mean_flops, "a mean budget")
    fitting = [i for i in validation.exits if profile.cost(i).flops <= mean_flops]
    if not fitting:
        least = min(validation.exits, key=lambda i: profile.cost(i).flops)
        raise NothingFitsError(
            f"Expected a mean budget of at least the cheapest exit, got {show_count(mean_flops)} FLOPs; exit {least} "
            f"needs {show_count(profile.cost(least).flops)} FLOPs."
        )
    fixed = max(fitting, key=lambda i: (validation.right[_row(validation, i)].mean(), -profile.cost(i).flops))
    rule = _best(profile, validation, mean_flops, measures, fixed)
    at = _without_idle(validation, rule, _thresholds(validation, rule))
    return _reported(profile, test, mean_flops, rule.measure, at, fixed)


def stops(samples: Samples, measure: Measure, at: dict[int, float]) -> NDArray[np.intp]:
    """Return, for every sample, the row of the exit where a rule stops it.

    >>> stops(samples, "margin", {1: 0.8, 3: 0.0}).tolist()                                   # doctest: +SKIP
    [0, 2, 0, 0]
    """
    stopped = np.full(samples.right.shape[1], -1)
    for exit, threshold in at.items():
        row = _row(samples, exit)
        stopped[(stopped < 0) & (samples.sure[measure][row] >= np.float32(threshold))] = row
    return stopped


def stopping_costs(profile: Profile, visited: Iterable[int]) -> tuple[float, ...]:
    """Return the multiply-adds of a sample that stops at each visited exit: groups up to it, and visited critics."""
    costs, critics = [], 0
    for i in visited:
        critics += profile.critics[i - 1].flops if i < profile.num_groups else 0
        costs.append(float(sum(cost.flops for cost in profile.groups[:i]) + critics))
    return tuple(costs)


def _best(profile: Profile, validation: Samples, budget: float, measures: Sequence[Measure], fixed: int) -> _Candidate:
    """Return the rule of the best cross-validated accuracy; of equals the first, which is the simpler one.

    A rule that spends less must beat the fixed exit by a standard error: there are many such, and one is lucky.
    """
    fold = np.random.default_rng(0).permutation(validation.right.shape[1]) % FOLDS
    held = [np.flatnonzero(fold == k) for k in range(FOLDS)]
    folds = [(_part(validation, np.flatnonzero(fold != k)), _part(validation, held[k])) for k in range(FOLDS)]
    best = _Candidate((fixed,), stopping_costs(profile, (fixed,)), (1.0,), measures[0])
    alone = validation.right[_row(validation, fixed)]
    most_right = alone.sum()
    for target in (budget, *(share * budget for share in SHARES_OF_BUDGET)):
        for rule in _rules(profile, validation.exits, target, measures):
            thresholds = _thresholds(validation, rule)
            if not _keeps(validation, rule, thresholds, target):
                continue
            if _right(validation, rule.measure, thresholds).sum() <= most_right:
                continue  # no better even on the samples that it was fitted to
            right = np.zeros_like(alone)
            for chosen, (others, part) in zip(held, folds, strict=True):
                right[chosen] = _right(part, rule.measure, _thresholds(others, rule))
            noise = math.sqrt((right != alone).sum()) if target < budget else 0.0
            if right.sum() > max(most_right, alone.sum() + noise):
                best, most_right = rule, right.sum()
        if target == budget and len(best.visited) > 1:
            break
    return best


def _rules(profile: Profile, exits: Sequence[int], budget: float, measures: Sequence[Measure]) -> Iterator[_Candidate]:
    most = MOST_VISITED if len(exits) <= MANY else MOST_VISITED_OF_MANY
    for visits in range(2, min(most, len(exits)) + 1):
        for visited in itertools.combinations(exits, visits):
            costs = stopping_costs(profile, visited)
            if costs[0] < budget < costs[-1]:
                for slope in SLOPES if visits > 2 else SLOPES[:1]:
                    shares = _shares(costs, slope, budget)
                    yield from (_Candidate(visited, costs, shares, measure) for measure in measures)


def _shares(costs: Sequence[float], slope: float, budget: float) -> tuple[float, ...]:
    """Return the shares p_k of slope b that cost `budget`: a by bisection, as the cost falls while a grows."""

    def of(a: float) -> list[float]:
        made, left = [], 1.0
        for k in range(len(costs) - 1):
            stopping = left / (1 + math.exp(-(a + slope * k)))
            made.append(stopping)
            left -= stopping
        return [*made, left]

    low, high = -60.0, 60.0
    for _ in range(80):
        a = (low + high) / 2
        dear = sum(p * C for p, C in zip(of(a), costs, strict=True)) > budget
        low, high = (a, high) if dear else (low, a)
    return tuple(of(high))


def _thresholds(samples: Samples, rule: _Candidate) -> dict[int, float]:
    """Return the thresholds that stop the rule's shares, halfway between the last to stop and the first to pass."""
    size = samples.right.shape[1]
    left = np.arange(size)
    at: dict[int, float] = {}
    passing = 1.0
    for exit, share in zip(rule.visited[:-1], rule.shares, strict=False):
        passing -= share
        sure = samples.sure[rule.measure][_row(samples, exit)][left]
        at[exit] = _between(sure, round(passing * size))
        left = left[sure < np.float32(at[exit])]
    return at | {rule.visited[-1]: 0.0}


def _between(sure: NDArray[np.float32], passing: int) -> float:
    """Return a threshold, exact in float32, below which lie `passing` confidences, or as near as equals allow."""
    if passing >= len(sure):
        return 1.0
    if passing <= 0:
        return 0.0
    low, high = np.partition(sure, (passing - 1, passing))[[passing - 1, passing]]
    middle = np.float32((np.float64(low) + np.float64(high)) / 2)
    if low < middle <= high:
        return float(middle)
    if low < high:
        return float(high)
    fewer, more = int((sure < low).sum()), int((sure <= low).sum())  # equals stay together, to the nearer side
    above = np.nextafter(low, np.float32(2.0))
    return float(above) if more - passing < passing - fewer and above <= 1 else float(low)


def _keeps(samples: Samples, rule: _Candidate, at: dict[int, float], budget: float) -> bool:
    """Tell whether the thresholds come to the budget, which equal confidences can prevent."""
    stopped = stops(samples, rule.measure, at)
    cost = sum(C * (stopped == _row(samples, i)).mean() for i, C in zip(rule.visited, rule.costs, strict=True))
    return abs(cost / budget - 1) <= max(TOLERANCE, rule.costs[-1] / budget / len(stopped))


def _right(samples: Samples, measure: Measure, at: dict[int, float]) -> NDArray[np.bool_]:
    stopped = stops(samples, measure, at)
    return samples.right[stopped, np.arange(len(stopped))]


def _without_idle(samples: Samples, rule: _Candidate, at: dict[int, float]) -> dict[int, float]:
    """Leave out exits at which no sample stops: their critics would run for nothing."""
    stopped = stops(samples, rule.measure, at)
    return {i: t for i, t in at.items() if t == 0.0 or (stopped == _row(samples, i)).any()}


def _reported(
    profile: Profile, test: Samples, budget: float, measure: Measure, at: dict[int, float], fixed: int
) -> Thresholds:
    """Say what a rule comes to on test data."""
    stopped = stops(test, measure, at)
    everyone = np.arange(len(stopped))
    rows = {i: _row(test, i) for i in at}
    by_row = dict(zip(rows.values(), stopping_costs(profile, at), strict=True))
    mean, low, high = statistics.interval(np.array([by_row[row] for row in stopped.tolist()]), "bpc")  # the normal one
    return Thresholds(
        mean_flops=budget,
        measure=measure,
        at=at,
        shares={i: float((stopped == row).mean()) for i, row in rows.items()},
        accuracy=_quality(test.right[stopped, everyone], test.losses[stopped, everyone]),
        cost=MeanCost(flops=mean, low=low, high=high),
        fixed=fixed,
        fixed_accuracy=_quality(test.right[_row(test, fixed)], test.losses[_row(test, fixed)]),
    )


def _quality(right: NDArray[np.bool_], losses: NDArray[np.floating]) -> Quality:
    value, low, high = statistics.interval(right.astype(np.float64), "accuracy")
    return Quality(value=value, low=low, high=high, loss=float(losses.astype(np.float64).mean()), samples=len(right))


def _part(samples: Samples, chosen: NDArray[np.integer]) -> Samples:
    sure: Confidences = {measure: values[:, chosen] for measure, values in samples.sure.items()}
    return Samples(samples.exits, sure, samples.right[:, chosen], samples.losses[:, chosen])


def _row(samples: Samples, exit: int) -> int:
    return samples.exits.index(exit)
