"""Loss and metric of every exit on every sample of a split."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anytime_lct import task as tasks
from anytime_lct.exits.tasks import TASKS
from anytime_lct.modes import carrying, probing
from anytime_lct.network import LCTNetwork
from anytime_lct.task import TaskName

Predictor = Callable[[Tensor], Sequence[Tensor]]  # a minibatch -> the outputs of its exits
Observer = Callable[[Sequence[Tensor], Tensor], None]  # (these outputs, the labels) -> None


@dataclass(frozen=True)
class Evaluation:
    """Row i-1 holds exit i, column s sample s: both (N, S), on the CPU. For text a sample is a window of it."""

    losses: Tensor
    scores: Tensor

    def mean_losses(self) -> list[float]:
        return self.losses.double().mean(dim=1).tolist()

    def mean_scores(self) -> list[float]:
        return self.scores.double().mean(dim=1).tolist()


def evaluate(
    network: LCTNetwork, batches: Iterable[tuple[Tensor, Tensor]], task: TaskName, *observers: Observer
) -> Evaluation:
    """Evaluate every exit on `batches` in evaluation mode, carrying hidden state between them, starting from zero.

    Observers are called with the logits of every minibatch, which are not stored.
    """
    device = next(network.parameters()).device
    with probing(network), carrying(network):
        return evaluate_predictor(lambda x: network(x.to(device)), batches, task, *observers)


def evaluate_predictor(
    predictor: Predictor, batches: Iterable[tuple[Tensor, Tensor]], task: TaskName, *observers: Observer
) -> Evaluation:
    """Evaluate the outputs of a predictor, for example of exported graphs, as `evaluate` does those of a network."""
    losses: list[Tensor] = []
    scores: list[Tensor] = []
    for x, y in batches:
        outputs = predictor(x)
        y = y.to(outputs[0].device)
        losses.append(torch.stack([tasks.losses(task, Z, y) for Z in outputs]).cpu())
        scores.append(torch.stack([tasks.scores(task, Z, y) for Z in outputs]).cpu())
        for observer in observers:
            observer(outputs, y)
    return Evaluation(torch.cat(losses, dim=1), torch.cat(scores, dim=1))


class Tally:
    """Results of `exits` exits, minibatch by minibatch; the logits are not stored, and numbers are read at the end."""

    ROWS = 4

    def __init__(self, task: TaskName, exits: int) -> None:
        self._task: TaskName = task
        self._losses: list[list[Tensor]] = [[] for _ in range(exits)]
        self._scores: list[list[Tensor]] = [[] for _ in range(exits)]
        self._answers: list[Tensor] = [torch.zeros((), dtype=torch.int64) for _ in range(exits)]

    def add(self, exit_: int, Z: Tensor, y: Tensor) -> None:
        """Add the logits of exit `exit_`, from 0, on a minibatch with labels y."""
        self._losses[exit_].append(tasks.losses(self._task, Z, y))
        self._scores[exit_].append(tasks.scores(self._task, Z, y))
        answers = Z.argmax(dim=-1).flatten()
        counts = torch.zeros(Z.shape[-1], dtype=torch.int64, device=Z.device)  # bincount would wait for a device
        self._answers[exit_] = self._answers[exit_] + counts.scatter_add_(0, answers, torch.ones_like(answers))

    def results(self) -> Tensor:
        """Return mean loss, mean metric, its standard error, and the share of the most frequent answer.

        Shape (4, exits), float64, on the CPU.
        """
        losses, scores, answers = _joined(self._losses), _joined(self._scores), [each.cpu() for each in self._answers]
        columns = [
            (L.mean(), *self._metric(score), count.max() / count.sum())
            for L, score, count in zip(losses, scores, answers, strict=True)
        ]
        return torch.tensor(columns, dtype=torch.float64).view(-1, self.ROWS).T

    @staticmethod
    def scaled(results: Tensor, scale: float) -> Tensor:
        """Return results with the metric and its error times `scale`, the unit of the data."""
        return results * results.new_tensor([1.0, scale, scale, 1.0]).unsqueeze(1)

    def _metric(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return the metric of scores (S,), and its standard error; that of a root follows from its derivative."""
        value, error = scores.mean(), scores.std(correction=0) / math.sqrt(len(scores))
        if not TASKS[self._task].metric.root:
            return value, error
        return value.sqrt(), error / (2 * value.sqrt().clamp(min=1e-12))


def _joined(exits: list[list[Tensor]]) -> list[Tensor]:
    return [torch.cat(parts).cpu().double() for parts in exits]
