"""The temperature of every exit, and how far its confidence is from its accuracy: both without keeping a logit.

Guo et al., On Calibration of Modern Neural Networks, 2017: logits divided by one number T, which minimises the loss on
held-out data. In b = 1/T that loss is convex. Its slope and curvature are summed up over the samples at a few b;
between two of them lies a cubic with the same slopes and curvatures, and its root is the minimum within a thousandth.

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
    """Sums up what is needed to fit one temperature for each exit; a witness of an evaluation.

    >>> fit = Temperatures()
    >>> fit([torch.tensor([[0.0, 4.0], [0.0, 4.0], [0.0, 4.0]])], torch.tensor([1, 1, 0]))  # right 2 times in 3
    >>> [round(T, 2) for T in fit.values()]
    [5.77]
    """

    def __init__(self) -> None:
        self._grid = torch.logspace(-2, 1, STEPS, dtype=torch.float64)  # b = 1/T from 1/HOTTEST to 1/COLDEST
        self._slopes: Tensor | None = None
        self._curvatures: Tensor | None = None

    def __call__(self, outputs: Sequence[Tensor], y: Tensor) -> None:
        """Take in logits (B, K) or (B, T, K) of every exit, and the labels (B,) or (B, T)."""
        sums = torch.stack([self._sums(Z.reshape(-1, Z.shape[-1]).float(), y.reshape(-1)) for Z in outputs])
        slopes, curvatures = sums.unbind(dim=1)
        self._slopes = slopes if self._slopes is None else self._slopes + slopes
        self._curvatures = curvatures if self._curvatures is None else self._curvatures + curvatures

    def values(self) -> list[float]:
        """Return the temperatures, held within 0.1 and 100: a split without an error would ask for 0."""
        if self._slopes is None or self._curvatures is None:
            return []
        u = self._grid.log()
        found = []
        for slope, curvature in zip(self._slopes, self._curvatures * self._grid, strict=True):  # d/du = b d/db
            falling = int((slope < 0).sum())  # slopes rise with b
            if falling in (0, STEPS):
                found.append(HOTTEST if falling == 0 else COLDEST)
                continue
            k = falling - 1
            root = _root(slope[k : k + 2].tolist(), curvature[k : k + 2].tolist(), float(u[k + 1] - u[k]))
            found.append(float(torch.exp(-(u[k] + root))))
        return found

    def _sums(self, z: Tensor, y: Tensor) -> Tensor:
        """Return slope and curvature (2, STEPS) of one exit's loss, float64 on the CPU."""
        z = z - z.max(dim=1, keepdim=True).values
        of_label = z.gather(1, y.unsqueeze(1)).double().sum()
        made = []
        for b in self._grid.tolist():
            p = torch.softmax(b * z, dim=1)
            mean = (p * z).sum(dim=1)
            variance = (p * (z - mean.unsqueeze(1)) ** 2).sum(dim=1)
            made.append(torch.stack([mean.double().sum() - of_label, variance.double().sum()]))
        return torch.stack(made, dim=1).cpu()


class Reliability:
    """Expected calibration error of every exit, in 15 equal bins of the largest probability; a witness.

    `temperatures` divide the logits first. The error is the mean, over samples, of how far a bin's accuracy is from its
    mean confidence.
    """

    def __init__(self, temperatures: Sequence[float]) -> None:
        self._temperatures = list(temperatures)
        self._bins = torch.zeros(len(self._temperatures), 3, BINS, dtype=torch.float64)  # samples, confidence, right

    def __call__(self, outputs: Sequence[Tensor], y: Tensor) -> None:
        """Take in logits (B, K) or (B, T, K) of every exit, and the labels (B,) or (B, T)."""
        for bins, Z, T in zip(self._bins, outputs, self._temperatures, strict=True):
            sure, said = torch.softmax(Z.reshape(-1, Z.shape[-1]).double() / T, dim=1).cpu().max(dim=1)
            number = (sure * BINS).long().clamp(max=BINS - 1)
            rows = torch.stack([torch.ones_like(sure), sure, (said == y.reshape(-1).cpu()).double()])
            bins.index_add_(1, number, rows)

    def errors(self) -> list[float]:
        """Return the expected calibration errors, each of 0 to 1."""
        count, sure, right = self._bins.unbind(dim=1)
        return ((sure - right).abs().sum(dim=1) / count.sum(dim=1).clamp(min=1.0)).tolist()


def _root(value: list[float], rise: list[float], width: float) -> float:
    """Return where the cubic with these values (below 0, then not) and derivatives at 0 and `width` is 0."""
    (y0, y1), (d0, d1) = value, (rise[0] * width, rise[1] * width)
    low, high = 0.0, 1.0
    for _ in range(50):
        t = (low + high) / 2
        y = y0 * (1 + 2 * t) * (1 - t) ** 2 + d0 * t * (1 - t) ** 2 + y1 * t * t * (3 - 2 * t) + d1 * t * t * (t - 1)
        low, high = (t, high) if y < 0 else (low, t)
    return high * width
