"""The steps of a run, the updates of weights that they add up to, and the learning rate at each of them."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from anytime_lct.recipes.recipe import ScheduleRecipe

FRESH_RISE = 500  # steps at most: Adam's averages of squares are settled
ONE_CYCLE_RISE = 0.3
ONE_CYCLE_START = 1 / 25
ONE_CYCLE_END = 1e-4 / 25


@dataclass(frozen=True)
class Clock:
    """The number of steps of the run, in total and per epoch, and the samples of a whole minibatch in this process.

    A step is one minibatch. With `accumulate` N, weights move once in N steps, and at the end of an epoch: an *update*.
    At step `fresh_start`, unless it is 0, the optimizers start without the state that they had.
    """

    total: int
    per_epoch: int
    rows: int = 1
    fresh_start: int = 0
    accumulate: int = 1

    @property
    def rise(self) -> int:
        """The number of steps over which learning rates rise after a fresh start."""
        return min(FRESH_RISE, self.per_epoch) if self.fresh_start else 0

    def warmth(self, step: int) -> float:
        """Return the factor, up to 1, of learning rates after a fresh start."""
        return min(1.0, (step - self.fresh_start + 1) / self.rise) if self.rise else 1.0

    @property
    def updates_per_epoch(self) -> int:
        return -(-self.per_epoch // self.accumulate)

    @property
    def updates(self) -> int:
        """The number of updates of the run."""
        return self.update(self.total)

    def update(self, step: int) -> int:
        """Return the number of the update, from 0, that a step belongs to.

        >>> clock = Clock(total=10, per_epoch=5, accumulate=2)
        >>> [clock.update(step) for step in range(10)]
        [0, 0, 1, 1, 2, 3, 3, 4, 4, 5]
        """
        epoch, step = divmod(step, self.per_epoch)
        return epoch * self.updates_per_epoch + step // self.accumulate

    def begins(self, step: int) -> bool:
        """Return whether a step is the first of its update."""
        return step % self.per_epoch % self.accumulate == 0

    def ends(self, step: int) -> bool:
        """Return whether weights move after a step."""
        return self.update(step) != self.update(step + 1)


def rate_factor(schedule: ScheduleRecipe, clock: Clock, step: int) -> float:
    """Return the factor of the base learning rate at a step: that of its update, lower after a fresh start."""
    return clock.warmth(step) * factor(schedule, clock.update(step), clock.updates, clock.updates_per_epoch)


def factor(schedule: ScheduleRecipe, step: int, total: int, steps_per_epoch: int) -> float:
    """Return the factor of the base learning rate at step `step` of `total` (from 0).

    step: times gamma at each milestone; cosine: half a cosine from 1 to 0; one-cycle: cosine from 1/25 up to 1 over
    the first 30%, then down to 4e-6, like torch's OneCycleLR. A warm-up rises linearly over its epochs before that.
    """
    rise = round(schedule.warmup * steps_per_epoch)
    if step < rise:
        return (step + 1) / rise
    step, total = step - rise, max(1, total - rise)
    if schedule.name == "step":
        return schedule.gamma ** bisect_right([round(m * total) for m in sorted(schedule.milestones)], step)
    if schedule.name == "cosine":
        return (1 + math.cos(math.pi * step / total)) / 2
    if schedule.name == "one-cycle":
        peak, last = ONE_CYCLE_RISE * total - 1, total - 1
        if step <= peak:
            return _between(ONE_CYCLE_START, 1.0, step / peak if peak > 0 else 1.0)
        return _between(1.0, ONE_CYCLE_END, (step - peak) / (last - peak))
    return 1.0


def _between(start: float, end: float, share: float) -> float:
    """Interpolate from start (share 0) to end (share 1) along half a cosine."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
