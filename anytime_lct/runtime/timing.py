"""What the next part of a request will take: the calibrated time, corrected by what was seen since.

Every group and critic carries one ratio, seen over calibrated time, which follows what happens: a slower clock, a
second request on the other core, a stage that has become slow. What a request takes beside its parts, to be fetched,
decided on and handed over, is the overhead: little, but everyone in a queue has it. What neither can foresee, a core
lent to another process for some milliseconds, is the overshoot of a prediction: the slack remembers the worst of late.
"""

from __future__ import annotations

from bisect import bisect_left

from anytime_lct.runtime.timings import Timings

# A ratio moves by a tenth of the way at a time, and faster where a part turns out slow than where it turns out quick.
SLOWER, QUICKER = 0.2, 0.05
LEAST_OVERHEAD = 0.0001
# The slack falls by half in some 7,000 predictions that hold: in seconds, on a busy server, which loses a time slice
# about as often.
FORGET = 0.9999


class Timing:
    """Predicts seconds of groups and critics for a batch of `size` samples (of text: characters).

    Sizes between calibrated ones are interpolated, larger ones extrapolated in proportion. Safe to use from many
    threads: a reading may be one observation old.

    >>> timing = Timing(timings)                    # doctest: +SKIP
    >>> timing.to_exit(2, size=1)                       # doctest: +SKIP
    0.00231
    """

    def __init__(self, timings: Timings) -> None:
        self._sizes = list(timings.sizes)
        self._times = [timings.sizes[size] for size in self._sizes]
        self._ratios: dict[str, float] = {}
        self._known: dict[tuple[str, int], float] = {}
        parts = [*self._times[0].groups, *self._times[0].critics.values()]
        self.slack = max(part.p99 - part.p50 for part in parts)
        self.overhead = 0.0

    def group(self, i: int, size: int) -> float:
        """Seconds of layer group i."""
        return self._calibrated(f"group {i}", size) * self._ratios.get(f"group {i}", 1.0)

    def critic(self, i: int, size: int) -> float:
        """Seconds of critic i; 0 behind the last group, which has none."""
        return self._calibrated(f"critic {i}", size) * self._ratios.get(f"critic {i}", 1.0)

    def to_exit(self, exit: int, size: int, depth: int = 0) -> float:
        """Seconds from behind group `depth` to the answer of exit `exit`: the groups between, and its critic."""
        return sum(self.group(i, size) for i in range(depth + 1, exit + 1)) + self.critic(exit, size)

    def saw_group(self, i: int, size: int, seconds: float) -> None:
        """Learn what a run of group i took."""
        self._saw(f"group {i}", size, seconds)

    def saw_critic(self, i: int, size: int, seconds: float) -> None:
        """Learn what a run of critic i took."""
        self._saw(f"critic {i}", size, seconds)

    def saw_overhead(self, seconds: float) -> None:
        """Learn what a request took beside its groups and critics."""
        self.slack = max(self.slack, seconds - self.overhead)
        seen = min(max(seconds, 0.0), 2.0 * self.overhead + LEAST_OVERHEAD)  # one lost time slice is none
        self.overhead += (seen - self.overhead) * (SLOWER if seen > self.overhead else QUICKER)

    def _saw(self, part: str, size: int, seconds: float) -> None:
        calibrated = self._calibrated(part, size)
        if calibrated <= 0.0:
            return
        ratio = self._ratios.get(part, 1.0)
        overshoot = seconds - ratio * calibrated
        self.slack = max(self.slack * FORGET, overshoot)
        seen = min(seconds / calibrated, 2.0 * ratio)  # one lost time slice is no slow stage
        self._ratios[part] = ratio + (seen - ratio) * (SLOWER if seen > ratio else QUICKER)

    def _calibrated(self, part: str, size: int) -> float:
        key = (part, size)
        if (seconds := self._known.get(key)) is None:
            seconds = self._interpolated(part, size)
            if len(self._known) < 4096:
                self._known[key] = seconds
        return seconds

    def _interpolated(self, part: str, size: int) -> float:
        kind, number = part.split()
        medians = []
        for times in self._times:
            found = times.critics.get(int(number)) if kind == "critic" else times.groups[int(number) - 1]
            medians.append(found.p50 if found else 0.0)
        right = bisect_left(self._sizes, size)
        if right == len(self._sizes):
            return medians[-1] * size / self._sizes[-1]
        if self._sizes[right] == size or right == 0:
            return medians[right]
        left = right - 1
        share = (size - self._sizes[left]) / (self._sizes[right] - self._sizes[left])
        return medians[left] + share * (medians[right] - medians[left])
