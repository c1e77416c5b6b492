"""Predicted times of a request's next parts: the calibrated times, corrected by what is observed since.

Every group and critic has a ratio of observed to calibrated time, which follows changes: a slower clock, a second
request on the other core, a group that has become slow. The overhead is what a request takes besides its parts, to be
queued, scheduled and answered: little, but paid by every request in a queue. What neither predicts, for instance a core
that another process takes for some milliseconds, is the overshoot of a prediction: the slack is the worst recent one.
"""

from __future__ import annotations

from bisect import bisect_left
from operator import mul
from typing import NamedTuple

import numpy as np

from anytime_lct.runtime.timings import Timings

# The fraction by which an estimate moves towards an observation: faster up, where a part is slow, than down.
RATE_UP, RATE_DOWN = 0.2, 0.05
MIN_OVERHEAD = 0.0001
# The slack halves in some 7,000 predictions that hold: in seconds on a busy server, which loses a time slice about as
# often.
DECAY = 0.9999
MAX_CACHED_SIZES = 1024


class _Parts(NamedTuple):
    """A number for every group, and for every critic, 0 behind the last group."""

    groups: list[float]
    critics: list[float]


class Timing:
    """Predicts seconds of groups and critics for a batch of `size` samples (of text: characters).

    Sizes between calibrated ones are interpolated, larger ones extrapolated in proportion. Safe to use from many
    threads: a value may be one observation old.

    >>> timing = Timing(timings)   # doctest: +SKIP
    >>> timing.to_exit(2, size=1)  # doctest: +SKIP
    0.00231
    """

    def __init__(self, timings: Timings) -> None:
        self._sizes = list(timings.sizes)
        first = next(iter(timings.sizes.values()))
        numbers = range(1, len(first.groups) + 1)
        self._medians = np.array(
            [
                [
                    [part.p50 for part in times.groups],
                    [times.critics[i].p50 if i in times.critics else 0.0 for i in numbers],
                ]
                for times in timings.sizes.values()
            ]
        )  # (sizes, 2, groups)
        self._cache: dict[int, _Parts] = {}
        self._ratios = _Parts([1.0] * len(numbers), [1.0] * len(numbers))
        self.slack = max(part.p99 - part.p50 for part in (*first.groups, *first.critics.values()))
        self.overhead = 0.0

    @property
    def sizes(self) -> set[int]:
        """The sizes of batches that were measured."""
        return set(self._sizes)

    def group(self, i: int, size: int) -> float:
        """Return the predicted seconds of layer group i."""
        return self._calibrated(size).groups[i - 1] * self._ratios.groups[i - 1]

    def critic(self, i: int, size: int) -> float:
        """Return the predicted seconds of critic i; 0 behind the last group, which has none."""
        return self._calibrated(size).critics[i - 1] * self._ratios.critics[i - 1]

    def to_exit(self, exit: int, size: int, depth: int = 0) -> float:
        """Return the predicted seconds from behind group `depth` to the answer of `exit`: the groups and its critic."""
        calibrated, ratios = self._calibrated(size), self._ratios
        groups = sum(map(mul, calibrated.groups[depth:exit], ratios.groups[depth:exit]))
        return groups + calibrated.critics[exit - 1] * ratios.critics[exit - 1]

    def calibrated(self, exit: int, size: int) -> float:
        """Return the seconds to the answer of `exit` that were measured on a machine without other work."""
        groups, critics = self._calibrated(size)
        return sum(groups[:exit]) + critics[exit - 1]

    def observe_group(self, i: int, size: int, seconds: float) -> None:
        """Learn from the seconds of a run of group i."""
        self._observe(self._ratios.groups, i - 1, self._calibrated(size).groups[i - 1], seconds)

    def observe_critic(self, i: int, size: int, seconds: float) -> None:
        """Learn from the seconds of a run of critic i."""
        self._observe(self._ratios.critics, i - 1, self._calibrated(size).critics[i - 1], seconds)

    def observe_overhead(self, seconds: float) -> None:
        """Learn from the seconds that a request took besides its groups and critics."""
        self.slack = max(self.slack, seconds - self.overhead)
        observed = min(max(seconds, 0.0), 2.0 * self.overhead + MIN_OVERHEAD)  # a single lost time slice counts little
        self.overhead += (observed - self.overhead) * (RATE_UP if observed > self.overhead else RATE_DOWN)

    def _observe(self, ratios: list[float], index: int, calibrated: float, seconds: float) -> None:
        if calibrated <= 0.0:
            return
        ratio, observed = ratios[index], seconds / calibrated
        overshoot, slack = seconds - ratio * calibrated, self.slack * DECAY
        self.slack = overshoot if overshoot > slack else slack
        if observed > ratio:
            observed = min(observed, 2.0 * ratio)  # a single lost time slice counts little
            ratios[index] = ratio + (observed - ratio) * RATE_UP
        else:
            ratios[index] = ratio + (observed - ratio) * RATE_DOWN

    def _calibrated(self, size: int) -> _Parts:
        if (parts := self._cache.get(size)) is None:
            parts = self._interpolated(size)
            if len(self._cache) < MAX_CACHED_SIZES:
                self._cache[size] = parts
        return parts

    def _interpolated(self, size: int) -> _Parts:
        sizes, medians = self._sizes, self._medians
        right = bisect_left(sizes, size)
        if right == len(sizes):
            seconds = medians[-1] * size / sizes[-1]
        elif sizes[right] == size or right == 0:
            seconds = medians[right]
        else:
            left = right - 1
            share = (size - sizes[left]) / (sizes[right] - sizes[left])
            seconds = medians[left] + share * (medians[right] - medians[left])
        return _Parts(*seconds.tolist())
