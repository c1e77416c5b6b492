"""Labels as a data set has them, numbers or names, become numbers of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from anytime_lct.errors import DataError


def numbered(
    labels: Mapping[str, Sequence[Any]], classes: Sequence[str], name: str
) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """Return the names of the classes, and the labels of every part as their numbers; raises DataError.

    Without `classes`, names are sorted, and classes by number are named by their numbers. `name` is the data set's.

    >>> numbered({"train": ["dog", "cat"], "test": ["dog"]}, (), "mine")
    (('cat', 'dog'), {'train': [1, 0], 'test': [1]})
    """
    first = next(iter(labels["train"]), 0)
    kind = str if isinstance(first, str) else int
    for part, values in labels.items():
        for number, value in enumerate(values):
            if not isinstance(value, kind):
                raise DataError(
                    f"Expected the {'name' if kind is str else 'number'} of its class as the label of every image, got "
                    f"{value!r} for item {number} of the {part} part of '{name}'; correct it."
                )
    if not classes:
        present = set(labels["train"])
        classes = sorted(present) if kind is str else [str(number) for number in range(1 + max(present, default=0))]
    if kind is int:
        for part, values in labels.items():
            expect_labels(torch.tensor(values), classes, f"{part} part of '{name}'")
        return tuple(classes), {part: list(map(int, values)) for part, values in labels.items()}
    number_of = {each: number for number, each in enumerate(classes)}
    for part, values in labels.items():
        if others := set(values) - number_of.keys():
            raise DataError(
                f"Expected the classes of training in the {part} part of '{name}' too, got '{min(others)}', which is "
                f"not one of them; correct the labels."
            )
    return tuple(classes), {part: [number_of[value] for value in values] for part, values in labels.items()}


def expect_labels(labels: Tensor, classes: Sequence[str], name: str) -> None:
    """Raise DataError unless labels are numbers of `classes`; `name` is that of the part."""
    wrong = ((labels < 0) | (labels >= len(classes))).nonzero()
    if len(wrong):
        number = int(wrong[0])
        raise DataError(
            f"Expected labels from 0 to {len(classes) - 1}, the number of each of {len(classes)} classes, got "
            f"{int(labels[number])} for item {number} of the {name}; correct the labels or the classes."
        )
