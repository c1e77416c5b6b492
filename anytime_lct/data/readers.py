"""Processes that read the parts of a data set ahead, which Ctrl-C leaves to the training process."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch.utils import data

PartT = TypeVar("PartT")


def read_ahead(dataset: data.Dataset[PartT], numbers: range, processes: int, *, pinned: bool) -> Iterator[PartT]:
    """Return the parts of these numbers in order, as the processes read them, in pinned memory for a GPU."""
    loader = data.DataLoader(
        dataset,
        batch_size=None,
        sampler=numbers,
        num_workers=processes,
        pin_memory=pinned,
        generator=torch.Generator(),  # without one, the loader draws a seed from torch's random state
    )
    with _without_interrupts():
        return iter(loader)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Block SIGINT, permanently in processes started inside: only the training process handles Ctrl-C."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
