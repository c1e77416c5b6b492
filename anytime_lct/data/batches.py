"""Data sets as minibatches: the same ones for a seed, whoever asks, in whatever process, from wherever in an epoch."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.utils import data

from anytime_lct.task import Facts

Split = Literal["train", "validation", "test"]
Batch = tuple[Tensor, Tensor]


class Dataset(Protocol):
    """What training and analysis ask of data; images and text answer alike.

    `batches("train", epoch, start)` follows from the seed and the epoch alone, augmentation included: never from the
    number of worker processes, from `start` (minibatches skipped without being made) or from torch's random state.
    """

    @property
    def facts(self) -> Facts: ...

    def num_batches(self, split: Split) -> int: ...

    def num_samples(self, split: Split) -> int: ...

    def batches(self, split: Split, epoch: int = 0, start: int = 0) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Samples:
    """Images of one part of the data: `image(i)` gives number i as the transform takes it."""

    image: Callable[[int], object]
    labels: Tensor


@dataclass(frozen=True)
class ImageBatches:
    """Images in minibatches of `batch_size`, the last one short; x is float32 (B, C, H, W), y int64 (B,)."""

    facts: Facts
    parts: dict[Split, tuple[Samples, Tensor]]
    train_transform: Callable[[object], Tensor]
    evaluation_transform: Callable[[object], Tensor]
    batch_size: int
    seed: int
    workers: int

    def num_samples(self, split: Split) -> int:
        return len(self.parts[split][1])

    def num_batches(self, split: Split) -> int:
        return -(-self.num_samples(split) // self.batch_size)

    def batches(self, split: Split, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        samples, chosen = self.parts[split]
        if split == "train":
            order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(_mix(self.seed, epoch, 0)))
            chosen = chosen[order]
        augmented = split == "train"
        made = _Made(
            samples,
            chosen.split(self.batch_size) if len(chosen) else (),
            self.train_transform if augmented else self.evaluation_transform,
            torch.tensor(self.facts.mean).view(-1, 1, 1) * 255,
            torch.tensor(self.facts.std).view(-1, 1, 1) * 255,
            _mix(self.seed, epoch, 1),
        )
        numbers = range(start, len(made.chosen))
        if self.workers == 0:
            return (made[number] for number in numbers)
        return iter(
            data.DataLoader(
                made, batch_size=None, sampler=numbers, num_workers=self.workers, worker_init_fn=_ignore_interrupt
            )
        )


@dataclass(frozen=True)
class _Made(data.Dataset[Batch]):
    """Minibatch number k of an epoch, whole, so that what is random in it follows from its number."""

    samples: Samples
    chosen: Sequence[Tensor]
    transform: Callable[[object], Tensor]
    mean: Tensor
    std: Tensor
    seed: int

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, number: int) -> Batch:
        indices = self.chosen[number]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_mix(self.seed, number, 2))
            x = torch.stack([self.transform(self.samples.image(i)) for i in indices.tolist()])
        return x.float().sub_(self.mean).div_(self.std), self.samples.labels[indices]


@dataclass(frozen=True)
class TextBatches:
    """A text as B parallel streams in windows of T characters; x and y are int64 (B, T), y the next character.

    Row b of a minibatch goes on in row b of the next one, so that hidden state can be carried. Training drops the
    remainder of each stream; evaluation divides the streams into equal windows of at most T instead.
    """

    facts: Facts
    parts: dict[Split, Tensor]
    batch_size: int
    sequence_length: int

    def num_samples(self, split: Split) -> int:
        streams, window, windows = self._layout(split)
        return streams * window * windows

    def num_batches(self, split: Split) -> int:
        return self._layout(split)[2]

    def batches(self, split: Split, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        streams, window, windows = self._layout(split)
        if not windows:
            return
        ids = self.parts[split].long()
        length = (len(ids) - 1) // streams
        x = ids[: streams * length].view(streams, length)
        y = ids[1 : streams * length + 1].view(streams, length)
        for k in range(start, windows):
            place = slice(k * window, (k + 1) * window)
            yield x[:, place].contiguous(), y[:, place].contiguous()

    def _layout(self, split: Split) -> tuple[int, int, int]:
        """Return the number of streams, the characters of a window and the number of windows."""
        characters, streams = len(self.parts[split]) - 1, self.batch_size
        if split == "train":
            return streams, self.sequence_length, max(0, characters // streams) // self.sequence_length
        streams = max(1, min(streams, characters // self.sequence_length))
        windows = -(-(characters // streams) // self.sequence_length) if characters > 0 else 0
        return streams, (characters // streams) // windows if windows else 0, windows


def _mix(seed: int, number: int, purpose: int) -> int:
    """Make one seed of three numbers, far apart for neighbours (a 64-bit multiply and shift, as SplitMix does)."""
    value = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + purpose * 0x94D049BB133111EB) % 2**64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    return (value ^ (value >> 27)) % 2**63


def _ignore_interrupt(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that trains decides what Ctrl-C means
