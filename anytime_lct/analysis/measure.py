"""Measure a trained network: the cost of its parts and the quality of every exit, as a profile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anytime_lct.analysis import statistics
from anytime_lct.analysis.temperature import Reliability, Temperatures
from anytime_lct.counting import component_costs
from anytime_lct.data.batches import Dataset, Split
from anytime_lct.evaluation import Evaluation, Observer, Predictor, evaluate, evaluate_predictor
from anytime_lct.exits.profile import CalibrationGap, Exit, Latency, Profile, Quality
from anytime_lct.network import LCTNetwork
from anytime_lct.run_folder.build import example_input
from anytime_lct.stopwatch import REPEATS, machine, median_seconds
from anytime_lct.task import Facts


def median_latencies(calls: Sequence[Callable[[], object]], repeats: int = REPEATS) -> list[float]:
    """Return the median seconds of each call on one torch thread; the number of threads is restored."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return median_seconds(calls, repeats)
    finally:
        torch.set_num_threads(threads)


# Evaluates exits on a split: (split, *observers) -> Evaluation.
Evaluator = Callable[..., Evaluation]


def network_evaluator(network: LCTNetwork, data: Dataset) -> Evaluator:
    """Return a function that evaluates every exit of a network on a split of `data`."""

    def evaluator(split: Split, *observers: Observer) -> Evaluation:
        return evaluate(network, data.batches(split), data.facts.task, *observers)

    return evaluator


def predictor_evaluator(predictor: Predictor, data: Dataset) -> Evaluator:
    """Return a function that evaluates a predictor, which answers as exported graphs do, on a split of `data`."""

    def standardised(x: Tensor) -> list[Tensor]:
        return [data.facts.standardised(Z) for Z in predictor(x)]

    def evaluator(split: Split, *observers: Observer) -> Evaluation:
        return evaluate_predictor(standardised, data.batches(split), data.facts.task, *observers)

    return evaluator


def profile(network: LCTNetwork, data: Dataset, model: str) -> Profile:
    """Count, time and evaluate every sub-model of a network, and fit its temperature on the validation split.

    Choices are made on the validation split, and the test split is only reported. Without a validation split choices
    are made on the test split, the profile says so, and temperatures stay 1. Raises AnalysisError for an operator
    without a count.
    """
    facts = data.facts
    example = example_input(facts, batch=1)
    groups, critics = component_costs(list(network.groups), list(network.critics), example)
    results = _evaluated(network_evaluator(network, data), network.num_groups, data)
    seconds = _latencies(network, example)
    exits = [
        exit.model_copy(update={"latency": Latency(seconds=s, engine="torch", machine=machine())})
        for exit, s in zip(results.exits(range(1, network.num_groups + 1)), seconds, strict=True)
    ]
    return Profile(
        model=model,
        data=facts.name,
        metric=facts.metric,
        groups=groups,
        critics=critics,
        exits=tuple(exits),
        p_worse=tuple(map(tuple, statistics.p_worse(results.choosing.scores.numpy(), facts.metric))),
        split="validation" if results.validation else "test",
    )


def remeasure(profile: Profile, evaluator: Evaluator, served: tuple[int, ...], data: Dataset) -> Profile:
    """Return the profile of graphs that replace the network: quality, temperatures and p-values of `served` are new.

    `evaluator` evaluates the served exits in order. Other exits, and costs, are unchanged.
    """
    results = _evaluated(evaluator, len(served), data)
    remeasured = {exit.index: exit for exit in results.exits(served)}
    p = [list(row) for row in profile.p_worse]
    for row, i in zip(statistics.p_worse(results.choosing.scores.numpy(), profile.metric), served, strict=True):
        for value, j in zip(row, served, strict=True):
            p[i - 1][j - 1] = value
    exits = tuple(remeasured.get(exit.index, exit) for exit in profile.exits)
    return profile.model_copy(update={"exits": exits, "p_worse": tuple(map(tuple, p))})


@dataclass(frozen=True)
class _Results:
    """Evaluations of some exits on both splits, and their temperatures, where they have probabilities."""

    facts: Facts
    validation: Evaluation | None
    test: Evaluation
    temperatures: list[float]
    calibration: list[CalibrationGap | None]

    @property
    def choosing(self) -> Evaluation:
        """The evaluation that choices are based on."""
        return self.validation or self.test

    def exits(self, numbers: range | tuple[int, ...]) -> list[Exit]:
        return [
            Exit(
                index=i,
                validation=self._quality(self.validation, k) if self.validation else None,
                test=self._quality(self.test, k),
                temperature=self.temperatures[k],
                calibration=self.calibration[k],
            )
            for k, i in enumerate(numbers)
        ]

    def _quality(self, evaluation: Evaluation, row: int) -> Quality:
        scores, scale = evaluation.scores[row].numpy(), self.facts.scale
        value, low, high = (scale * number for number in statistics.interval(scores, self.facts.metric))
        return Quality(value=value, low=low, high=high, loss=evaluation.mean_losses()[row], samples=len(scores))


def _evaluated(evaluator: Evaluator, count: int, data: Dataset) -> _Results:
    """Fit temperatures on the validation split, if there is one, and measure calibration on test before and after.

    Outputs that are numbers have neither.
    """
    validation, temperatures = None, [1.0] * count
    if data.facts.row.is_numbers:
        validation = evaluator("validation") if data.num_samples("validation") else None
        return _Results(data.facts, validation, evaluator("test"), temperatures, [None] * count)
    if data.num_samples("validation"):
        fit = Temperatures()
        validation = evaluator("validation", fit)
        temperatures = fit.values()
    before, after = Reliability([1.0] * count), Reliability(temperatures)
    test = evaluator("test", before, after)
    errors = zip(before.errors(), after.errors(), strict=True)
    gaps: list[CalibrationGap | None] = [CalibrationGap(before=min(1.0, b), after=min(1.0, a)) for b, a in errors]
    return _Results(data.facts, validation, test, temperatures, gaps)


def _latencies(network: LCTNetwork, example: Tensor) -> list[float]:
    models = [network.sub_model(i).eval() for i in range(1, network.num_groups + 1)]
    with torch.inference_mode():
        return median_latencies([lambda model=model: model(example) for model in models])
