"""Predicted times of a request's next parts: the calibrated times, corrected by what is observed since.

Every group and critic has a ratio of observed to calibrated time, which follows changes: a slower clock, a second
request on the other core, a group that has become slow. The overhead is what a request takes besides its parts, to be
queued, scheduled and answered: little, but paid by every request in a queue. What neither predicts, for instance a core
that another process takes for some milliseconds, is the overshoot of a prediction: the slack is the worst recent one.
"""

from __future__ import annotations

from bisect import bisect_left

from anytime_lct.runtime.timings import Timings

# The fraction by which an estimate moves towards an observation: faster up, where a part is slow, than down.
RATE_UP, RATE_DOWN = 0.2, 0.05
MIN_OVERHEAD = 0.0001
# The slack halves in some 7,000 predictions that hold: in seconds on a busy server, which loses a time slice about as
# often.
DECAY = 0.9999


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
        self._times = [timings.sizes[size] for size in self._sizes]
        self._ratios: dict[str, float] = {}
        self._cache: dict[tuple[str, int], float] = {}
        parts = [*self._times[0].groups, *self._times[0].critics.values()]
        self.slack = max(part.p99 - part.p50 for part in parts)
        self.overhead = 0.0

    def group(self, i: int, size: int) -> float:
        """Return the predicted seconds of layer group i."""
        return self._calibrated(f"group {i}", size) * self._ratios.get(f"group {i}", 1.0)

    def critic(self, i: int, size: int) -> float:
        """Return the predicted seconds of critic i; 0 behind the last group, which has none."""
        return self._calibrated(f"critic {i}", size) * self._ratios.get(f"critic {i}", 1.0)

    def to_exit(self, exit: int, size: int, depth: int = 0) -> float:
        """Return the predicted seconds from behind group `depth` to the answer of `exit`: the groups and its critic."""
        return sum(self.group(i, size) for i in range(depth + 1, exit + 1)) + self.critic(exit, size)

    def observe_group(self, i: int, size: int, seconds: float) -> None:
        """Learn from the seconds of a run of group i."""
        self._observe(f"group {i}", size, seconds)

    def observe_critic(self, i: int, size: int, seconds: float) -> None:
        """Learn from the seconds of a run of critic i."""
        self._observe(f"critic {i}", size, seconds)

    def observe_overhead(self, seconds: float) -> None:
        """Learn from the seconds that a request took besides its groups and critics."""
        self.slack = max(self.slack, seconds - self.overhead)
        observed = min(max(seconds, 0.0), 2.0 * self.overhead + MIN_OVERHEAD)  # a single lost time slice counts little
        self.overhead += (observed - self.overhead) * (RATE_UP if observed > self.overhead else RATE_DOWN)

    def _observe(self, part: str, size: int, seconds: float) -> None:
        calibrated = self._calibrated(part, size)
        if calibrated <= 0.0:
            return
        ratio = self._ratios.get(part, 1.0)
        overshoot = seconds - ratio * calibrated
        self.slack = max(self.slack * DECAY, overshoot)
        observed = min(seconds / calibrated, 2.0 * ratio)  # a single lost time slice counts little
        self._ratios[part] = ratio + (observed - ratio) * (RATE_UP if observed > ratio else RATE_DOWN)

    def _calibrated(self, part: str, size: int) -> float:
        key = (part, size)
        if (seconds := self._cache.get(key)) is None:
            seconds = self._interpolated(part, size)
            if len(self._cache) < 4096:
                self._cache[key] = seconds
        return seconds

    def _interpolated(self, part: str, size: int) -> float:
        kind, number = part.split()
        medians = []
        for times in self._times:
            quantiles = times.critics.get(int(number)) if kind == "critic" else times.groups[int(number) - 1]
            medians.append(quantiles.p50 if quantiles else 0.0)
        right = bisect_left(self._sizes, size)
        if right == len(self._sizes):
            return medians[-1] * size / self._sizes[-1]
        if self._sizes[right] == size or right == 0:
            return medians[right]
        left = right - 1
        share = (size - self._sizes[left]) / (self._sizes[right] - self._sizes[left])
        return medians[left] + share * (medians[right] - medians[left])
