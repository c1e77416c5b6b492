"""Data sets as minibatches: equal for equal seeds, in any process and from any start within an epoch."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import IO, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import data

from anytime_lct.data.augment import Transform, apply, erase, mirror, mix, move, zoom
from anytime_lct.data.mixing import Mixing, share_of
from anytime_lct.data.readers import read_ahead
from anytime_lct.errors import DataError
from anytime_lct.pixels import fit, read_picture
from anytime_lct.recipes.recipe import Augment
from anytime_lct.task import Facts

Split = Literal["train", "validation", "test"]
Batch = tuple[Tensor, Tensor]
Share = tuple[int, int]
ImageSource = str | tuple[str, bytes]  # an image file by its path, or its name and content
CPU = torch.device("cpu")
MOST_READERS = 8
PORTION = 2**22  # numbers that a GPU makes at once: some minibatches, or a large one in evaluation
ON_DEVICE_BYTES = 2 * 2**30  # larger sets stay on the CPU


class Dataset(Protocol):
    """The interface of a data set, images or text, for training and analysis.

    `batches("train", epoch, start)` depends on the seed and the epoch alone, augmentation included: not on the number
    of worker processes, on `start` (the number of minibatches to skip, which are never made) or on torch's random
    state. `share` (k, n) takes the k-th (from 0) of n parts of every minibatch; `num_rows` counts the rows of the whole
    minibatch. `num_samples` counts images, or the characters predicted. `augment` is never "auto". `notes` are
    sentences on how the data was read, which a run shows.
    """

    @property
    def facts(self) -> Facts: ...

    @property
    def augment(self) -> Augment: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def to(self, device: torch.device) -> Dataset:
        """Return the data set with its minibatches on a device, and itself too where it is small."""
        ...

    def num_batches(self, split: Split) -> int: ...

    def num_samples(self, split: Split) -> int: ...

    def num_rows(self, split: Split, number: int) -> int: ...

    def batches(self, split: Split, epoch: int = 0, start: int = 0, share: Share = (0, 1)) -> Iterator[Batch]: ...


class ImageSources(Protocol):
    """Image files by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> ImageSource: ...


class Originals(Protocol):
    """Images that are read on demand, by number, as uint8 (C, h, w); random numbers that this takes follow a seed."""

    def read(self, index: int, seed: int) -> Tensor: ...


@dataclass(frozen=True)
class Files:
    """Image files, RGB: each by its path, or as its name and content where it lies in a larger file."""

    sources: ImageSources

    def read(self, index: int, seed: int) -> Tensor:
        """Read a file as `pixels.read_picture` does; raises DataError."""
        return torch.from_numpy(read_picture(*opened(self.sources[index]), 3)).permute(2, 0, 1)


def opened(source: ImageSource) -> tuple[str | IO[bytes], str]:
    """Return what `pixels.read_picture` reads an image file from, and its name."""
    return (source, source) if isinstance(source, str) else (io.BytesIO(source[1]), source[0])


