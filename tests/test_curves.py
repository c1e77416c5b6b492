"""TensorBoard's curves over minibatches: means since the last point, the schedule's rates, and samples a second."""

from __future__ import annotations

import pytest
import torch

from anytime_lct.recipes import reading
from anytime_lct.training.curves import Curves
from anytime_lct.training.events import Position
from anytime_lct.training.logs import Logs
from anytime_lct.training.schedule import Clock


def test_points_are_means_since_the_last_one(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    schedule = {"name": "step", "milestones": [0.5], "gamma": 0.1}
    recipe = reading.complete(
        {"groups": {"name": "sgd", "lr": 0.4}, "groups_schedule": schedule, "train": {"epochs": 2}}
    )
    logs = Logs(tmp_path, recipe)
    curves = Curves(logs, recipe, Clock(total=20, per_epoch=10))
    for batch, seconds, losses in ((2, 4.0, 40.0), (3, 4.5, 999.0), (10, 8.0, 120.0)):
        sums = torch.tensor([[losses, 2 * losses], [10.0 * batch, 10.0 * batch]], dtype=torch.float64)
        curves.draw(Position(0, batch, seconds, 10 * batch), sums)
    curves.draw(Position(1, 5, 2.5, 50), torch.tensor([[50.0, 0.0], [50.0, 0.0]], dtype=torch.float64))
    logs.close()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "steps"))
    events.Reload()

    def points(name: str) -> list[tuple[int, float]]:
        return [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]

    assert points("loss/step/exit_1") == [(2, 2.0), (10, 1.0), (15, 1.0)]
    assert points("loss/step/exit_2") == [(2, 4.0), (10, 2.0)]
    assert points("samples_per_second") == [(2, 5.0), (10, 20.0), (15, 20.0)]
    assert points("learning_rate/groups") == [(2, 0.4), (10, 0.4), (15, 0.04)]
