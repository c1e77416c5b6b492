"""The user's own minibatches, a DataLoader or a list, behind the interface of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized

import torch
from torch import Tensor

from anytime_lct.cutting.snapshot import save_random_states
from anytime_lct.data.batches import Batch, Share, Split
from anytime_lct.errors import DataError
from anytime_lct.recipes.recipe import Augment
from anytime_lct.task import Facts, TaskName

Batches = Iterable[tuple[Tensor, Tensor]]


class LoadedBatches:
    """Training minibatches, iterated once per epoch, and those of validation, which may be none.

    A loader does not see what training draws from the random states of torch, Python and numpy: they are restored
    before every next minibatch.
    Raises DataError for training data without a length.
    """

    augment: Augment = "none"
    notes: tuple[str, ...] = ()

    def __init__(self, train: Batches, validation: Batches, task: TaskName) -> None:
        if not _length(train):
            raise DataError("Expected data with a length, at least one minibatch: a DataLoader, or a list of (x, y).")
        if isinstance(validation, Iterator):
            raise DataError("Expected validation data that every epoch can iterate, got an iterator; pass a list.")
        self._splits: dict[Split, Batches] = {"train": train, "validation": validation}
        self.facts = Facts("own", task, (), 0, ())

    @property
    def rows(self) -> int | None:
        """The samples of a minibatch, as the loader or the first of a list of minibatches says, None where unknown."""
        train = self._splits["train"]
        return len(train[0][1]) if isinstance(train, Sequence) and train else getattr(train, "batch_size", None)

    def to(self, device: torch.device) -> LoadedBatches:
        """Return these minibatches, which stay where they are until they are used."""
        return self

    def num_batches(self, split: Split) -> int:
        """Count minibatches; for validation data without a length, return 1 where there are any."""
        length = _length(self._splits[split])
        return int(any(True for _ in self._splits[split])) if length is None else length

    def num_samples(self, split: Split) -> int:
        """Return a number above 0 where a split has samples, which are not counted."""
        return self.num_batches(split)

    def num_rows(self, split: Split, number: int) -> int:
        raise DataError("Expected one process for your own minibatches, got replicas; train into a run folder.")

    def batches(self, split: Split, epoch: int = 0, start: int = 0, share: Share = (0, 1)) -> Iterator[Batch]:
        """Yield the minibatches of one pass, in the loader's order."""
        for batch in self._splits[split]:
            restore = save_random_states()
            yield batch
            restore()


def _length(batches: Batches) -> int | None:
    """Return the number of minibatches, None where it is unknown, as for a DataLoader of an iterable data set."""
    try:
        return len(batches) if isinstance(batches, Sized) else None
    except TypeError:
        return None