@dataclass(frozen=True)
class Images:
    """One part of an image set: uint8 `pixels` (N, C, H, W) in memory, or `originals` that are read on demand.

    `shape` is that of the network's input, (C, H, W). Images of another size are resized to a shorter side of `resize`
    and cropped at their centre, or stretched without `resize`, as where the network answers (`pixels.fit`).
    """

    labels: Tensor
    shape: tuple[int, ...]
    pixels: Tensor | None = None
    originals: Originals = Files(())
    resize: int | None = None

    @property
    def num_bytes(self) -> int:
        """The bytes of the images that are in memory."""
        return 0 if self.pixels is None else self.pixels.numel()

    def to(self, device: torch.device) -> Images:
        """Return the images in the memory of a device; those that are read on demand stay as they are."""
        if self.pixels is None:
            return self
        return replace(self, labels=self.labels.to(device), pixels=self.pixels.to(device))

    def original(self, index: int, seed: int = 0) -> Tensor:
        return self.originals.read(index, mix(seed, index)) if self.pixels is None else self.pixels[index]

    def view(self, indices: Tensor, seed: int = 0) -> Tensor:
        """Return the images as evaluation sees them, uint8 (B, C, H, W)."""
        if self.pixels is not None:
            return self.pixels[indices]
        images = [fitted(self.original(i, seed), self.shape, self.resize) for i in indices.tolist()]
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class ImageBatches:
    """Images in minibatches of `batch_size`, the last one short; x is float32 (B, C, H, W), y int64 (B,).

    Where images are mixed in pairs, labels of training are shares of the classes, float32 (B, K).

        in memory, small            uint8 on the device, moved and mirrored there, some minibatches at once
        files, zoomed, or a policy  uint8 (B, C, H, W) made on the CPU, by `readers` processes ahead of training
        both                        normalised on the device

    Either way the random numbers are drawn on the CPU, for a whole epoch, and the minibatches are the same.
    """

    facts: Facts
    augment: Augment
    parts: dict[Split, tuple[Images, Tensor]]
    batch_size: int
    seed: int
    workers: int | None
    device: torch.device = CPU
    notes: tuple[str, ...] = ()
    policy: Transform | None = None
    erased: float = 0.0  # share of the training images that lose a box
    mixing: Mixing | None = None

    def to(self, device: torch.device) -> ImageBatches:
        images = {id(part): part for part, _ in self.parts.values()}
        if (
            self.augment != "imagenet"
            and self.policy is None
            and sum(part.num_bytes for part in images.values()) <= ON_DEVICE_BYTES
        ):
            images = {key: part.to(device) for key, part in images.items()}
        parts: dict[Split, tuple[Images, Tensor]] = {
            split: (images[id(part)], indices) for split, (part, indices) in self.parts.items()
        }
        return replace(self, parts=parts, device=device)

    @property
    def readers(self) -> int:
        """The number of processes that make minibatches: `workers`, or one a core where training is on a GPU."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return (min(MOST_READERS, cores) if self.device.type == "cuda" else 0) if self.workers is None else self.workers

    def num_samples(self, split: Split) -> int:
        return len(self.parts[split][1])

    def num_batches(self, split: Split) -> int:
        return -(-self.num_samples(split) // self._rows(split))

    def num_rows(self, split: Split, number: int) -> int:
        return min(self._rows(split), self.num_samples(split) - number * self._rows(split))

    def _rows(self, split: Split) -> int:
        """Return the samples of a minibatch: in evaluation on a GPU as many as make it work, where images are small."""
        if split == "train" or self.device.type != "cuda":
            return self.batch_size
        return max(self.batch_size, PORTION // math.prod(self.facts.input_shape))

    def batches(self, split: Split, epoch: int = 0, start: int = 0, share: Share = (0, 1)) -> Iterator[Batch]:
        images, indices = self.parts[split]
        if split == "train":
            order = torch.Generator().manual_seed(mix(self.seed, epoch, 0))
            indices = indices[torch.randperm(len(indices), generator=order)]
        augmentation = torch.Generator().manual_seed(mix(self.seed, epoch, 1))
        parts = indices.split(self._rows(split)) if len(indices) else ()
        mixing = self.mixing if split == "train" else None
        shares = [share_of(part, share, partners=mixing is not None) for part in parts[start:]]
        if not shares:
            return
        parts = [part for part, _ in shares]
        home, rows = images.labels.device, [len(part) for part in parts]
        numbers = max(1, rows[0]) * math.prod(images.shape)
        at_once = max(1, PORTION // numbers) if home.type == self.device.type and self.device != CPU else 1
        sizes = [rows[k : k + at_once] for k in range(0, len(rows), at_once)]
        dataset = _OneEpoch(
            images,
            torch.cat(parts).to(home).split([sum(size) for size in sizes]),
            self.augment if split == "train" else "none",
            torch.rand(3, len(images.labels), generator=augmentation).to(home),
            mix(self.seed, epoch if split == "train" else 0, 2),
            self.policy if split == "train" else None,
        )
        mean, std = (
            (torch.tensor(values).view(-1, 1, 1) * 255).to(self.device) for values in (self.facts.mean, self.facts.std)
        )
        alone = self.readers == 0 or home.type != "cpu"
        boxes = None
        if split == "train" and self.erased:
            generator = torch.Generator().manual_seed(mix(self.seed, epoch, 3))
            boxes = torch.rand(5, len(images.labels), generator=generator)
        portions: Iterator[Batch | DataError] = (dataset[k] for k in range(len(sizes)))
        if not alone:
            pinned = self.device.type == "cuda"
            portions = read_ahead(dataset, range(len(sizes)), self.readers, pinned=pinned)
        waiting = enumerate(shares, start=start)
        for size, portion in zip(sizes, portions, strict=True):
            if isinstance(portion, DataError):
                raise portion
            x, y = (part.to(self.device, non_blocking=True) for part in portion)
            x = x.float().sub_(mean).div_(std)
            minibatches = zip(islice(waiting, len(size)), x.split(size), y.split(size), strict=True)
            for (number, (part, own)), batch, labels in minibatches:
                if boxes is not None:
                    batch = erase(batch, boxes[:, part], self.erased)
                if mixing is not None:
                    batch, labels = mixing.mixed(batch, labels, mix(self.seed, epoch, 4, number))
                yield batch[own], labels[own]


@dataclass(frozen=True)
class _OneEpoch(data.Dataset["Batch | DataError"]):
    """The portions of an epoch by number, x uint8; column i of `draws` augments image i, whichever it is in."""

    images: Images
    indices: Sequence[Tensor]
    augment: Augment
    draws: Tensor
    seed: int
    policy: Transform | None

    def __getitem__(self, number: int) -> Batch | DataError:
        indices = self.indices[number]
        try:
            x = self._augmented(indices)
            if self.policy is not None:
                x = apply(self.policy, x, [mix(self.seed, i, 1) for i in indices.tolist()])
            return x, self.images.labels[indices]
        except DataError as error:
            return error  # a loader's worker would wrap a raised error in its traceback

    def _augmented(self, indices: Tensor) -> Tensor:
        if self.augment == "imagenet":
            size = (self.images.shape[1], self.images.shape[2])
            zoomed = (zoom(self.images.original(i, self.seed), size, mix(self.seed, i)) for i in indices.tolist())
            return torch.stack(list(zoomed))
        x, draws = self.images.view(indices, self.seed), self.draws[:, indices]
        if self.augment in ("crop", "crop-flip"):
            x = move(x, draws[:2])
        return mirror(x, draws[2]) if self.augment in ("flip", "crop-flip") else x


def fitted(image: Tensor, shape: tuple[int, ...], resize: int | None) -> NDArray[np.uint8]:
    """Return an image (C, h, w) as the network reads it, uint8 (H, W, C)."""
    return fit(image.permute(1, 2, 0).numpy(), shape[1], shape[2], resize)
