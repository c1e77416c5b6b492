"""The user's own data: a factory in a Python file that gives torch datasets or loaders, as path/to/file.py:FACTORY.

    def make(root):                      # the folder of the file, or that of --data-root; may be left out
        return {"train": .., "validation": .., "test": .., "classes": ["cat", "dog"]}
        return {"train": .., "targets": ["age"]}     # labels of floating point, () or (K,): regression

Parts hold items (image, label) by number; a loader stands for its data set, as minibatches and their order follow from
the seed. What items draw from the random states of torch, Python and numpy follows from seed, epoch and number.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils import data

from anytime_lct.cutting.snapshot import random_positions, seeded
from anytime_lct.data.batches import Images, fitted
from anytime_lct.data.images import IMAGENET, ImageSet, mean_and_std
from anytime_lct.data.labels import expect_labels
from anytime_lct.data.pictures import IN_MEMORY_BYTES, LARGEST, MAX_COMPARED, SMALL_SIDE, choose_size
from anytime_lct.errors import DataError
from anytime_lct.models.files import load_factory, reason, required
from anytime_lct.models.imports import importing_from
from anytime_lct.pixels import as_seen, shorter_side
from anytime_lct.recipes.recipe import DataRecipe

FORM = '{"train": .., "test": .., "classes": [..]}, perhaps with "validation"'
Label = int | Tensor  # the number of a class, or the targets of regression, float64 (K,)
PARTS = {"train": "training", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class Items:
    """A part of the data: a data set with a length, whose items (image, label) are read by number.

    Where items are `random`, each reading seeds the random states, which are restored afterwards.
    """

    dataset: Any
    name: str
    channels: int | None = None
    random: bool = False

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int, seed: int) -> Tensor:
        """Return an image, uint8 (C, h, w); raises DataError."""
        return self.item(index, seed)[0]

    def item(self, index: int, seed: int = 0) -> tuple[Tensor, Label]:
        """Return an image and its label; raises DataError where they cannot be read."""
        try:
            if self.random:
                with seeded(seed):
                    image, label = self.dataset[index]
            else:
                image, label = self.dataset[index]
            return _pixels(image, self.channels), _label(label)
        except Exception as error:
            raise DataError(
                f"Item {index} of the {self.name} cannot be read as (image, label): {reason(error)}."
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


def read(recipe: DataRecipe, root: Path) -> ImageSet:
    """Read what the factory of `recipe.name` gives, each part into memory where it is small and not random.

    Raises DataError.
    """
    parts, classes = _parts(recipe.name, root)
    channels = dataclasses.replace(parts["train"], random=True).item(0)[0].shape[0]
    parts = {part: dataclasses.replace(items, channels=channels) for part, items in parts.items()}
    samples = {part: items.sample() for part, items in parts.items()}
    sizes = [(image.shape[1], image.shape[2]) for _, items, _ in samples.values() for image, _ in items]
    size, alike = choose_size(sizes, recipe.image_size, LARGEST)
    shape, resize = (channels, *size), None if alike else shorter_side(*size)
    small = alike and sum(map(len, parts.values())) * channels * size[0] * size[1] <= IN_MEMORY_BYTES
    images: dict[str, Images] = {}
    for part, items in parts.items():
        numbers, examples, draws = samples[part]
        if small and not draws:
            images[part] = _in_memory(items, shape)
        else:
            items = dataclasses.replace(items, random=draws)
            labels = _labels(items, numbers, [label for _, label in examples])
            images[part] = Images(labels, shape, None, items, resize)
    is_regression = images["train"].labels.is_floating_point()
    if is_regression:
        classes = _target_names(images, parts, classes)
    elif not classes:
        classes = tuple(map(str, range(1 + max(int(part.labels.max()) for part in images.values()))))
    for part, items in parts.items() if not is_regression else ():
        expect_labels(images[part].labels, classes, items.name)
    train, on_demand = images["train"], images["train"].pixels is None
    statistics = IMAGENET if on_demand and channels == 3 else None
    if on_demand and channels != 3:
        statistics = mean_and_std(train.view(torch.tensor(samples["train"][0])))
    augment = "none" if samples["train"][2] else "imagenet" if not alike or max(size) > SMALL_SIDE else "crop-flip"
    if augment == "crop-flip" and channels == 1:
        augment = "crop"  # mirrored signs are others
    if is_regression:
        augment = "none"  # a moved image may have other targets
    return ImageSet(train, images.get("test"), classes, statistics, augment, images.get("validation"))


def _parts(name: str, root: Path) -> tuple[dict[str, Items], tuple[str, ...]]:
    """Call the factory; return the parts that it gives, and the names of the classes, () where it gives none."""
    path = Path(name.rpartition(":")[0])
    if not path.is_file():
        raise DataError(
            f"Expected the data set's file at '{path.absolute()}', which is not there; name it with --data "
            f"path/to/file.py:FACTORY."
        )
    with importing_from(path.resolve().parent), seeded(0):  # a split at random is the same in every process
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
        for key in (*PARTS, "classes", "targets")
    }
    if values["train"] is None:
        raise DataError(f"Expected '{name}' to return {FORM}, got a {type(result).__name__}; return these.")
    parts: dict[str, Items] = {}
    for part, word in PARTS.items():
        if values[part] is not None:
            parts[part] = Items(_indexed(values[part], f"{word} part of '{name}'"), f"{word} part of '{name}'")
    named = [values[key] for key in ("classes", "targets") if values[key] is not None]
    classes = named[0] if named else getattr(parts["train"].dataset, "classes", ())
    return parts, tuple(map(str, classes))


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


def _in_memory(items: Items, shape: tuple[int, ...]) -> Images:
    pixels, labels = torch.empty(len(items), *shape, dtype=torch.uint8), list[Label]()
    for number in range(len(items)):
        image, label = items.item(number)
        labels.append(label)
        pixels[number] = torch.from_numpy(fitted(image, shape, None)).permute(2, 0, 1)
    return Images(_stacked(labels, items.name), shape, pixels)


def _labels(items: Items, numbers: Sequence[int], examples: Sequence[Label]) -> Tensor:
    """Return all labels: the data set's `targets` where they are those of the examples, else by reading every item."""
    targets = getattr(items.dataset, "targets", None)
    if targets is not None and len(targets) == len(items):
        labels, sample = torch.as_tensor(targets), _stacked(examples, items.name)
        if sample.is_floating_point() and labels.dim() == 1:
            labels = labels.unsqueeze(1)
        if labels[list(numbers)].tolist() == sample.tolist():
            return labels.to(sample.dtype)
    return _stacked([items.item(number)[1] for number in range(len(items))], items.name)


