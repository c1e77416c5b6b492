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

# What turns a minibatch into the outputs of its exits, and what looks on: at these outputs and at the labels.
Answers = Callable[[Tensor], Sequence[Tensor]]
Witness = Callable[[Sequence[Tensor], Tensor], None]


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
    network: LCTNetwork, batches: Iterable[tuple[Tensor, Tensor]], task: TaskName, *witnesses: Witness
) -> Evaluation:
    """Run every exit over `batches` in evaluation mode, carrying hidden state from one to the next from zero.

    Witnesses see the logits of every minibatch, which are not kept.
    """
    device = next(network.parameters()).device
    with probing(network), carrying(network):
        return evaluate_answers(lambda x: network(x.to(device)), batches, task, *witnesses)


def evaluate_answers(
    answers: Answers, batches: Iterable[tuple[Tensor, Tensor]], task: TaskName, *witnesses: Witness
) -> Evaluation:
    """Judge what something answers as `evaluate` judges a network: exported graphs, for instance."""
    losses: list[Tensor] = []
    scores: list[Tensor] = []
    for x, y in batches:
        outputs = answers(x)
        y = y.to(outputs[0].device)
        losses.append(torch.stack([tasks.losses(task, Z, y) for Z in outputs]).cpu())
        scores.append(torch.stack([tasks.scores(task, Z, y) for Z in outputs]).cpu())
        for witness in witnesses:
            witness(outputs, y)
    return Evaluation(torch.cat(losses, dim=1), torch.cat(scores, dim=1))
