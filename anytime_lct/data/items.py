"""Items (sample, label) by number, as a torch data set has them, each read under a seed where it draws at random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anytime_lct.cutting.snapshot import random_positions, seeded
from anytime_lct.data.pictures import MAX_COMPARED
from anytime_lct.errors import DataError
from anytime_lct.models.files import reason

Label = int | Tensor  # the number of a class, or the targets of regression, float64 (K,)


@dataclass(frozen=True)
class Items:
    """A part of the data: a data set with a length, its items read by number; `convert` makes a tensor of a sample.

    Where items are `random`, each reading seeds the random states, which are restored afterwards.
    """

    dataset: Any
    name: str
    convert: Callable[[Any], Tensor]
    random: bool = False

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int, seed: int) -> Tensor:
        """Return a sample; raises DataError."""
        return self.item(index, seed)[0]

    def item(self, index: int, seed: int = 0) -> tuple[Tensor, Label]:
        """Return a sample and its label; raises DataError where they cannot be read."""
        try:
            if self.random:
                with seeded(seed):
                    sample, label = self.dataset[index]
            else:
                sample, label = self.dataset[index]
            return self.convert(sample), label_of(label)
        except Exception as error:
            raise DataError(
                f"Item {index} of the {self.name} cannot be read as (sample, label): {reason(error)}."
            ) from error

    def sample(self) -> tuple[list[int], list[tuple[Tensor, Label]], bool]:
        """Return the numbers of some items, evenly spread, these items, and whether one draws random numbers."""
        numbers, items, draws = list(range(0, len(self), -(-len(self) // MAX_COMPARED))), [], False
        for number in numbers:
            with seeded(number):
                before = random_positions()
                items.append(self.item(number))
                draws = draws or random_positions() != before
        return numbers, items, draws

    def labels(self, numbers: Sequence[int], examples: Sequence[Label]) -> Tensor:
        """Return all labels: the data set's `targets` where they are those of the examples, else by reading every item.

        Raises DataError.
        """
        targets = getattr(self.dataset, "targets", None)
        if targets is not None and len(targets) == len(self):
            labels, sample = torch.as_tensor(targets), stacked(examples, self.name)
            if sample.is_floating_point() and labels.dim() == 1:
                labels = labels.unsqueeze(1)
            if labels[list(numbers)].tolist() == sample.tolist():
                return labels.to(sample.dtype)
        return stacked([self.item(number)[1] for number in range(len(self))], self.name)


def stacked(labels: Sequence[Label], name: str) -> Tensor:
    """Return labels as int64 (N,), or as targets float64 (N, K); raises DataError where they are not alike."""
    shapes = [label.shape if isinstance(label, Tensor) else None for label in labels]
    if odd := next((number for number, shape in enumerate(shapes) if shape != shapes[0]), None):
        raise DataError(
            f"Expected labels that are all numbers of classes, or all as many floating-point targets, in the {name}, "
            f"got {labels[0]} for item 0 and {labels[odd]} for item {odd}; give all in one form."
        )
    return torch.stack([label for label in labels if isinstance(label, Tensor)]) if shapes[0] else torch.tensor(labels)


def label_of(label: Any) -> Label:
    """Return a label as the number of its class, or as targets where it is of floating point; raises ValueError."""
    values = np.asarray(label)
    if values.dtype.kind == "f" and values.ndim < 2 and values.size:
        return torch.from_numpy(values.astype(np.float64).reshape(-1))
    if values.dtype.kind not in "iub" or values.size != 1:
        raise ValueError(f"expected the number of its class as the label, got {label!r}; targets are of floating point")
    return int(values.item())
