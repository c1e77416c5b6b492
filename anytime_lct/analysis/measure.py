"""Measure a trained network: what its parts cost and what every exit is worth, as a profile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anytime_lct import counting
from anytime_lct.analysis import statistics
from anytime_lct.analysis.temperature import Reliability, Temperatures
from anytime_lct.data.batches import Dataset, Split
from anytime_lct.evaluation import Answers, Evaluation, Witness, evaluate, evaluate_answers
from anytime_lct.exits.profile import CalibrationGap, Exit, Latency, Profile, Quality
from anytime_lct.network import LCTNetwork
from anytime_lct.run_folder.build import example_input
from anytime_lct.stopwatch import REPEATS, machine, median_seconds
from anytime_lct.task import MetricName


def median_latencies(calls: Sequence[Callable[[], object]], repeats: int = REPEATS) -> list[float]:
    """Return the median seconds of each call on one torch thread; the number of threads is put back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return median_seconds(calls, repeats)
    finally:
        torch.set_num_threads(threads)


# Evaluates exits on a split, before witnesses.
Judge = Callable[..., Evaluation]


def judging(network: LCTNetwork, data: Dataset) -> Judge:
    """Return what evaluates every exit of a network on a split of `data`."""

    def judge(split: Split, *witnesses: Witness) -> Evaluation:
        return evaluate(network, data.batches(split), data.facts.task, *witnesses)

    return judge


def judging_answers(answers: Answers, data: Dataset) -> Judge:
    """Return what evaluates the logits that `answers` gives, of exported graphs for instance, on a split of `data`."""

    def judge(split: Split, *witnesses: Witness) -> Evaluation:
        return evaluate_answers(answers, data.batches(split), data.facts.task, *witnesses)

    return judge


def profile(network: LCTNetwork, data: Dataset, model: str) -> Profile:
    """Count, time and evaluate every sub-model of a network, and fit its temperature on the validation split.

    Choices are made on the validation split and the test split is only reported; without a validation split, choices
    fall back to the test split, the profile says so, and temperatures stay 1. Raises AnalysisError for an operator
    without a count.
    """
    facts = data.facts
    example = example_input(facts, batch=1)
    groups, critics = counting.components(list(network.groups), list(network.critics), example)
    worth = _judged(judging(network, data), network.num_groups, data)
    seconds = _latencies(network, example)
    exits = [
        exit.model_copy(update={"latency": Latency(seconds=s, engine="torch", machine=machine())})
        for exit, s in zip(worth.exits(facts.metric, range(1, network.num_groups + 1)), seconds, strict=True)
    ]
    return Profile(
        model=model,
        data=facts.name,
        metric=facts.metric,
        groups=groups,
        critics=critics,
        exits=tuple(exits),
        p_worse=tuple(map(tuple, statistics.p_worse(worth.chosen_on.scores.numpy(), facts.metric))),
        split="validation" if worth.held_out else "test",
    )


def measured_again(profile: Profile, judge: Judge, served: tuple[int, ...], data: Dataset) -> Profile:
    """Return the profile of graphs that stand in for the network: quality, temperatures and p-values of `served`.

    `judge` evaluates the served exits in order. What is said of other exits, and costs, stay.
    """
    worth = _judged(judge, len(served), data)
    found = {exit.index: exit for exit in worth.exits(profile.metric, served)}
    p = [list(row) for row in profile.p_worse]
    for row, i in zip(statistics.p_worse(worth.chosen_on.scores.numpy(), profile.metric), served, strict=True):
        for value, j in zip(row, served, strict=True):
            p[i - 1][j - 1] = value
    exits = tuple(found.get(exit.index, exit) for exit in profile.exits)
    return profile.model_copy(update={"exits": exits, "p_worse": tuple(map(tuple, p))})


@dataclass(frozen=True)
class _Worth:
    """What some exits came to on the splits."""

    held_out: Evaluation | None
    test: Evaluation
    temperatures: list[float]
    calibration: list[CalibrationGap]

    @property
    def chosen_on(self) -> Evaluation:
        return self.held_out or self.test

    def exits(self, metric: MetricName, numbers: range | tuple[int, ...]) -> list[Exit]:
        return [
            Exit(
                index=i,
                validation=_quality(self.held_out, k, metric) if self.held_out else None,
                test=_quality(self.test, k, metric),
                temperature=self.temperatures[k],
                calibration=self.calibration[k],
            )
            for k, i in enumerate(numbers)
        ]


def _judged(judge: Judge, count: int, data: Dataset) -> _Worth:
    """Fit temperatures on the validation split, if there is one, and see on test what they are good for."""
    held_out, temperatures = None, [1.0] * count
    if data.num_samples("validation"):
        fit = Temperatures()
        held_out = judge("validation", fit)
        temperatures = fit.values()
    before, after = Reliability([1.0] * count), Reliability(temperatures)
    test = judge("test", before, after)
    errors = zip(before.errors(), after.errors(), strict=True)
    gaps = [CalibrationGap(before=min(1.0, b), after=min(1.0, a)) for b, a in errors]
    return _Worth(held_out, test, temperatures, gaps)


def _quality(found: Evaluation, i: int, metric: MetricName) -> Quality:
    value, low, high = statistics.interval(found.scores[i].numpy(), metric)
    return Quality(value=value, low=low, high=high, loss=found.mean_losses()[i], samples=found.scores.shape[1])


def _latencies(network: LCTNetwork, example: Tensor) -> list[float]:
    models = [network.sub_model(i).eval() for i in range(1, network.num_groups + 1)]
    with torch.inference_mode():
        return median_latencies([lambda model=model: model(example) for model in models])
