"""What the user's own code or file gives as data: parts whose items are read by number, and names.

def make(root):                      # the folder of the file, or that of --data-root; may be left out
    return {"train": .., "validation": .., "test": .., "classes": ["cat", "dog"]}
    return {"train": .., "targets": ["age"]}     # labels of floating point, () or (K,): regression
    return {"train": .., "tokens": 5000}         # samples are numbers of tokens, (T,)
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils import data

from anytime_lct.cutting.snapshot import seeded
from anytime_lct.data.labels import expect_labels
from anytime_lct.errors import DataError
from anytime_lct.models.files import load_factory, reason, required
from anytime_lct.models.imports import importing_from

FORM = '{"train": .., "test": .., "classes": [..]}, perhaps with "validation"'
MANY = 1000  # the number of a class from which it must be below that of samples
PARTS = {"train": "training", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class Given:
    """The data called `name`: data sets of its parts, names of classes or targets, how many tokens, and notes.

    The numbers of tokens are those of a `tokenizer`, as its JSON, where the data is texts.
    """

    name: str
    parts: dict[str, Any]
    classes: tuple[str, ...] = ()
    tokens: int = 0
    notes: tuple[str, ...] = ()
    tokenizer: str = ""

    def title(self, part: str) -> str:
        """Return what a part is called in messages."""
        return f"{PARTS[part]} part of '{self.name}'"

    def names_of(self, labels: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Return the names of classes, or of targets where labels are floats (N, K).

        Raises DataError where labels and names do not agree.
        """
        if labels["train"].is_floating_point():
            return self._target_names(labels)
        most, count = (max(map(each, labels.values())) for each in (lambda part: int(part.max()), len))
        if not self.classes and most >= max(MANY, count):
            raise DataError(
                f"Expected numbers of classes from 0 on as the labels of '{self.name}', got {most} among {count} "
                f"samples; number the classes, or give floats for amounts."
            )
        names = self.classes or tuple(map(str, range(1 + most)))
        for part, values in labels.items():
            expect_labels(values, names, self.title(part))
        return names

    def _target_names(self, labels: Mapping[str, Tensor]) -> tuple[str, ...]:
        count = labels["train"].shape[1]
        for part, values in labels.items():
            if values.shape[1:] != (count,) or not values.isfinite().all():
                raise DataError(
                    f"Expected {count} finite numbers as the targets of every item, as the first of training has, got "
                    f"others in the {self.title(part)}; correct them."
                )
        if self.classes and len(self.classes) != count:
            names = ", ".join(self.classes)
            raise DataError(f"Expected a name for each of {count} targets, got {len(self.classes)}: {names}; fix it.")
        return self.classes or ("target",) * (count == 1) or tuple(f"target {k}" for k in range(1, count + 1))


def call(name: str, root: Path) -> Given:
    """Call the factory path/to/file.py:FACTORY, and check the form of what it gives; raises DataError."""
    path = Path(name.rpartition(":")[0])
    if not path.is_file():
        raise DataError(
            f"Expected the data set's file at '{path.absolute()}', which is not there; name it with --data "
            f"path/to/file.py:FACTORY."
        )
    with importing_from(path), seeded(0):  # a split at random is the same in every process
        try:
            factory = load_factory(name, "data set", DataError)
            arguments = {"root": root} if "root" in inspect.signature(factory).parameters else {}
            if missing := [key for key in required(factory) if key not in arguments]:
                raise DataError(
                    f"Expected '{name}' to take at most `root`, the folder of the data, but it requires "
                    f"{', '.join(missing)} too; give the parameters defaults."
                )
            result = factory(**arguments)
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"The data set '{name}' cannot be made: {reason(error)}; correct it (its parameter `root`, if it has "
                f"one, is '{root.absolute()}', or the folder of --data-root)."
            ) from error
    values: dict[str, Any] = {
        key: result.get(key) if isinstance(result, Mapping) else getattr(result, key, None)
        for key in (*PARTS, "classes", "targets", "tokens")
    }
    if values["train"] is None:
        raise DataError(f"Expected '{name}' to return {FORM}, got a {type(result).__name__}; return these.")
    parts = {
        part: _indexed(values[part], f"{PARTS[part]} part of '{name}'") for part in PARTS if values[part] is not None
    }
    named: list[Sequence[Any]] = [values[key] for key in ("classes", "targets") if values[key] is not None]
    classes = named[0] if named else getattr(parts["train"], "classes", ())
    return Given(name, parts, tuple(map(str, classes)), values["tokens"] or 0)


def _indexed(part: Any, name: str) -> Any:
    """Return a data set with a length whose items are read by number: of a loader, its own; raises DataError."""
    dataset: Any = part.dataset if isinstance(part, data.DataLoader) else part
    if isinstance(dataset, data.IterableDataset) or not (
        hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    ):
        raise DataError(
            f"Expected a data set with a length and items by number as the {name}, as every minibatch follows from the "
            f"seed, got a {type(dataset).__name__}; give one with __len__ and __getitem__."
        )
    if not len(dataset):
        raise DataError(f"Expected items in the {name}, got none; add some.")
    return dataset
