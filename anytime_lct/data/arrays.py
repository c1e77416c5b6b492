"""Samples that are no images: numbers of any shape, such as (F,), (C, T) or (T, F), or numbers of tokens (T,).

Floats are float32, and whole numbers of one dimension are tokens, int64. All samples have one shape. The network gets
floats standardised: every number of (F,) by itself, those of another shape together, since its axes have no names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anytime_lct.data.augment import mix
from anytime_lct.data.batches import CPU, ON_DEVICE_BYTES, Batch, Share, Split
from anytime_lct.data.factory import Given
from anytime_lct.data.items import Items, Label, stacked
from anytime_lct.data.locations import shown
from anytime_lct.data.splits import drawn_note, hold_out, in_unit, unit_of
from anytime_lct.errors import DataError
from anytime_lct.recipes.fitting import batch_size
from anytime_lct.recipes.recipe import Augment, DataRecipe
from anytime_lct.task import Facts, TaskName

IN_MEMORY_BYTES = 4 * 2**30
MOST_MEASURED = 2**25  # numbers whose mean and deviation are taken
MOST_TOKENS = 2**20


@dataclass(frozen=True)
class Arrays:
    """One part: labels (N,) or (N, K), and samples in memory (N, ..), or `items` that are read on demand."""

    labels: Tensor
    x: Tensor | None
    items: Items

    def take(self, indices: Tensor, seed: int) -> Tensor:
        """Return samples (B, ..)."""
        if self.x is not None:
            return self.x[indices]
        return torch.stack([self.items.read(i, mix(seed, i)) for i in indices.tolist()])

    def to(self, device: torch.device) -> Arrays:
        """Return the part in the memory of a device; what is read on demand stays as it is."""
        return self if self.x is None else replace(self, labels=self.labels.to(device), x=self.x.to(device))


@dataclass(frozen=True)
class ArrayBatches:
    """Arrays in minibatches of `batch_size`, the last one short; x float32 (B, ..) or int64 (B, T), y (B,), (B, K)."""

    facts: Facts
    parts: dict[Split, tuple[Arrays, Tensor]]
    batch_size: int
    seed: int
    device: torch.device = CPU
    augment: Augment = "none"
    notes: tuple[str, ...] = ()

    def to(self, device: torch.device) -> ArrayBatches:
        arrays = {id(part): part for part, _ in self.parts.values()}
        if sum(part.x.nbytes for part in arrays.values() if part.x is not None) <= ON_DEVICE_BYTES:
            arrays = {key: part.to(device) for key, part in arrays.items()}
        parts = {split: (arrays[id(part)], indices) for split, (part, indices) in self.parts.items()}
        return replace(self, parts=parts, device=device)

    def num_samples(self, split: Split) -> int:
        return len(self.parts[split][1])

    def num_batches(self, split: Split) -> int:
        return -(-self.num_samples(split) // self.batch_size)

    def num_rows(self, split: Split, number: int) -> int:
        return min(self.batch_size, self.num_samples(split) - number * self.batch_size)

    def batches(self, split: Split, epoch: int = 0, start: int = 0, share: Share = (0, 1)) -> Iterator[Batch]:
        part, indices = self.parts[split]
        seed = mix(self.seed, epoch if split == "train" else 0, 1)
        if split == "train":
            order = torch.Generator().manual_seed(mix(self.seed, epoch, 0))
            indices = indices[torch.randperm(len(indices), generator=order)]
        for rows in indices.split(self.batch_size)[start:] if len(indices) else ():
            own = rows.tensor_split(share[1])[share[0]].to(part.labels.device)
            x, y = (each.to(self.device, non_blocking=True) for each in (part.take(own, seed), part.labels[own]))
            yield (x - x.new_tensor(self.facts.mean)) / x.new_tensor(self.facts.std) if self.facts.mean else x, y


def load(given: Given, recipe: DataRecipe, seed: int) -> ArrayBatches:
    """Read arrays, and hold the parts that are missing out of the training part by `seed`; raises DataError."""
    key = recipe.changes[0] if recipe.changes else "mean" if recipe.mean or recipe.std else None
    if key is not None or recipe.augment not in ("auto", "none"):
        raise DataError(
            f"Expected data.{key or 'augment'} for images only, got it for the arrays of '{given.name}'; leave it out."
        )
    parts = _read(given)
    train = parts["train"]
    count = len(train.labels)
    missing = {"validation": "validation" not in parts, "test": "test" not in parts}
    held_out = hold_out(recipe, count, seed, **missing, samples="samples")
    classes = given.names_of({part: each.labels for part, each in parts.items()})
    first = train.take(torch.tensor([0]), 0)
    tokens = 0 if first.is_floating_point() else _tokens(given, parts)
    task: TaskName = "classification"
    centers, scale = (), 1.0
    if train.labels.is_floating_point():
        task, (centers, scale) = "regression", unit_of(train.labels[held_out.train], given.name)
        parts = {part: replace(each, labels=in_unit(each.labels, centers, scale)) for part, each in parts.items()}
    train = parts["train"]
    divided: dict[Split, tuple[Arrays, Tensor]] = {
        "train": (train, held_out.train),
        "validation": _whole_or(parts.get("validation"), train, held_out.validation),
        "test": _whole_or(parts.get("test"), train, held_out.test),
    }
    read = f"Whole numbers are read as tokens, of which there are {tokens:,}; amounts have to be floats."
    notes = (read,) if tokens and not given.tokens else ()
    notes += given.notes + ((drawn_note(len(held_out.test), count, "samples"),) if missing["test"] else ())
    mean, std = ((), ()) if tokens else _mean_and_std(train, held_out.train)
    facts = Facts(
        shown(recipe.name), task, tuple(first.shape[1:]), len(classes), classes, mean, std,
        counts=tuple(len(indices) for _, indices in divided.values()), centers=centers, scale=scale,
        inputs="array", tokens=tokens, tokenizer=given.tokenizer,
    )  # fmt: skip
    rows = recipe.batch_size or batch_size(len(held_out.train))
    return ArrayBatches(facts, divided, rows, seed, notes=notes)


def numbers_of(sample: Any) -> Tensor:
    """Return a sample as float32, or as numbers of tokens (T,) int64; raises ValueError."""
    values = sample.detach().cpu().numpy() if isinstance(sample, Tensor) else np.asarray(sample)
    if values.dtype.kind not in "fiub" or not values.ndim or not values.size:
        raise ValueError(f"expected an array of numbers, got {type(sample).__name__} of {values.dtype}")
    if values.dtype.kind in "iu" and values.dtype != np.uint8 and values.ndim == 1:
        return torch.from_numpy(values.astype(np.int64))
    floats = torch.from_numpy(values.astype(np.float32))
    if not floats.isfinite().all():
        raise ValueError("expected finite numbers, got NaN or infinity; clean the data first")
    return floats


def _read(given: Given) -> dict[str, Arrays]:
    """Read every part, into memory where it is not random and all is small; raises DataError."""
    parts: dict[str, Arrays] = {}
    items = {part: Items(dataset, given.title(part), numbers_of) for part, dataset in given.parts.items()}
    first = replace(items["train"], random=True).item(0)[0]
    small = sum(map(len, items.values())) * first.nbytes <= IN_MEMORY_BYTES
    for part, each in items.items():
        numbers, examples, draws = each.sample()
        each = replace(each, convert=_like(first, given.tokens), random=draws)
        if draws or not small:
            parts[part] = Arrays(each.labels(numbers, [label for _, label in examples]), None, each)
            continue
        x, labels = torch.empty(len(each), *first.shape, dtype=first.dtype), list[Label]()
        for number in range(len(each)):
            x[number], label = each.item(number)
            labels.append(label)
        parts[part] = Arrays(stacked(labels, each.name), x, each)
    return parts


def _like(first: Tensor, tokens: int) -> Callable[[Any], Tensor]:
    """Return what converts a sample and compares it with the first, and with the number of tokens, 0 where unknown.

    It raises ValueError where they do not agree.
    """

    def convert(sample: Any) -> Tensor:
        x = numbers_of(sample)
        if x.dtype != first.dtype or x.shape != first.shape:
            raise ValueError(
                f"expected {_show(first)} as the first sample is, got {_show(x)}; give all one shape, for example by "
                f"padding them"
            )
        if tokens and not x.is_floating_point() and not 0 <= x.min() <= x.max() < tokens:
            odd = int(x.min()) if x.min() < 0 else int(x.max())
            raise ValueError(f"expected tokens from 0 to {tokens - 1}, got {odd}; correct them, or their number")
        return x

    return convert


def _show(x: Tensor) -> str:
    return f"{'numbers' if x.is_floating_point() else 'tokens'} of shape {tuple(x.shape)}"


def _tokens(given: Given, parts: dict[str, Arrays]) -> int:
    """Return the number of tokens: the data's own, or that of those in memory; raises DataError."""
    in_memory = [part.x for part in parts.values() if part.x is not None]
    least, most = (min(int(x.min()) for x in in_memory), max(int(x.max()) for x in in_memory)) if in_memory else (0, -1)
    tokens = given.tokens or most + 1
    if not tokens:
        raise DataError(
            f"Expected the number of tokens beside samples that are read on demand, got none from '{given.name}'; "
            f'return it too, as "tokens".'
        )
    if least < 0 or tokens > MOST_TOKENS:
        raise DataError(
            f"Expected tokens from 0 to {min(tokens, MOST_TOKENS) - 1}, got {least if least < 0 else tokens - 1} in "
            f"'{given.name}'; number the tokens from 0 on, or give floats for amounts."
        )
    return tokens


def _whole_or(part: Arrays | None, other: Arrays, indices: Tensor) -> tuple[Arrays, Tensor]:
    return (other, indices) if part is None else (part, torch.arange(len(part.labels)))


def _mean_and_std(train: Arrays, indices: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of every number of (F,), or of all numbers; what never varies keeps its unit."""
    every = -(-len(indices) * math.prod(train.take(indices[:1], 0).shape) // MOST_MEASURED)
    x = train.take(indices[::every], 0).double()
    x = x if x.dim() == 2 else x.reshape(-1, 1)
    deviations = x.std(dim=0, correction=0)
    deviations[deviations < 1e-12] = 1.0
    return tuple(x.mean(dim=0).tolist()), tuple(deviations.tolist())
