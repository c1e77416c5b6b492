"""What a process counts of every model: plain numbers, counted up in its event loop."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import get_args

from anytime_lct.exits.budget import StopReason
from anytime_lct.serving.request import Reply

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.35, 0.5, 1.0, 2.0, 5.0, 10.0)
OUTCOMES = {
    "answered": "on time or late",
    "refused": "wrong, or not allowed",
    "shed": "no time or memory left",
    "gone": "the client left",
    "failed": "the server's fault",
}


class Durations:
    """Numbers of times up to each of SECONDS, and of longer ones."""

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count a time."""
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.sum += seconds


@dataclass(eq=False)
class ModelCounters:
    """The counters of one model."""

    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    latency: Durations = field(default_factory=Durations)
    queued: Durations = field(default_factory=Durations)
    computed: Durations = field(default_factory=Durations)
    kept: dict[str, int] = field(default_factory=lambda: {"true": 0, "false": 0})
    exits: dict[int, int] = field(default_factory=dict[int, int])
    stopped: dict[StopReason, int] = field(default_factory=lambda: dict.fromkeys(get_args(StopReason), 0))

    def count_reply(self, reply: Reply, seconds: float, timeout: float | None) -> None:
        """Count a reply that was written `seconds` after its request arrived."""
        self.outcomes["answered"] += 1
        self.latency.observe(seconds)
        self.queued.observe(reply.queued)
        self.computed.observe(reply.computed)
        self.stopped[reply.answer.stopped] += 1
        if timeout is not None:
            self.kept["true" if seconds <= timeout else "false"] += 1
        for exit in reply.answer.exits.tolist():
            self.exits[exit] += 1
