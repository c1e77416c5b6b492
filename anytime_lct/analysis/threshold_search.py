"""Which exits to visit, and how confident each must be, for the best accuracy at a mean cost: searched on validation.

A rule visits exits v_1 < .. < v_m. A sample that stops at v_k costs C_k: groups 1..v_k and the critics of v_1..v_k. Of
the samples that reach v_k the share q_k stops, the most confident first, by the measure of confidence:

    log(q_k / (1 - q_k)) = a + b k,   q_m = 1;      p_k = q_k (1 - q_1) .. (1 - q_{k-1});      sum of p_k C_k = cost

With b = 0 these are the geometric shares of Huang et al., Multi-Scale Dense Networks, 2018; with up to three visited
exits all shares have this form. For every set of exits and every slope b the cost determines a, and the shares
determine the thresholds, as quantiles of confidence: no label is used. An exit that is less accurate than an earlier
one is not visited.

The budget holds for the mean of new samples, not only of these n. A quantile of n samples cuts off its share of all
samples with the error of a mean of n, so the cost is the budget minus 1.96 sd / sqrt(n): the upper end of the 95%
interval of the mean, with the standard deviation at the budget itself (a score interval as Wilson's, sound where few
samples go deep). One rule exceeds the budget on new samples with a probability of 2.5%. The best of many does so more
often, as samples that happen to be easy make a rule look both accurate and cheap: 5% in simulations of this search.

Labels choose exits, slope and measure, among many: the best of them looks better than it is. So the choice is tested
as a whole by cross-validation: choose on four fifths, answer the other fifth, five times, and compare these answers
with those of the best fixed exit on the same samples (McNemar's exact test). Only where they are better by that test
is the rule, chosen on all samples, offered; otherwise every sample stops at the fixed exit. Halves would choose on
too few samples and test on too few; a bound over all candidates would be far too wide, as they are nearly alike.
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
from anytime_lct.analysis.measure import Evaluator
from anytime_lct.data.batches import Split
from anytime_lct.errors import NothingFitsError
from anytime_lct.evaluation import Evaluation
from anytime_lct.exits.budget import check_positive, show_count
from anytime_lct.exits.profile import Profile, Quality
from anytime_lct.exits.selector import SIGNIFICANCE
from anytime_lct.exits.thresholds import MEASURES, MeanCost, Measure, Thresholds
from anytime_lct.runtime.confidence import confidence

SLOPES = (0.0, 0.5, -0.5, 1.0, -1.0, 1.5, -1.5, 2.0, -2.0, 3.0, -3.0)
# A rule visits at most so many exits, fewer in a network of many exits, which has too many sets of them.
MAX_VISITED, MAX_VISITED_OF_MANY, MANY = 4, 3, 8
FOLDS = 5
Confidences = dict[Measure, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Samples:
    """The outputs of `exits` on the S samples of a split; row k of every array is exit `exits[k]`.

    `confidences` are by measure, float32 (N, S); `correct` is bool, `losses` in nats, both (N, S).
    """

    exits: tuple[int, ...]
    confidences: Confidences
    correct: NDArray[np.bool_]
    losses: NDArray[np.floating]


@dataclass(frozen=True)
class _Candidate:
    """Visited exits, the cost of stopping at each, and the share of the samples that stops there."""

    visited: tuple[int, ...]
    costs: tuple[float, ...]
    shares: tuple[float, ...]
    measure: Measure


def collect(evaluator: Evaluator, split: Split, exits: Sequence[int], temperatures: Sequence[float]) -> Samples:
    """Evaluate `exits` on a split and collect the confidence of each in every sample; `temperatures` divide the logits.

    >>> evaluator = network_evaluator(network, data)                                          # doctest: +SKIP
    >>> collect(evaluator, "validation", (1, 2, 3), (1.2, 1.1, 1.3)).correct.shape            # doctest: +SKIP
    (3, 6000)
    """
    by_measure: dict[Measure, list[NDArray[np.float32]]] = {measure: [] for measure in MEASURES}

    def observer(outputs: Sequence[Tensor], y: Tensor) -> None:
        logits = [Z.float().cpu().numpy() for Z in outputs]
        for measure, parts in by_measure.items():
            parts.append(np.stack([confidence(z, measure, T) for z, T in zip(logits, temperatures, strict=True)]))

    evaluation: Evaluation = evaluator(split, observer)
    confidences: Confidences = {measure: np.concatenate(parts, axis=1) for measure, parts in by_measure.items()}
    return Samples(tuple(exits), confidences, evaluation.scores.numpy() > 0, evaluation.losses.numpy())


def search(
    profile: Profile,
    validation: Samples,
    test: Samples,
    mean_flops: float,
    measures: Sequence[Measure] = MEASURES,
) -> Thresholds:
    """Search the rule of the best accuracy at a mean cost of `mean_flops`, on validation; report it on test.

    Where no rule is significantly better than the best fixed exit within the budget, the rule is to stop there. Raises
    NothingFitsError for a budget below the cheapest exit, and BudgetError.

    >>> search(profile, validation, test, 20e6).at                                            # doctest: +SKIP
    {1: 0.9725, 2: 0.8816, 4: 0.0}
    """
    check_positive(mean_flops, "a mean budget")
    fitting = [i for i in validation.exits if profile.cost(i).flops <= mean_flops]
    if not fitting:
        cheapest = min(validation.exits, key=lambda i: profile.cost(i).flops)
        raise NothingFitsError(
            f"Expected a mean budget of at least the cheapest exit, got {show_count(mean_flops)} FLOPs; exit "
            f"{cheapest} needs {show_count(profile.cost(cheapest).flops)} FLOPs."
        )
    fixed = max(fitting, key=lambda i: (validation.correct[_row(validation, i)].mean(), -profile.cost(i).flops))
    size = validation.correct.shape[1]
    rule = _best(validation, _rules(profile, validation.exits, mean_flops, measures, size), fixed)
    if rule is None:
        return _report(profile, test, mean_flops, measures[0], {fixed: 0.0}, fixed)
    rules = _rules(profile, validation.exits, mean_flops, measures, size * (FOLDS - 1) // FOLDS)
    p_value = _p_value(validation, rules, fixed)
    at = {fixed: 0.0} if p_value >= SIGNIFICANCE else _without_unused(validation, rule, _thresholds(validation, rule))
    return _report(profile, test, mean_flops, rule.measure, at, fixed, p_value)


def stopping_rows(samples: Samples, measure: Measure, thresholds: dict[int, float]) -> NDArray[np.intp]:
    """Return, for every sample, the row of the exit where a rule stops it.

    >>> stopping_rows(samples, "margin", {1: 0.8, 3: 0.0}).tolist()                           # doctest: +SKIP
    [0, 2, 0, 0]
    """
    rows = np.full(samples.correct.shape[1], -1)
    for exit, threshold in thresholds.items():
        row = _row(samples, exit)
        rows[(rows < 0) & (samples.confidences[measure][row] >= np.float32(threshold))] = row
    return rows


def stopping_costs(profile: Profile, visited: Iterable[int]) -> tuple[float, ...]:
    """Return the multiply-adds of a sample that stops at each visited exit: groups up to it, and visited critics."""
    costs, critics = [], 0
    for i in visited:
        critics += profile.critics[i - 1].flops if i < profile.num_groups else 0
        costs.append(float(sum(cost.flops for cost in profile.groups[:i]) + critics))
    return tuple(costs)


def _best(samples: Samples, rules: Iterable[_Candidate], fixed: int) -> _Candidate | None:
    """Return the most accurate rule on these samples, the first among equals; None where the fixed exit is as good."""
    best, best_sum, sums = None, samples.correct[_row(samples, fixed)].sum(), samples.correct.sum(axis=1)
    worse = {
        i for i, own, highest in zip(samples.exits, sums, np.maximum.accumulate(sums), strict=True) if own < highest
    }
    for rule in rules:
        if worse.isdisjoint(rule.visited):
            correct_sum = _correct(samples, rule.measure, _thresholds(samples, rule)).sum()
            if correct_sum > best_sum:
                best, best_sum = rule, correct_sum
    return best


def _p_value(validation: Samples, rules: Iterable[_Candidate], fixed: int) -> float:
    """Return the one-sided p-value of "the best of the rules is no better than the fixed exit", cross-validated."""
    fold = np.random.default_rng(0).permutation(validation.correct.shape[1]) % FOLDS
    correct_fixed = validation.correct[_row(validation, fixed)]
    correct, rules = correct_fixed.copy(), tuple(rules)
    for k in range(FOLDS):
        fitting, held_out = _subset(validation, np.flatnonzero(fold != k)), np.flatnonzero(fold == k)
        rule = _best(fitting, rules, fixed)
        if rule is not None:
            correct[held_out] = _correct(_subset(validation, held_out), rule.measure, _thresholds(fitting, rule))
    return statistics.p_worse(np.stack([correct_fixed, correct]), "accuracy")[0][1]


def _rules(
    profile: Profile, exits: Sequence[int], budget: float, measures: Sequence[Measure], size: int
) -> Iterator[_Candidate]:
    """Yield the rules whose mean cost holds the budget on new samples, when searched on `size`."""
    max_visited = MAX_VISITED if len(exits) <= MANY else MAX_VISITED_OF_MANY
    for count in range(2, min(max_visited, len(exits)) + 1):
        for visited in itertools.combinations(exits, count):
            costs = stopping_costs(profile, visited)
            if costs[0] < budget < costs[-1]:
                for slope in SLOPES if count > 2 else SLOPES[:1]:
                    cost = budget - statistics.margin(_deviation(costs, _shares(costs, slope, budget)), size)
                    if cost > costs[0]:
                        shares = _shares(costs, slope, cost)
                        yield from (_Candidate(visited, costs, shares, measure) for measure in measures)


def _deviation(costs: Sequence[float], shares: Sequence[float]) -> float:
    """Return the standard deviation of the cost of a sample."""
    return math.sqrt(max(0.0, float(np.dot(shares, np.square(costs)) - np.dot(shares, costs) ** 2)))


def _shares(costs: Sequence[float], slope: float, cost: float) -> tuple[float, ...]:
    """Return the shares p_k of slope b whose mean is `cost`: a by bisection, as the mean falls while a grows."""

    def shares_of(a: float) -> list[float]:
        shares, remaining = [], 1.0
        for k in range(len(costs) - 1):
            shares.append(remaining / (1 + math.exp(-(a + slope * k))))
            remaining -= shares[-1]
        return [*shares, remaining]

    low, high = -60.0, 60.0
    for _ in range(50):
        a = (low + high) / 2
        too_expensive = sum(p * C for p, C in zip(shares_of(a), costs, strict=True)) > cost
        low, high = (a, high) if too_expensive else (low, a)
    return tuple(shares_of(high))


def _thresholds(samples: Samples, rule: _Candidate) -> dict[int, float]:
    """Return the thresholds that stop the rule's shares, halfway between the last to stop and the first to pass."""
    size = samples.correct.shape[1]
    remaining = np.arange(size)
    thresholds: dict[int, float] = {}
    passing = 1.0
    for exit, share in zip(rule.visited[:-1], rule.shares, strict=False):
        passing -= share
        confidences = samples.confidences[rule.measure][_row(samples, exit)][remaining]
        thresholds[exit] = threshold_between(confidences, int(passing * size + 1e-6))
        remaining = remaining[confidences < np.float32(thresholds[exit])]
    return thresholds | {rule.visited[-1]: 0.0}


