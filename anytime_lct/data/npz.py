"""Data in one .npz file of numpy, as npz:FILE: its arrays by the names that people give them.

x_train  y_train  x_test  y_test                 or X_..; with x_val, x_valid or x_validation too
train_images  train_labels  test_images ..       or train_data, train_x ..
x  y                                             without parts
classes  class_names                             names, where there are any; tokens is the number of tokens
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anytime_lct.data.factory import Given
from anytime_lct.data.labels import numbered
from anytime_lct.data.locations import missing, path_of
from anytime_lct.data.pictures import PART_NAMES
from anytime_lct.errors import DataError

SAMPLES, LABELS = ("x", "data", "images", "inputs"), ("y", "labels", "targets")
GET = "name a file that numpy.savez wrote"


@dataclass(frozen=True)
class Pairs:
    """Samples (N, ..) and their labels, (N,) or (N, K), as a data set; `targets` are the labels."""

    x: NDArray[Any]
    targets: NDArray[Any]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[NDArray[Any], Any]:
        return self.x[index], self.targets[index]


def give(name: str, root: Path) -> Given:
    """Read the arrays of npz:FILE; raises DataError."""
    path = root / Path(path_of(name)).expanduser()
    if not path.is_file():
        raise missing(path.absolute(), GET)
    arrays = _arrays(path)
    parts: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
    for part, names in PART_NAMES.items():
        for pair in [pair for each in names for pair in _pairs(each)] + ([("x", "y")] if part == "train" else []):
            if part not in parts and all(key in arrays for key in pair):
                parts[part] = (arrays[pair[0]], arrays[pair[1]])
    if "train" not in parts:
        raise DataError(
            f"Expected arrays x_train and y_train, or x and y, and perhaps x_test and y_test, in '{path}', got "
            f"{', '.join(arrays) or 'none'}; rename them."
        )
    names = next((arrays[key] for key in ("classes", "class_names") if key in arrays), None)
    classes = () if names is None else tuple(map(str, names.ravel().tolist()))
    labels = {part: _labels(name, part, *pair) for part, pair in parts.items()}
    if labels["train"].dtype.kind == "U":
        classes, numbers = numbered({part: each.tolist() for part, each in labels.items()}, classes, name)
        labels = {part: np.array(each) for part, each in numbers.items()}
    given = {part: Pairs(x, labels[part]) for part, (x, _) in parts.items()}
    return Given(name, dict(given), classes, int(arrays["tokens"].item()) if "tokens" in arrays else 0)


def _pairs(part: str) -> list[tuple[str, str]]:
    """Return the names that the samples and the labels of a part may have, in small letters."""
    samples = [name for each in SAMPLES for name in (f"{each}_{part}", f"{part}_{each}", f"{part}{each}")]
    labels = [name for each in LABELS for name in (f"{each}_{part}", f"{part}_{each}", f"{part}{each}")]
    return [(x, y) for x in samples for y in labels]


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read all arrays of a file, by their names in small letters; raises DataError."""
    try:
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            return {key.lower(): file[key] for key in file.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        reason = "it holds Python objects" if "pickle" in str(error) else "it is damaged, or no .npz file"
        raise DataError(f"The data in '{path}' cannot be read: {reason}; write it again with numpy.savez.") from None


def _labels(name: str, part: str, x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    """Return labels (N,), or targets (N, K); raises DataError where there is none for every sample."""
    if not x.ndim or not len(x) or x.shape[:1] != y.shape[:1]:
        raise DataError(
            f"Expected a label for each sample in the {part} part of '{name}', got samples {x.shape} and labels "
            f"{y.shape}; correct them."
        )
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 2 and y.dtype.kind in "iub" and bool(((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all()):
        return y.argmax(axis=1)  # one-hot
    return y
