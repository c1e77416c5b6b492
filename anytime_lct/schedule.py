"""Learning rate as a pure function of the step, so that nothing about it needs saving."""

from __future__ import annotations

import math
from bisect import bisect_right

from anytime_lct.recipe import ScheduleRecipe

ONE_CYCLE_RISE = 0.3
ONE_CYCLE_START = 1 / 25
ONE_CYCLE_END = 1e-4 / 25


def factor(schedule: ScheduleRecipe, step: int, total: int, steps_per_epoch: int) -> float:
    """Return the share of the base learning rate that step `step` of `total` (from 0) takes.

    step: times gamma at each milestone; cosine: half a cosine from 1 to 0; one-cycle: cosine from 1/25 up to 1 over
    the first 30%, then down to 4e-6, as torch's OneCycleLR. A warm-up rises linearly over its epochs beforehand.
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
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
