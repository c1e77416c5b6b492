"""Loss and metric of every exit on every sample of a split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from anytime_lct import task as tasks
from anytime_lct.network import LCTNetwork, carrying, probing
from anytime_lct.task import TaskName


@dataclass(frozen=True)
class Evaluation:
    """Row i-1 holds exit i, column s sample s: both (N, S), on the CPU. For text a sample is a window of it."""

    losses: Tensor
    scores: Tensor

    def mean_losses(self) -> list[float]:
        return self.losses.double().mean(dim=1).tolist()

    def mean_scores(self) -> list[float]:
        return self.scores.double().mean(dim=1).tolist()


def evaluate(network: LCTNetwork, batches: Iterable[tuple[Tensor, Tensor]], task: TaskName) -> Evaluation:
    """Run every exit over `batches` in evaluation mode, carrying hidden state from one to the next from zero."""
    device = next(network.parameters()).device
    losses: list[Tensor] = []
    scores: list[Tensor] = []
    with probing(network), carrying(network):
        for x, y in batches:
            x, y = x.to(device), y.to(device)
            outputs = network(x)
            losses.append(torch.stack([tasks.losses(task, Z, y) for Z in outputs]).cpu())
            scores.append(torch.stack([tasks.scores(task, Z, y) for Z in outputs]).cpu())
    return Evaluation(torch.cat(losses, dim=1), torch.cat(scores, dim=1))
