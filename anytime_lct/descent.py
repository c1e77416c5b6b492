"""Sufficient descent: whether the steps of local critic training descend the loss of the main network, (12) and (16).

The proof of convergence (Section IV) assumes a sigma > 0 with

    <grad L_N, grad L>  >=  sigma ||grad L_N||^2                          (12)

where grad L holds the gradients dL_i/dw_i of local critic training, (11), and grad L_N is the true gradient, by
backprop through the whole network. Section V-A follows the largest such sigma of every layer group:

    sigma_i = <dL_N/dw_i, dL_i/dw_i> / ||dL_N/dw_i||^2                    (16)

Where it is positive, the group's step descends L_N, to first order; the cosine of the two gradients has the same sign
and does not depend on their lengths. The last group has the true gradient itself, and a sigma of 1.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anytime_lct.lct import Loss
from anytime_lct.modes import carriers

Values = tuple[float | None, ...]  # one per layer group
Gradients = Sequence[Tensor | None]  # one per weight; None where the loss does not depend on it


@dataclass(frozen=True)
class Descent:
    """One measurement: sigma and cosine of every layer group, on the minibatch of `step` before its update.

    None marks a number that is not defined: both where the true gradient is zero (or a group has no weights, or a
    gradient is not finite), the cosine also where the group's own gradient is zero.
    """

    step: int
    sigma: Values
    cosine: Values
    seconds: float

    def as_json(self, epoch: float) -> dict[str, Any]:
        return {
            "step": self.step,
            "epoch": round(epoch, 4),
            "sigma": self.sigma,
            "cosine": self.cosine,
            "seconds": round(self.seconds, 6),
        }


@dataclass(frozen=True)
class Summary:
    """Many measurements summed up, one number per layer group: `not_positive` counts sigma <= 0, `undefined` None."""

    measurements: int
    smallest_sigma: Values
    not_positive: tuple[int, ...]
    undefined: tuple[int, ...]
    seconds: float


def measure(
    groups: Sequence[nn.Module],
    critics: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    loss: Loss,
    *,
    step: int = 0,
    seeds: Sequence[int] = (),
) -> Descent:
    """Measure (16) on one minibatch, with the weights as they are: f_1..f_N, c_1..c_{N-1}, and l of (1).

    Changes nothing: no weight, gradient, buffer, carried hidden state or random number. With `seeds`, one per group,
    random numbers in f_i and c_i are drawn as training draws them. One forward pass, whose whole graph stays alive,
    gives both gradients; it takes the memory of backprop.

    >>> measure(network.groups, network.critics, x, y, partial(task.losses, "classification")).sigma
    (0.62, 0.81, 1.0)
    """
    _finish_earlier_work(x.device)
    start = time.perf_counter()
    weights = [[p for p in f.parameters() if p.requires_grad] for f in groups]
    own: list[Gradients] = []
    h = x
    with _unchanged([*groups, *critics], x.device):
        for i, (f, c) in enumerate(zip(groups, [*critics, None], strict=True)):
            if seeds:
                torch.manual_seed(seeds[i])
            h = f(h)
            if c is not None:
                own.append(_gradients(loss(c(h), y), weights[i], keep_graph=True))  # dL_i/dw_i, (3)
        flat = iter(_gradients(loss(h, y), [p for of_group in weights for p in of_group]))
    true = [[next(flat) for _ in of_group] for of_group in weights]
    dots = torch.stack([_dots(t, o, x.device) for t, o in zip(true, [*own, true[-1]], strict=True)]).tolist()
    sigma = tuple(_ratio(both, squared) for both, squared, _ in dots)
    cosine = tuple(_ratio(both, math.sqrt(a * b)) for both, a, b in dots)
    return Descent(step, sigma, cosine, time.perf_counter() - start)


def summarise(lines: Sequence[dict[str, Any]]) -> Summary:
    """Summarise the lines of a run's descent.jsonl."""
    of_groups = list(zip(*(line["sigma"] for line in lines), strict=True))
    known = [[s for s in sigma if s is not None] for sigma in of_groups]
    return Summary(
        len(lines),
        tuple(min(sigma, default=None) for sigma in known),
        tuple(sum(s <= 0 for s in sigma) for sigma in known),
        tuple(sigma.count(None) for sigma in of_groups),
        round(sum(line["seconds"] for line in lines), 3),
    )


@contextmanager
def _unchanged(modules: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Restore what a forward pass in training mode changes: statistics, hidden states, the random state."""
    buffers = [(b, b.clone()) for m in modules for b in m.buffers()]
    states = [(carrier, carrier.state) for m in modules for _, carrier in carriers(m)]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            for carrier, before in states:
                carrier.state = before


def _gradients(L: Tensor, weights: Sequence[Tensor], *, keep_graph: bool = False) -> Gradients:
    if not weights:
        return ()
    return torch.autograd.grad(L.mean(), weights, retain_graph=keep_graph, allow_unused=True)


def _dots(true: Gradients, own: Gradients, device: torch.device) -> Tensor:
    """Return <true, own>, <true, true> and <own, own>, (3,), float64."""
    products = torch.zeros(3, dtype=torch.float64, device=device)
    for t, o in zip(true, own, strict=True):
        t, o = (None if g is None else g.double().flatten() for g in (t, o))
        if t is not None and o is not None:
            products[0] += t @ o
        if t is not None:
            products[1] += t @ t
        if o is not None:
            products[2] += o @ o
    return products


def _ratio(a: float, b: float) -> float | None:
    return a / b if b > 0 and math.isfinite(a) and math.isfinite(b) else None


def _finish_earlier_work(device: torch.device) -> None:
    """Wait for the training work still queued on an accelerator, so that its time does not count here."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
