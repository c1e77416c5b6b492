"""The user's own minibatches, DataLoaders or lists, behind the interface of a data set.

    [(x, y), ..]                         one part, or a DataLoader of one
    {"train": .., "validation": .., "test": .., "classes": ["cat", "dog"], "mean": (..), "std": (..)}

Mean and deviation of every channel are those by which images (B, C, H, W) were normalised, on pixels in [0, 1]. Other
floats, and numbers of tokens (B, T), are network inputs as they are.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import nullcontext
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from anytime_lct.cutting.snapshot import save_random_states, seeded
from anytime_lct.data.augment import mix
from anytime_lct.data.batches import Batch, Share, Split
from anytime_lct.errors import DataError
from anytime_lct.modes import probing
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import Augment
from anytime_lct.task import Facts, TaskName

Batches = Iterable[tuple[Tensor, Tensor]]
Parts = Batches | Mapping[str, Any]
OWN = "own"  # the name of data, and of a network, of the user's program
SPLITS: tuple[Split, ...] = get_args(Split)
KEYS = (*SPLITS, "classes", "mean", "std")
FORM = "a DataLoader, or a list of (x, y)"


class LoadedBatches:
    """Minibatches of the user's program; `data` without names of its parts is the part `alone`.

    A loader does not see what training draws from the random states of torch, Python and numpy: they are restored
    before every next minibatch. With a `seed`, a pass depends on it and on the epoch alone: the random states, and the
    generators of a loader, are seeded at its beginning. Raises DataError.
    """

    augment: Augment = "none"
    notes: tuple[str, ...] = ()

    def __init__(self, data: Parts, alone: Split, task: TaskName = "classification", seed: int | None = None) -> None:
        parts = cast("dict[str, Any]", dict(data) if isinstance(data, Mapping) else {alone: data})
        if unknown := parts.keys() - {*KEYS}:
            raise DataError(f"Expected {', '.join(KEYS)} as parts of the data, got {min(map(repr, unknown))}.")
        if isinstance(parts.get("validation"), Iterator) or isinstance(parts.get("test"), Iterator):
            raise DataError("Expected data for evaluation that can be iterated again, got an iterator; pass a list.")
        self._splits: dict[Split, Batches] = {split: parts.get(split, ()) for split in SPLITS}
        self._seed = seed
        statistics = (tuple(map(float, parts.get("mean", ()))), tuple(map(float, parts.get("std", ()))))
        self.facts = Facts(OWN, task, (), 0, tuple(map(str, parts.get("classes", ()))), *statistics)

    def described(self, network: LCTNetwork) -> LoadedBatches:
        """Return these minibatches with the facts of one, and of what the network answers to it; raises DataError."""
        restore = save_random_states()
        x, y = next(iter(self._splits[self.typical]), (None, None))
        restore()
        if x is None or y is None:
            raise DataError(f"Expected at least one minibatch in the data, got none; pass {FORM}.")
        shape = tuple(x.shape[1:])
        try:
            with probing(network):
                outputs = network(x[:2].to(next(network.parameters()).device))[-1].shape[-1]
        except RuntimeError as error:
            reason = next(iter(str(error).splitlines()), "").rstrip(".")
            raise DataError(
                f"Expected minibatches that the network reads, got one of shape {tuple(x.shape)}: {reason}; correct it."
            ) from None
        facts = dataclasses.replace(self.facts, **_kind(self.facts, x, outputs, network))
        if self.typical != "train" and y.is_floating_point():  # in training labels may be shares of classes
            facts = dataclasses.replace(facts, task="regression")
        classes = facts.classes or tuple(map(str, range(outputs)))
        if len(classes) != outputs:
            raise DataError(f"Expected a class for each of {outputs} outputs of the network, got {len(classes)}.")
        described = copy.copy(self)
        described.facts = dataclasses.replace(facts, input_shape=shape, outputs=outputs, classes=classes)
        return described

    @property
    def typical(self) -> Split:
        """The part that stands for all: the test part, or the next one before it that has minibatches."""
        return "test" if self.num_batches("test") else "validation" if self.num_batches("validation") else "train"

    @property
    def rows(self) -> int | None:
        """The samples of a minibatch, as the loader or the first of a list of minibatches says, None where unknown."""
        train = self._splits["train"]
        return len(train[0][1]) if isinstance(train, Sequence) and train else getattr(train, "batch_size", None)

    def to(self, device: torch.device) -> LoadedBatches:
        """Return these minibatches, which stay where they are until they are used."""
        return self

    def expect_length(self) -> None:
        """Raise DataError for training data without a length."""
        if not _length(self._splits["train"]):
            raise DataError(f"Expected training data with a length, at least one minibatch: {FORM}.")

    def num_batches(self, split: Split) -> int:
        """Count minibatches; for data without a length, return 1 where there are any."""
        length = _length(self._splits[split])
        return int(any(True for _ in self._splits[split])) if length is None else length

    def num_samples(self, split: Split) -> int:
        """Return a number above 0 where a split has samples, which are not counted."""
        return self.num_batches(split)

    def num_rows(self, split: Split, number: int) -> int:
        raise DataError("Expected one process for your own minibatches, got replicas; train by a recipe.")

    def batches(self, split: Split, epoch: int = 0, start: int = 0, share: Share = (0, 1)) -> Iterator[Batch]:
        """Yield the minibatches of one pass from `start` on, in the loader's order."""
        part = self._splits[split]
        with nullcontext() if self._seed is None else seeded(mix(self._seed, epoch)):
            if self._seed is not None:
                _seed_generators(part, mix(self._seed, epoch), epoch)
            for number, batch in enumerate(part):
                restore = save_random_states()
                if number >= start:
                    yield batch
                restore()


def _kind(facts: Facts, x: Tensor, outputs: int, network: LCTNetwork) -> dict[str, Any]:
    """Return what kind of inputs a minibatch holds, and the number of tokens, as arguments of `Facts`.

    Tokens are as many as the network's first embedding has rows. Raises DataError where it has none.
    """
    if x.is_floating_point():
        return {"inputs": "image" if x.dim() == 4 else "array"}
    if facts.row.is_text:
        return {}
    embedding = next((part for part in network.modules() if isinstance(part, nn.Embedding)), None)
    if x.dim() != 2 or embedding is None:
        raise DataError(
            f"Expected floats, or numbers of tokens (B, T) for a network with an embedding, got {x.dtype} of shape "
            f"{tuple(x.shape)}; convert them."
        )
    return {"inputs": "array", "tokens": embedding.num_embeddings}


def _seed_generators(loader: Any, seed: int, epoch: int) -> None:
    """Seed the generators of a DataLoader and its samplers, and tell the samplers the epoch where they take it."""
    for holder in (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)):
        if isinstance(generator := getattr(holder, "generator", None), torch.Generator):
            generator.manual_seed(seed)
        if callable(set_epoch := getattr(holder, "set_epoch", None)):
            set_epoch(epoch)


def _length(batches: Batches) -> int | None:
    """Return the number of minibatches, None where it is unknown, as for a DataLoader of an iterable data set."""
    try:
        return len(batches) if isinstance(batches, Sized) else None
    except TypeError:
        return None
