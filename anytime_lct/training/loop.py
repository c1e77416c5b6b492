"""Train a network of one's own on data of one's own, within one's own program: no recipe file, no run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sized
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from anytime_lct.errors import DataError, DivergenceError, RecipeError
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes import reading as recipes
from anytime_lct.task import TaskName
from anytime_lct.training.events import Epoch
from anytime_lct.training.learner import Clock
from anytime_lct.training.methods.worker import Worker
from anytime_lct.training.minibatch import Minibatch
from anytime_lct.training.run import device_of

Batches = Iterable[tuple[Tensor, Tensor]]
TABLES = ("groups", "groups_schedule", "critics", "critics_schedule", "rule")
OF_TRAIN = ("clip_norm", "label_smoothing", "precision", "compile")


def train(
    network: LCTNetwork,
    data: Batches,
    *,
    epochs: int = 1,
    validation: Batches = (),
    task: TaskName = "classification",
    seed: int = 0,
    device: str = "auto",
    report: Callable[[Epoch], object] | None = None,
    **tables: dict[str, Any],
) -> list[Epoch]:
    """Train a network by local critic training; return what every epoch came to, losses and metric of each exit.

    `data` is gone through once an epoch, and has a length: a DataLoader, a list of minibatches (x, y); classification
    takes y (B,), a language model x and y (B, T). `tables` are those of a recipe (`groups={"lr": 0.05}`, `critics`,
    `groups_schedule`, `critics_schedule`, `rule`, `train={"clip_norm": 1.0}`), by default the toolkit's for images or
    for text; what else a recipe has, the network and the data say themselves. `report` is called after every epoch.
    The network ends on its device, in evaluation mode. Raises DataError, RecipeError and DivergenceError.

    >>> network = LCTNetwork.cut(model, torch.zeros(2, 3, 64, 64), num_groups=4)        # doctest: +SKIP
    >>> train(network, loader, epochs=10, validation=held_out)[-1].scores               # doctest: +SKIP
    """
    if not isinstance(data, Sized) or not len(data):
        raise DataError("Expected data with a length, at least one minibatch: a DataLoader, or a list of (x, y).")
    asked = [*(f"train.{key}" for key in tables.get("train", {})), *(table for table in tables if table != "train")]
    known = [*TABLES, *(f"train.{key}" for key in OF_TRAIN)]
    if odd := next((key for key in asked if key not in known), None):
        raise RecipeError(
            f"Expected {', '.join(known)} of a recipe, got '{odd}', which the network and the data say themselves; "
            f"leave it out, or train into a run folder."
        )
    given = {"data": {"name": "cifar10" if task == "classification" else "text"}, **tables}
    given["train"] = {**tables.get("train", {}), "epochs": epochs, "seed": seed, "device": device}
    recipe = recipes.complete(given)
    place, clock = device_of(device), Clock(epochs * len(data), len(data))
    network.to(place)
    worker, found = Worker.of(network, recipe, task, clock), []
    try:
        for epoch in range(1, epochs + 1):
            found.append(_epoch(worker, network.train(), data, validation, epoch, clock, place))
            if report is not None:
                report(found[-1])
    finally:
        network.eval()
    return found


def _epoch(
    worker: Worker,
    network: LCTNetwork,
    data: Batches,
    validation: Batches,
    epoch: int,
    clock: Clock,
    place: torch.device,
) -> Epoch:
    start, step = time.monotonic(), (epoch - 1) * clock.per_epoch
    worker.start_epoch()
    worker.sums.zero_()
    for x, y in data:
        with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):  # the data do not see its seeds
            worker.step(Minibatch(x.to(place), y.to(place), step))
        step += 1
    seconds = time.monotonic() - start
    losses = tuple((worker.sums[0] / worker.sums[1]).tolist())
    if not all(abs(loss) < float("inf") for loss in losses):
        raise DivergenceError(f"The losses of the exits became {losses} in epoch {epoch}; lower groups={{'lr': ..}}.")
    held = (Minibatch(x.to(place), y.to(place), number) for number, (x, y) in enumerate(validation))
    first = next(held, None)
    scores = ((), ()) if first is None else worker.evaluate(chain([first], held)).tolist()
    return Epoch(epoch, step, seconds, losses, tuple(scores[0]), tuple(scores[1]))