def _stacked(labels: Sequence[Label], name: str) -> Tensor:
    """Return labels as int64 (N,), or as targets float64 (N, K); raises DataError where they are not alike."""
    shapes = [label.shape if isinstance(label, Tensor) else None for label in labels]
    if odd := next((number for number, shape in enumerate(shapes) if shape != shapes[0]), None):
        raise DataError(
            f"Expected labels that are all numbers of classes, or all as many floating-point targets, in the {name}, "
            f"got {labels[0]} for item 0 and {labels[odd]} for item {odd}; give all in one form."
        )
    return torch.stack([label for label in labels if isinstance(label, Tensor)]) if shapes[0] else torch.tensor(labels)


def _target_names(images: dict[str, Images], parts: dict[str, Items], names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the targets; raises DataError where targets of the parts or the names do not agree."""
    count = images["train"].labels.shape[1]
    for part, items in parts.items():
        labels = images[part].labels
        if labels.shape[1:] != (count,) or not labels.isfinite().all():
            raise DataError(
                f"Expected {count} finite numbers as the targets of every item, as the first of training has, got "
                f"others in the {items.name}; correct them."
            )
    if names and len(names) != count:
        raise DataError(f"Expected a name for each of {count} targets, got {len(names)}: {', '.join(names)}; fix it.")
    return tuple(names) or ("target",) * (count == 1) or tuple(f"target {number}" for number in range(1, count + 1))


def _label(label: Any) -> Label:
    """Return a label as the number of its class, or as targets where it is of floating point; raises ValueError."""
    values = np.asarray(label)
    if values.dtype.kind == "f" and values.ndim < 2 and values.size:
        return torch.from_numpy(values.astype(np.float64).reshape(-1))
    if values.dtype.kind not in "iub" or values.size != 1:
        raise ValueError(f"expected the number of its class as the label, got {label!r}; targets are of floating point")
    return int(values.item())


def _pixels(image: Any, channels: int | None) -> Tensor:
    """Return an image of Pillow, torch (C, H, W) or numpy (H, W, C) as uint8 (C, H, W); raises ValueError."""
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"expected 8 bits a channel, got mode {image.mode}")
        own = 1 if image.mode in ("1", "L") else 3
        return torch.from_numpy(as_seen(image, channels or own)).permute(2, 0, 1)
    if isinstance(image, np.ndarray):
        pixels = torch.from_numpy(np.ascontiguousarray(image))
        pixels = pixels.permute(2, 0, 1) if pixels.dim() == 3 else pixels
    elif isinstance(image, Tensor):
        pixels = image.as_subclass(Tensor)
    else:
        raise ValueError(f"expected an image of Pillow, torch or numpy, got a {type(image).__name__}")
    pixels = pixels.unsqueeze(0) if pixels.dim() == 2 else pixels
    if pixels.dim() != 3 or (channels is not None and pixels.shape[0] != channels):
        raise ValueError(f"expected an image of {channels or 'some'} channels, got the shape {tuple(image.shape)}")
    if pixels.dtype == torch.uint8:
        return pixels
    if not pixels.is_floating_point():
        raise ValueError(f"expected uint8 or float pixels, got {pixels.dtype}")
    least, most = pixels.min().item(), pixels.max().item()
    if not 0 <= least <= most <= 1:
        raise ValueError(
            f"expected float pixels in [0, 1], got values from {least:.3g} to {most:.3g}; leave Normalize out, as "
            f"data.mean and data.std normalise"
        )
    return (pixels * 255).round().to(torch.uint8)
