"""Measure a trained network: what its parts cost and what every exit is worth, as a profile."""

from __future__ import annotations

import torch
from torch import Tensor

from anytime_lct.analysis import complexity, latency, statistics
from anytime_lct.data import Dataset
from anytime_lct.evaluation import Evaluation, evaluate
from anytime_lct.network import LCTNetwork
from anytime_lct.profile import Exit, Latency, Profile, Quality
from anytime_lct.run_folder import example_input
from anytime_lct.task import MetricName


def profile(network: LCTNetwork, data: Dataset, model: str) -> Profile:
    """Count, time and evaluate every sub-model of a network.

    Choices are made on the validation split and the test split is only reported; without a validation split, choices
    fall back to the test split, and the profile says so. Raises AnalysisError for an operator without a count.
    """
    facts = data.facts
    example = example_input(facts, batch=1)
    groups, critics = complexity.components(list(network.groups), list(network.critics), example)
    test = evaluate(network, data.batches("test"), facts.task)
    held_out = evaluate(network, data.batches("validation"), facts.task) if data.num_samples("validation") else None
    chosen_on = held_out or test
    seconds = _latencies(network, example)
    exits = [
        Exit(
            index=i + 1,
            validation=_quality(held_out, i, facts.metric) if held_out else None,
            test=_quality(test, i, facts.metric),
            latency=Latency(seconds=seconds[i], engine="torch", machine=latency.machine()),
        )
        for i in range(network.num_groups)
    ]
    return Profile(
        model=model,
        data=facts.name,
        metric=facts.metric,
        groups=groups,
        critics=critics,
        exits=tuple(exits),
        p_worse=tuple(map(tuple, statistics.p_worse(chosen_on.scores.numpy(), facts.metric))),
        split="validation" if held_out else "test",
    )


def _quality(found: Evaluation, i: int, metric: MetricName) -> Quality:
    value, low, high = statistics.interval(found.scores[i].numpy(), metric)
    return Quality(value=value, low=low, high=high, loss=found.mean_losses()[i], samples=found.scores.shape[1])


def _latencies(network: LCTNetwork, example: Tensor) -> list[float]:
    models = [network.sub_model(i).eval() for i in range(1, network.num_groups + 1)]
    with torch.inference_mode():
        return latency.median_latencies([lambda model=model: model(example) for model in models])
