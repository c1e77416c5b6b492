"""What every exit answers to every sample of a split: an observer of an evaluation, for the page of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers of N exits to S samples: `predicted` classes and their `confidences`, both (N, S), `labels` (S,).

    Of numbers, `predicted` and `labels` are those of the first target, and confidences are 0.
    """

    predicted: NDArray[np.floating | np.integer]
    confidences: NDArray[np.floating]
    labels: NDArray[np.floating | np.integer]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each answer is the label, (N, S)."""
        return self.predicted == self.labels

    def confusion(self, row: int, classes: int) -> NDArray[np.int64]:
        """Return how often samples of class (row) are answered by class (column) by an exit, from 0: (K, K)."""
        counts = np.zeros((classes, classes), np.int64)
        np.add.at(counts, (self.labels.astype(np.int64), self.predicted[row].astype(np.int64)), 1)
        return counts

    def reliability(self, row: int, bins: int = 10) -> list[tuple[float, float, int]]:
        """Return mean confidence, accuracy and count of the samples of an exit in equal bins of the confidence."""
        index = np.minimum((self.confidences[row] * bins).astype(int), bins - 1)
        filled = [np.flatnonzero(index == k) for k in range(bins)]
        return [
            (float(self.confidences[row][each].mean()), float(self.correct[row][each].mean()), len(each))
            for each in filled
            if len(each)
        ]

    def stops(self, threshold: float) -> NDArray[np.int64]:
        """Return the row of the first exit that is at least so confident, else of the last, for every sample (S,)."""
        confident = self.confidences >= threshold
        confident[-1] = True
        return confident.argmax(axis=0)


class Recorder:
    """Records the answers of exits with these temperatures; the logits are not stored."""

    def __init__(self, temperatures: Sequence[float], *, numbers: bool = False) -> None:
        self._temperatures, self._numbers = list(temperatures), numbers
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, outputs: Sequence[Tensor], y: Tensor) -> None:
        """Add the outputs (B, K) of every exit, and the labels (B,) or targets (B, K)."""
        if self._numbers:
            first = torch.stack([Z[:, 0] for Z in outputs]).cpu()
            self._parts.append((first, torch.zeros_like(first), y.reshape(len(y), -1)[:, 0].cpu()))
            return
        calibrated = (Z.float() / T for Z, T in zip(outputs, self._temperatures, strict=True))
        pairs = [torch.softmax(Z, dim=-1).max(dim=-1) for Z in calibrated]
        confidences, predicted = (torch.stack(each).cpu() for each in zip(*pairs, strict=True))
        self._parts.append((predicted, confidences, y.cpu()))

    def answers(self) -> Answers:
        """Return all answers."""
        predicted, confidences, labels = (torch.cat(parts, dim=-1).numpy() for parts in zip(*self._parts, strict=True))
        return Answers(predicted, confidences, labels)
