"""Curves over the minibatches of a run: losses, learning rates, and samples a second."""

from __future__ import annotations

import torch
from torch import Tensor

from anytime_lct.recipes.recipe import Recipe
from anytime_lct.training.events import Position
from anytime_lct.training.logs import Logs, Point
from anytime_lct.training.schedule import Clock, rate_factor

SECONDS = 2.0  # between two points, so that a day of training takes some megabytes


class Curves:
    """Logs a point every few seconds; only the leader of a team calls it."""

    def __init__(self, logs: Logs, recipe: Recipe, clock: Clock) -> None:
        self._logs, self._recipe, self._clock = logs, recipe, clock
        self._last, self._last_sums = Position(), torch.zeros(2, 1, dtype=torch.float64)

    def draw(self, position: Position, sums: Tensor) -> None:
        """Log the means since the last point, where it is old enough or the epoch ends.

        `sums` are losses times samples, and samples, of every exit over the epoch so far, (2, N), on any device; they
        are read where a point is logged.
        """
        if self._last.epoch != position.epoch or self._last_sums.shape != sums.shape:
            self._last, self._last_sums = Position(epoch=position.epoch), torch.zeros(sums.shape, dtype=sums.dtype)
        seconds = position.seconds - self._last.seconds
        if seconds < SECONDS and position.batch < self._clock.per_epoch:
            return
        sums = sums.cpu()
        step = position.epoch * self._clock.per_epoch + position.batch
        losses, counts = (sums - self._last_sums).tolist()
        values = {
            f"loss/step/exit_{exit_}": loss / count
            for exit_, (loss, count) in enumerate(zip(losses, counts, strict=True), start=1)
            if count
        }
        if seconds > 0:
            values["samples_per_second"] = (position.samples - self._last.samples) / seconds
        self._logs.write(Point("steps", step, values | self._rates(step - 1)))
        self._last, self._last_sums = Position(**vars(position)), sums.clone()

    def _rates(self, step: int) -> dict[str, float]:
        recipe = self._recipe
        tables = {
            "groups": (recipe.groups, recipe.groups_schedule), "critics": (recipe.critics, recipe.critics_schedule),
        }  # fmt: skip
        return {
            f"learning_rate/{name}": (optimizer.lr or 0.0) * rate_factor(schedule, self._clock, step)
            for name, (optimizer, schedule) in tables.items()
        }
