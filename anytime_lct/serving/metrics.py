"""The metrics of the server, for Prometheus and for its own page.

Each process counts for itself, in its memory. Several processes that serve together send each other their values, and
each reports the sums of all: `text` and `statistics` take them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from anytime_lct.exits.budget import StopReason
from anytime_lct.serving.counters import OUTCOMES, SECONDS, Durations, ModelCounters

Values = dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]]
"""Values of metrics by the metric's name, the sample's name and its labels."""
CONTENT_TYPE = CONTENT_TYPE_LATEST
HANGING = "anytime_lct_hanging"
Counts = Callable[[ModelCounters], Mapping[str, int] | Mapping[int, int] | Mapping[StopReason, int]]
# Name, description, label of the values, values.
COUNTERS: tuple[tuple[str, str, str, Counts], ...] = (
    (
        "requests",
        f"Requests by outcome: {', '.join(f'{outcome} ({meaning})' for outcome, meaning in OUTCOMES.items())}.",
        "outcome",
        lambda each: each.outcomes,
    ),
    ("deadlines", "Answers to requests with a deadline, by whether it was kept.", "kept", lambda each: each.kept),
    ("exits", "Samples by the exit that answered them.", "exit", lambda each: each.exits),
    ("stopped", "Answers by the reason why no deeper exit was computed.", "why", lambda each: each.stopped),
)
# Name, description, seconds.
TIMES: tuple[tuple[str, str, Callable[[ModelCounters], Durations]], ...] = (
    ("request", "Seconds from a request's arrival until its answer is written.", lambda each: each.latency),
    ("queue", "Seconds that an answered request waited.", lambda each: each.queued),
    ("compute", "Seconds of computing an answer.", lambda each: each.computed),
)


class Metrics:
    """The counters of the server, labelled by model and version.

    >>> metrics = Metrics()
    >>> metrics.counters("digits", "1", (1, 2)).outcomes["shed"] += 1
    """

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        ProcessCollector(registry=own)
        self._counters = _Counters()
        own.register(self._counters)
        self.queue = Gauge("anytime_lct_queue_length", "Requests admitted and not started.", registry=own)
        self.in_flight = Gauge("anytime_lct_in_flight", "Requests being read or answered.", registry=own)
        self.memory = Gauge("anytime_lct_held_bytes", "Bytes that the requests hold now.", registry=own)
        self.hanging = Gauge(HANGING, "Requests whose computation hangs.", registry=own)
        self.restarts = Counter("anytime_lct_worker_restarts", "Worker processes that were replaced.", registry=own)
        self._reloads = Counter(
            "anytime_lct_reloads", "Times that bundles were read again, by outcome.", ("outcome",), registry=own
        )
        for outcome in ("done", "failed"):
            self._reloads.labels(outcome)  # 0, from which Prometheus sees the first one as a rise
        self._reloaded = Gauge(
            "anytime_lct_last_reload_timestamp_seconds",
            "When bundles were last read again, in Unix time.",
            registry=own,
        )

    def counters(self, model: str, version: str, exits: tuple[int, ...]) -> ModelCounters:
        """Return the counters of a model that serves these exits."""
        return self._counters.of(model, version, exits)

    @contextmanager
    def count_reload(self) -> Iterator[None]:
        """Count what is done inside as a reload, which fails where it raises."""
        outcome = "failed"
        try:
            yield
            outcome = "done"
            self._reloaded.set_to_current_time()
        finally:
            self._reloads.labels(outcome).inc()

    def values(self) -> Values:
        """Return the values of this process."""
        return {
            metric.name: {
                (sample.name, tuple(sample.labels.items())): sample.value
                for sample in metric.samples
                if not sample.name.endswith("_created")
            }
            for metric in self._registry.collect()
        }

    def text(self, values: Values) -> bytes:
        """Return values in the text format of Prometheus."""
        return generate_latest(_Reported(self._registry, values))

    def statistics(self, model: str, version: str, exits: tuple[int, ...], values: Values) -> dict[str, Any]:
        """Return a model's counts in the form of the protocol's statistics extension, with ours under "anytime"."""
        # By the sample's name and the values of its labels, which are in alphabetical order.
        sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
        for samples in values.values():
            sums.update(
                {(name, *(text for _, text in sorted(labels))): value for (name, labels), value in samples.items()}
            )

        def spent(name: str) -> dict[str, int]:
            metric = f"anytime_lct_{name}_seconds"
            count, seconds = sums[f"{metric}_count", model, version], sums[f"{metric}_sum", model, version]
            return {"count": int(count), "ns": round(seconds * 1e9)}

        def requests(outcome: str) -> int:
            return int(sums["anytime_lct_requests_total", model, outcome, version])

        zero = {"count": 0, "ns": 0}
        answered = {str(exit): int(sums["anytime_lct_exits_total", str(exit), model, version]) for exit in exits}
        kept, missed = (int(sums["anytime_lct_deadlines_total", value, model, version]) for value in ("true", "false"))
        return {
            "name": model,
            "version": version,
            "inference_count": sum(answered.values()),
            "execution_count": requests("answered"),
            "inference_stats": {
                "success": spent("request"),
                "fail": {"count": sum(map(requests, OUTCOMES.keys() - {"answered"})), "ns": 0},
                "queue": spent("queue"),
                "compute_input": zero,
                "compute_infer": spent("compute"),
                "compute_output": zero,
            },
            "batch_stats": [],
            "anytime": {
                "requests": {outcome: requests(outcome) for outcome in OUTCOMES},
                "deadlines": {"kept": kept, "missed": missed},
                "exits": answered,
                "queue_length": int(sums["anytime_lct_queue_length",]),
                "in_flight": int(sums["anytime_lct_in_flight",]),
            },
        }


class _Counters(Collector):
    """The counters of all models, by name and version."""

    def __init__(self) -> None:
        self._counters: dict[tuple[str, str], ModelCounters] = {}
        self._with_exits: dict[tuple[str, str, tuple[int, ...]], ModelCounters] = {}

    def of(self, model: str, version: str, exits: tuple[int, ...]) -> ModelCounters:
        """Return the counters of a model that serves these exits."""
        if (counters := self._with_exits.get((model, version, exits))) is None:
            counters = self._counters.setdefault((model, version), ModelCounters())
            counters.exits = dict.fromkeys(exits, 0) | counters.exits
            self._with_exits[model, version, exits] = counters
        return counters

    def collect(self) -> Iterator[Metric]:
        """Return the metrics of all models in the form of Prometheus."""
        counters, labels = self._counters, ("model", "version")
        for name, description, label, counts in COUNTERS:
            family = CounterMetricFamily(f"anytime_lct_{name}", description, labels=(*labels, label))
            for names, each in counters.items():
                for value, count in counts(each).items():
                    family.add_metric((*names, str(value)), count)
            yield family
        for name, description, times_of in TIMES:
            family = HistogramMetricFamily(f"anytime_lct_{name}_seconds", description, labels=labels)
            for names, each in counters.items():
                times = times_of(each)
                bounds = [*map(str, SECONDS), "+Inf"]
                family.add_metric(names, list(zip(bounds, accumulate(times.counts), strict=True)), times.sum)
            yield family


# Of these the smallest value is reported: when the first process started, and how many files each may open.
LEAST = {"process_start_time_seconds", "process_max_fds"}
# Of a process that has ended these no longer count.
PASSING = LEAST | {
    "anytime_lct_queue_length", "anytime_lct_in_flight", "anytime_lct_held_bytes", HANGING, "process_open_fds",
    "process_virtual_memory_bytes", "process_resident_memory_bytes",
}  # fmt: skip


def add(many: Iterable[Values]) -> Values:
    """Return the values of several processes together."""
    totals: Values = {}
    for values in many:
        for metric, samples in values.items():
            total = totals.setdefault(metric, {})
            for key, value in samples.items():
                total[key] = min(total.get(key, value), value) if metric in LEAST else total.get(key, 0.0) + value
    return totals


def is_hanging(values: Values) -> bool:
    """Return whether a computation hangs in the process of these values."""
    return any(number > 0.0 for number in values.get(HANGING, {}).values())


def lasting(values: Values) -> Values:
    """Return the values that still count when their process has ended."""
    return {metric: samples for metric, samples in values.items() if metric not in PASSING}


class _Reported(Collector):
    """The metrics of a registry with other values."""

    def __init__(self, registry: CollectorRegistry, values: Values) -> None:
        self._registry, self._values = registry, values

    def collect(self) -> Iterator[Metric]:
        for own in self._registry.collect():
            metric = Metric(own.name, own.documentation, own.type)
            for (name, labels), value in self._values.get(own.name, {}).items():
                metric.add_sample(name, dict(labels), value)
            yield metric
