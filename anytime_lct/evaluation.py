"""Loss and metric of every exit on every sample of a split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anytime_lct import task as tasks
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
