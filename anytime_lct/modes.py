"""Temporary modes of a module: evaluation without gradients, and hidden state carried between minibatches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def probing(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients within this block; each submodule's mode is restored afterwards."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m, mode in modes:
            m.training = mode


def carriers(module: nn.Module) -> list[tuple[str, Any]]:
    """Return the named submodules that can carry hidden state from minibatch to minibatch (`carry` and `state`)."""
    return [(name, m) for name, m in module.named_modules() if hasattr(m, "carry") and hasattr(m, "state")]


@contextmanager
def carrying(module: nn.Module) -> Iterator[None]:
    """Carry hidden state within this block, starting from zero; the earlier state is restored afterwards."""
    before = [(m, m.carry, m.state) for _, m in carriers(module)]
    for m, _, _ in before:
        m.carry, m.state = True, None
    try:
        yield
    finally:
        for m, carry, state in before:
            m.carry, m.state = carry, state
