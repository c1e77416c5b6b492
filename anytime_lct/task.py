"""The learning task: the facts of a data set, the loss of one sample, and the metric of an exit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from anytime_lct.exits.tasks import TASKS, InputKind, MetricName, Task, TaskName


@dataclass(frozen=True)
class Facts:
    """What the network, the critics and the runtime need to know about a data set.

    `input_shape` is (C, H, W) for images, (T,) for text, and any for arrays: floats, or numbers of `tokens` (T,) from 0
    on. `classes` names the K = `outputs` classes, or holds the symbols of a text one by one. `resize` is the length to
    which the shorter side of an image of another size is resized, before its centre is cropped. `encoding` is that of a
    text's file where the recipe names one, `encodings` are those that its files were decoded by. `counts` are the
    samples, or the characters, of the training, validation and test split, () where they are not known.

    The network gets inputs less `mean`, divided by `std`: of images per channel, on pixels scaled to [0, 1], of arrays
    (F,) per number, of other arrays one of each.

    In regression `classes` names the K targets, and the network answers in a unit in which the training targets have a
    mean of 0 and a mean variance of 1: times `scale`, plus `centers`, one a target, its outputs are those of the data.

    `tokenizer` is the JSON of what makes tokens of texts, "" where the data has numbers.
    """

    name: str
    task: TaskName
    input_shape: tuple[int, ...]
    outputs: int
    classes: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resize: int | None = None
    encoding: str | None = None
    counts: tuple[int, ...] = ()
    encodings: tuple[str, ...] = ()
    centers: tuple[float, ...] = ()
    scale: float = 1.0
    inputs: InputKind = "image"
    tokens: int = 0
    tokenizer: str = ""

    def __post_init__(self) -> None:
        """Say that a language model reads the symbols that it answers."""
        if self.row.is_text:
            object.__setattr__(self, "inputs", "text")
            object.__setattr__(self, "tokens", self.outputs)

    @property
    def samples(self) -> str:
        """What samples are called: images, characters or samples."""
        return "samples" if self.inputs == "array" else self.row.samples

    @property
    def row(self) -> Task:
        """The row of the task: its metric, and how outputs are read."""
        return TASKS[self.task]

    @property
    def metric(self) -> MetricName:
        return self.row.metric.name

    def raw(self, x: Tensor) -> Tensor:
        """Return network inputs (B, ..) as the data has them, where they are arrays; others are left as they are."""
        if self.inputs != "array" or not self.mean:
            return x
        return x * x.new_tensor(self.std) + x.new_tensor(self.mean)

    def standardised(self, numbers: Tensor) -> Tensor:
        """Return numbers (B, K) of the data in the unit of the network; what is no regression is left as it is."""
        return (numbers - numbers.new_tensor(self.centers)) / self.scale if self.centers else numbers


def losses(task: TaskName, Z: Tensor, y: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the loss l(Z, y) of every sample, shape (B,), float32, in nats (equations (1) and (6)).

    Classification takes Z (B, K) and y (B,), or shares of the classes (B, K). A language model takes Z (B, T, K) and
    y (B, T); its loss is the sum (6) divided by T, so that learning rates do not depend on the length of the minibatch.
    Regression takes Z and y (B, K); its loss is the mean squared error over the K numbers.
    """
    return LOSSES[task](Z.float(), y, label_smoothing)


def scores(task: TaskName, Z: Tensor, y: Tensor) -> Tensor:
    """Return the score of every sample, shape (B,), whose mean is the metric, or its square (`Metric.root`).

    It is 1 or 0 for a correct or wrong class, or the answer's share where labels are shares of classes; bits per
    character; or a squared error.
    """
    return SCORES[task](Z, y)


def _of_classes(Z: Tensor, y: Tensor, label_smoothing: float) -> Tensor:
    return F.cross_entropy(Z, y, reduction="none", label_smoothing=label_smoothing)


def _of_characters(Z: Tensor, y: Tensor, label_smoothing: float) -> Tensor:
    return _of_classes(Z.flatten(0, 1), y.flatten(), label_smoothing).view(y.shape).mean(dim=1)


def _hits(Z: Tensor, y: Tensor) -> Tensor:
    answers = Z.argmax(dim=1)
    return y.gather(1, answers.unsqueeze(1)).squeeze(1) if y.dim() == 2 else (answers == y).to(torch.float32)


def _bits(Z: Tensor, y: Tensor) -> Tensor:
    return _of_characters(Z.float(), y, 0.0) / math.log(2.0)


def _squared(Z: Tensor, y: Tensor, label_smoothing: float = 0.0) -> Tensor:
    return (Z.float() - y.reshape(Z.shape)).square().mean(dim=1)


# The part of a task's row (`exits.tasks.TASKS`) that needs torch.
LOSSES: dict[TaskName, Callable[[Tensor, Tensor, float], Tensor]] = {
    "classification": _of_classes,
    "language-model": _of_characters,
    "regression": _squared,
}
SCORES: dict[TaskName, Callable[[Tensor, Tensor], Tensor]] = {
    "classification": _hits,
    "language-model": _bits,
    "regression": _squared,
}
