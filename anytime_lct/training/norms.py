"""Batch norms in training: their statistics follow a short run, and short minibatches count by their samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

USUAL_MOMENTUM = 0.1  # torch's default
LIFETIMES = 50  # of the averages in a run; the statistics of the first weights keep a share of e^-50


def suit_run(module: nn.Module, steps: int) -> None:
    """Raise the momentum of batch norms, to 0.1 at most, where a run of `steps` is too short for it.

    Statistics are averages over some 1 / momentum steps. A momentum of 0.01, which MobileNets have for runs of 100,000
    steps, keeps 13% of the initial statistics after 200.
    """
    for norm in batch_norms(module):
        assert norm.momentum is not None
        norm.momentum = max(norm.momentum, min(USUAL_MOMENTUM, LIFETIMES / steps))


@contextmanager
def weighted(norms: list[_BatchNorm], share: float) -> Iterator[None]:
    """Let a minibatch with `share` of the usual samples move the statistics of batch norms by that share."""
    momenta = [norm.momentum or 0.0 for norm in norms]
    try:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum * share
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms whose statistics are moving averages; those that average over all steps are left out."""
    return [part for part in module.modules() if isinstance(part, _BatchNorm) and part.momentum is not None]
