"""The minibatches that a run folder has from the user's own program: what its network is measured on, as it read them.

RUN/arrays/validation_x.npy  validation_y.npy  test_x.npy  test_y.npy     facts.json has their facts
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anytime_lct import disk
from anytime_lct.data.batches import Batch, Dataset, Share, Split
from anytime_lct.errors import CheckpointError, DataError
from anytime_lct.recipes.recipe import Augment, DataRecipe
from anytime_lct.task import Facts

NAME, FOLDER, FACTS = "saved", "arrays", "facts.json"
MEASURED: tuple[Split, ...] = ("validation", "test")
ROWS, LARGEST = 128, 4 * 2**30  # bytes of a part


@dataclass(frozen=True)
class SavedBatches:
    """The validation and the test part as they were saved, in minibatches of 128; there is no training part."""

    facts: Facts
    parts: dict[Split, tuple[NDArray[Any], NDArray[Any]]]
    augment: Augment = "none"
    notes: tuple[str, ...] = ()

    def to(self, device: torch.device) -> SavedBatches:
        """Return these minibatches, which stay in their files until they are used."""
        return self

    def num_samples(self, split: Split) -> int:
        return len(self.parts[split][1]) if split in self.parts else 0

    def num_batches(self, split: Split) -> int:
        return -(-self.num_samples(split) // ROWS)

    def num_rows(self, split: Split, number: int) -> int:
        return min(ROWS, self.num_samples(split) - number * ROWS)

    def batches(self, split: Split, epoch: int = 0, start: int = 0, share: Share = (0, 1)) -> Iterator[Batch]:
        for number in range(start, self.num_batches(split)):
            x, y = (torch.from_numpy(array[number * ROWS : (number + 1) * ROWS].copy()) for array in self.parts[split])
            yield x.tensor_split(share[1])[share[0]], y.tensor_split(share[1])[share[0]]


def load(recipe: DataRecipe) -> Dataset:
    """Read what `save` wrote into the run folder `recipe.root`; raises DataError where it is damaged."""
    run = Path(recipe.root or ".")
    try:
        facts = read_facts(run / FACTS)
        parts: dict[Split, tuple[NDArray[Any], NDArray[Any]]] = {
            split: (_read(run, f"{split}_x"), _read(run, f"{split}_y"))
            for split in MEASURED
            if (run / FOLDER / f"{split}_x.npy").exists()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"The data in '{run / FOLDER}' is damaged: {error}; save the run again.") from None
    return SavedBatches(facts, parts)


def save(data: Dataset, run: Path) -> None:
    """Write the validation and the test part of `data` into a run folder; raises DataError where they are too large."""
    (run / FOLDER).mkdir(parents=True, exist_ok=True)
    for split in MEASURED:
        if data.num_batches(split):
            for name, array in zip("xy", _joined(data, split), strict=True):
                content = BytesIO()
                np.save(content, array, allow_pickle=False)
                disk.write(run / FOLDER / f"{split}_{name}.npy", content.getvalue(), CheckpointError)


def read_facts(path: Path) -> Facts:
    """Read the facts of a data set as a run folder has them; raises OSError, ValueError, TypeError, AttributeError."""
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
    return Facts(**fields)


def _read(run: Path, name: str) -> NDArray[Any]:
    return np.load(run / FOLDER / f"{name}.npy", mmap_mode="r", allow_pickle=False)


def _joined(data: Dataset, split: Split) -> Iterator[NDArray[Any]]:
    xs, ys, size = list[Tensor](), list[Tensor](), 0
    for x, y in data.batches(split):
        size += x.numel() * x.element_size()
        if size > LARGEST:
            raise DataError(
                f"Expected a {split} part of at most {LARGEST / 2**30:.0f} GB to store in the run, got more; name a "
                f"factory instead, as data='path/to/file.py:FACTORY'."
            )
        xs.append(x.float() if x.is_floating_point() else x)
        ys.append(y)
    return (torch.cat(parts).cpu().numpy() for parts in (xs, ys))
