"""Curves over the minibatches of a run in TensorBoard: losses, learning rates, and samples a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anytime_lct.recipes.recipe import Recipe
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.training.events import Position
from anytime_lct.training.schedule import Clock, rate_factor

SECONDS = 2.0  # between two points, so that a day of training takes some megabytes


class Curves:
    """Draws a point every few seconds; only the leader of a team calls it.

    The files have a folder of their own, because their steps are minibatches and those of the others epochs.
    """

    def __init__(self, path: Path, recipe: Recipe, clock: Clock) -> None:
        self._path, self._recipe, self._clock = path / run_folder.TENSORBOARD / "steps", recipe, clock
        self._board: Any = None
        self._last, self._last_sums = Position(), torch.zeros(2, 1, dtype=torch.float64)

    def draw(self, position: Position, sums: Tensor) -> None:
        """Draw the means since the last point, where it is old enough or the epoch ends.

        `sums` are losses times samples, and samples, of every exit over the epoch so far, (2, N), on any device; they
        are read where a point is drawn.
        """
        if self._last.epoch != position.epoch or self._last_sums.shape != sums.shape:
            self._last, self._last_sums = Position(epoch=position.epoch), torch.zeros(sums.shape, dtype=sums.dtype)
        seconds = position.seconds - self._last.seconds
        if seconds < SECONDS and position.batch < self._clock.per_epoch:
            return
        sums = sums.cpu()
        step = position.epoch * self._clock.per_epoch + position.batch
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self._path), purge_step=step)
        losses, counts = (sums - self._last_sums).tolist()
        for exit_, (loss, count) in enumerate(zip(losses, counts, strict=True), start=1):
            if count:
                self._board.add_scalar(f"loss/step/exit_{exit_}", loss / count, step)
        if seconds > 0:
            self._board.add_scalar("samples_per_second", (position.samples - self._last.samples) / seconds, step)
        for name, rate in self._rates(step - 1).items():
            self._board.add_scalar(f"learning_rate/{name}", rate, step)
        self._last, self._last_sums = Position(**vars(position)), sums.clone()

    def _rates(self, step: int) -> dict[str, float]:
        recipe = self._recipe
        tables = {
            "groups": (recipe.groups, recipe.groups_schedule), "critics": (recipe.critics, recipe.critics_schedule),
        }  # fmt: skip
        return {
            name: (optimizer.lr or 0.0) * rate_factor(schedule, self._clock, step)
            for name, (optimizer, schedule) in tables.items()
        }

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
