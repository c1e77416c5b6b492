"""What the server counts, for Prometheus and for its own page; all worker processes count into one set.

With several workers the environment variable PROMETHEUS_MULTIPROC_DIR names a folder before this is imported,
and every process reads the sums of all.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from anytime_lct.serving.request import Reply

SHARED = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.35, 0.5, 1.0, 2.0, 5.0, 10.0)
OUTCOMES = ("answered", "refused", "shed", "gone", "failed")


@dataclass(frozen=True, eq=False)
class Counted:
    """The counters of one model, looked up once."""

    outcomes: dict[str, Counter]
    latency: Histogram
    queued: Histogram
    computed: Histogram
    kept: Counter
    missed: Counter
    exits: dict[int, Counter]
    stopped: Counter
    model: str
    version: str

    def answered(self, reply: Reply, seconds: float, timeout: float | None) -> None:
        """Count an answer that was written so many seconds after its request came, with or without a timeout."""
        self.outcomes["answered"].inc()
        self.latency.observe(seconds)
        self.queued.observe(reply.queued)
        self.computed.observe(reply.computed)
        self.stopped.labels(self.model, self.version, reply.answer.stopped).inc()
        if timeout is not None:
            (self.kept if seconds <= timeout else self.missed).inc()
        for exit in reply.answer.exits.tolist():
            self.exits[exit].inc()


class Metrics:
    """Counters of the server, labelled by model and version.

    >>> metrics = Metrics()
    >>> metrics.of("digits", "1", (1, 2)).outcomes["shed"].inc()
    """

    def __init__(self) -> None:
        own = CollectorRegistry()
        self._registry = CollectorRegistry() if SHARED in os.environ else own
        if self._registry is not own:
            MultiProcessCollector(self._registry)

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"anytime_lct_{name}", what, ("model", "version", *labels), registry=own)

        def histogram(name: str, what: str) -> Histogram:
            labels = ("model", "version")
            return Histogram(f"anytime_lct_{name}_seconds", what, labels, buckets=SECONDS, registry=own)

        self._requests = counter("requests", f"Requests by outcome: {', '.join(OUTCOMES)}.", "outcome")
        self._latency = histogram("request", "Seconds from a request's arrival until its answer is written.")
        self._queued = histogram("queue", "Seconds that an answered request waited.")
        self._computed = histogram("compute", "Seconds in which an answer was computed.")
        self._deadlines = counter("deadlines", "Answers to requests with a deadline, by whether it was kept.", "kept")
        self._exits = counter("exits", "Samples by the exit that answered them.", "exit")
        self._stopped = counter("stopped", "Answers by why no deeper exit was computed.", "why")
        self.queue = Gauge(
            "anytime_lct_queue_length", "Requests admitted and not begun.", registry=own, multiprocess_mode="livesum"
        )
        self.in_flight = Gauge(
            "anytime_lct_in_flight", "Requests being read or answered.", registry=own, multiprocess_mode="livesum"
        )
        self._known: dict[tuple[str, str, tuple[int, ...]], Counted] = {}

    def of(self, model: str, version: str, exits: tuple[int, ...]) -> Counted:
        """Return the counters of a model that serves these exits."""
        if (found := self._known.get((model, version, exits))) is None:
            own = (model, version)
            found = self._known[model, version, exits] = Counted(
                {outcome: self._requests.labels(*own, outcome) for outcome in OUTCOMES},
                self._latency.labels(*own),
                self._queued.labels(*own),
                self._computed.labels(*own),
                self._deadlines.labels(*own, "true"),
                self._deadlines.labels(*own, "false"),
                {exit: self._exits.labels(*own, str(exit)) for exit in exits},
                self._stopped,
                *own,
            )
        return found

    def text(self) -> bytes:
        """Write all of them as Prometheus reads them."""
        return generate_latest(self._registry)

    def sums(self) -> Sums:
        """Return what was counted so far, of all processes."""
        found: Sums = defaultdict(float)
        for metric in self._registry.collect():
            for sample in metric.samples:
                if not sample.name.endswith(("_bucket", "_created")):
                    found[(sample.name, *(sample.labels[key] for key in sorted(sample.labels)))] += sample.value
        return found

    def statistics(self, model: str, version: str, exits: tuple[int, ...]) -> dict[str, Any]:
        """Return a model's counts as the protocol's statistics extension has them, and behind them our own."""
        found = self.sums()

        def spent(name: str) -> dict[str, int]:
            of = f"anytime_lct_{name}_seconds"
            count, seconds = found[f"{of}_count", model, version], found[f"{of}_sum", model, version]
            return {"count": int(count), "ns": round(seconds * 1e9)}

        def requests(outcome: str) -> int:
            return int(found["anytime_lct_requests_total", model, outcome, version])

        nothing = {"count": 0, "ns": 0}
        answered = {str(exit): int(found["anytime_lct_exits_total", str(exit), model, version]) for exit in exits}
        kept, missed = (int(found["anytime_lct_deadlines_total", word, model, version]) for word in ("true", "false"))
        return {
            "name": model,
            "version": version,
            "inference_count": sum(answered.values()),
            "execution_count": requests("answered"),
            "inference_stats": {
                "success": spent("request"),
                "fail": {"count": sum(map(requests, OUTCOMES[1:])), "ns": 0},
                "queue": spent("queue"),
                "compute_input": nothing,
                "compute_infer": spent("compute"),
                "compute_output": nothing,
            },
            "batch_stats": [],
            "anytime": {
                "requests": {outcome: requests(outcome) for outcome in OUTCOMES},
                "deadlines": {"kept": kept, "missed": missed},
                "exits": answered,
                "queue_length": int(found["anytime_lct_queue_length",]),
                "in_flight": int(found["anytime_lct_in_flight",]),
            },
        }


# Values by the sample's name and its labels' values, labels in alphabetical order.
Sums = defaultdict[tuple[str, ...], float]