def threshold_between(confidences: NDArray[np.float32], passing: int) -> float:
    """Return a threshold, exact in float32, with `passing` confidences below it, or fewer where some are equal."""
    if passing >= len(confidences):
        return 1.0
    if passing <= 0:
        return 0.0
    low, high = np.partition(confidences, (passing - 1, passing))[[passing - 1, passing]]
    middle = np.float32((np.float64(low) + np.float64(high)) / 2)
    return float(middle) if low < middle <= high else float(high)


def _correct(samples: Samples, measure: Measure, thresholds: dict[int, float]) -> NDArray[np.bool_]:
    rows = stopping_rows(samples, measure, thresholds)
    return samples.correct[rows, np.arange(len(rows))]


def _without_unused(samples: Samples, rule: _Candidate, thresholds: dict[int, float]) -> dict[int, float]:
    """Remove exits at which no sample stops: their critics would run for nothing."""
    rows = stopping_rows(samples, rule.measure, thresholds)
    return {i: t for i, t in thresholds.items() if t == 0.0 or (rows == _row(samples, i)).any()}


def _report(
    profile: Profile,
    test: Samples,
    budget: float,
    measure: Measure,
    thresholds: dict[int, float],
    fixed: int,
    p_value: float | None = None,
) -> Thresholds:
    """Evaluate a rule on test data."""
    rows = stopping_rows(test, measure, thresholds)
    columns = np.arange(len(rows))
    row_of = {i: _row(test, i) for i in thresholds}
    cost_of = dict(zip(row_of.values(), stopping_costs(profile, thresholds), strict=True))
    mean, low, high = statistics.mean_interval(np.array([cost_of[row] for row in rows.tolist()], np.float64))
    return Thresholds(
        mean_flops=budget,
        measure=measure,
        at=thresholds,
        shares={i: float((rows == row).mean()) for i, row in row_of.items()},
        accuracy=_quality(test.correct[rows, columns], test.losses[rows, columns]),
        cost=MeanCost(flops=mean, low=low, high=high),
        fixed=fixed,
        fixed_accuracy=_quality(test.correct[_row(test, fixed)], test.losses[_row(test, fixed)]),
        p_value=p_value,
    )


def _quality(correct: NDArray[np.bool_], losses: NDArray[np.floating]) -> Quality:
    value, low, high = statistics.interval(correct.astype(np.float64), "accuracy")
    return Quality(value=value, low=low, high=high, loss=float(losses.astype(np.float64).mean()), samples=len(correct))


def _subset(samples: Samples, indices: NDArray[np.integer]) -> Samples:
    confidences: Confidences = {measure: values[:, indices] for measure, values in samples.confidences.items()}
    return Samples(samples.exits, confidences, samples.correct[:, indices], samples.losses[:, indices])


def _row(samples: Samples, exit: int) -> int:
    return samples.exits.index(exit)
