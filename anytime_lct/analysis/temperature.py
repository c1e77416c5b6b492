"""The temperature of every exit, and how far its confidence is from its accuracy: both without storing logits.

Guo et al., On Calibration of Modern Neural Networks, 2017: logits are divided by one number T, which minimises the loss
on held-out data. In b = 1/T this loss is convex. Its slope and curvature are summed over the samples on a grid of b;
between two grid points a cubic with the same slopes and curvatures has its root at the minimum, within a thousandth.

    NLL(b)   = sum over samples of  logsumexp(b z) - b z_y
    NLL'(b)  = sum of  E[z] - z_y,   NLL''(b) = sum of  Var[z],   under p = softmax(b z)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

HOTTEST, COLDEST, STEPS = 100.0, 0.1, 25
BINS = 15


class Temperatures:
    """Sums for fitting one temperature for each exit; an observer of an evaluation.

    >>> fit = Temperatures()
    >>> fit([torch.tensor([[0.0, 4.0], [0.0, 4.0], [0.0, 4.0]])], torch.tensor([1, 1, 0]))  # right 2 times in 3
    >>> [round(T, 2) for T in fit.values()]
    [5.77]
    """

    def __init__(self) -> None:
        self._grid = torch.logspace(-2, 1, STEPS, dtype=torch.float64)  # b = 1/T from 1/HOTTEST to 1/COLDEST
        self._errors = torch.zeros(())
        self._slopes: Tensor | None = None
        self._curvatures: Tensor | None = None

    def __call__(self, outputs: Sequence[Tensor], y: Tensor) -> None:
        """Add the logits (B, K) or (B, T, K) of every exit, and the labels (B,) or (B, T)."""
        sums = torch.stack([self._sums(Z.reshape(-1, Z.shape[-1]).float(), y.reshape(-1)) for Z in outputs])
        slopes, curvatures = sums.unbind(dim=1)
        self._errors = self._errors + torch.stack([(Z.argmax(dim=-1) != y).sum().cpu() for Z in outputs])
        self._slopes = slopes if self._slopes is None else self._slopes + slopes
        self._curvatures = curvatures if self._curvatures is None else self._curvatures + curvatures

    def values(self) -> list[float]:
        """Return the temperatures, clamped to 0.1 and 100.

        An exit without an error on the split has its minimum at 0, which would make every answer certain: it gets 1.
        """
        if self._slopes is None or self._curvatures is None:
            return []
        u = self._grid.log()
        temperatures = []
        curvatures = self._curvatures * self._grid  # d/du = b d/db
        for errors, slope, curvature in zip(self._errors.tolist(), self._slopes, curvatures, strict=True):
            falling = int((slope < 0).sum())  # slopes rise with b
            if not errors or falling in (0, STEPS):
                temperatures.append(1.0 if not errors else HOTTEST if falling == 0 else COLDEST)
                continue
            k = falling - 1
            root = _root(slope[k : k + 2].tolist(), curvature[k : k + 2].tolist(), float(u[k + 1] - u[k]))
            temperatures.append(float(torch.exp(-(u[k] + root))))
        return temperatures

    def _sums(self, z: Tensor, y: Tensor) -> Tensor:
        """Return slope and curvature (2, STEPS) of one exit's loss, float64 on the CPU."""
        z = z - z.max(dim=1, keepdim=True).values
        of_label = z.gather(1, y.unsqueeze(1)).double().sum()
        sums = []
        for b in self._grid.tolist():
            p = torch.softmax(b * z, dim=1)
            mean = (p * z).sum(dim=1)
            variance = (p * (z - mean.unsqueeze(1)) ** 2).sum(dim=1)
            sums.append(torch.stack([mean.double().sum() - of_label, variance.double().sum()]))
        return torch.stack(sums, dim=1).cpu()


class Reliability:
    """Expected calibration error of every exit, in 15 equal bins of the largest probability; an observer.

    Logits are first divided by `temperatures`. The error is the mean, over samples, of the distance between a bin's
    accuracy and its mean confidence.
    """

    def __init__(self, temperatures: Sequence[float]) -> None:
        self._temperatures = list(temperatures)
        self._bins = torch.zeros(len(self._temperatures), 3, BINS, dtype=torch.float64)  # samples, confidence, correct

    def __call__(self, outputs: Sequence[Tensor], y: Tensor) -> None:
        """Add the logits (B, K) or (B, T, K) of every exit, and the labels (B,) or (B, T)."""
        for bins, Z, T in zip(self._bins, outputs, self._temperatures, strict=True):
            confidence, predicted = torch.softmax(Z.reshape(-1, Z.shape[-1]).double() / T, dim=1).cpu().max(dim=1)
            index = (confidence * BINS).long().clamp(max=BINS - 1)
            correct = predicted == y.reshape(-1).cpu()
            bins.index_add_(1, index, torch.stack([torch.ones_like(confidence), confidence, correct.double()]))

    def errors(self) -> list[float]:
        """Return the expected calibration errors, each from 0 to 1."""
        count, confidence, correct = self._bins.unbind(dim=1)
        return ((confidence - correct).abs().sum(dim=1) / count.sum(dim=1).clamp(min=1.0)).tolist()


def _root(values: list[float], derivatives: list[float], width: float) -> float:
    """Return the root of the cubic with these values (negative, then not) and derivatives at 0 and `width`."""
    (y0, y1), (d0, d1) = values, (derivatives[0] * width, derivatives[1] * width)
    low, high = 0.0, 1.0
    for _ in range(50):
        t = (low + high) / 2
        y = y0 * (1 + 2 * t) * (1 - t) ** 2 + d0 * t * (1 - t) ** 2 + y1 * t * t * (3 - 2 * t) + d1 * t * t * (t - 1)
        low, high = (t, high) if y < 0 else (low, t)
    return high * width
