"""Minibatches of one's own, a DataLoader or a list, asked as a data set of the toolkit is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized

import torch
from torch import Tensor

from anytime_lct.data.batches import Batch, Share, Split
from anytime_lct.errors import DataError
from anytime_lct.recipes.recipe import Augment
from anytime_lct.task import Facts, TaskName

Batches = Iterable[tuple[Tensor, Tensor]]


class LoadedBatches:
    """Training minibatches that are gone through once an epoch, and those of validation, which may be none.

    What makes them keeps the random state of torch to itself: whatever training draws is put back before it goes on.
    Raises DataError for training data without a length.
    """

    augment: Augment = "none"

    def __init__(self, train: Batches, validation: Batches, task: TaskName) -> None:
        if not _length(train):
            raise DataError("Expected data with a length, at least one minibatch: a DataLoader, or a list of (x, y).")
        if isinstance(validation, Iterator):
            raise DataError("Expected validation data that every epoch can go through, got an iterator; give a list.")
        self._splits: dict[Split, Batches] = {"train": train, "validation": validation}
        self.facts = Facts("own", task, (), 0, ())

    def num_batches(self, split: Split) -> int:
        """Count minibatches; of validation data without a length, 1 where there are any."""
        length = _length(self._splits[split])
        return int(any(True for _ in self._splits[split])) if length is None else length

    def num_samples(self, split: Split) -> int:
        """Tell whether a split has any samples, by a number above 0: they are not counted."""
        return self.num_batches(split)

    def num_rows(self, split: Split, number: int) -> int:
        raise DataError("Expected one process for data of one's own, got replicas; train into a run folder.")

    def batches(self, split: Split, epoch: int = 0, start: int = 0, share: Share = (0, 1)) -> Iterator[Batch]:
        """Yield the minibatches of one pass, in the order of whoever made them."""
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        for batch in self._splits[split]:
            cpu, cuda = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in devices]
            yield batch
            torch.set_rng_state(cpu)
            for device, state in zip(devices, cuda, strict=True):
                torch.cuda.set_rng_state(state, device)


def _length(batches: Batches) -> int | None:
    """Return how many minibatches there are, None where they do not say: a DataLoader may have none of its own."""
    try:
        return len(batches) if isinstance(batches, Sized) else None
    except TypeError:
        return None
