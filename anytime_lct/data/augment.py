"""Augmentation of training images: they are moved, mirrored or zoomed by random numbers that the caller passes in."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2


def move(images: Tensor, draws: Tensor) -> Tensor:
    """Pad images (B, C, H, W) by an eighth of their sides with zeros, and crop each at a random position.

    `draws` (2, B) holds numbers from [0, 1), for top and left. This is torchvision's RandomCrop(padding=..) for
    each sample, but computed for the whole batch.

    >>> move(torch.ones(1, 1, 8, 8), torch.zeros(2, 1)).sum()   # by one down and right
    tensor(49.)
    """
    batch, _, height, width = images.shape
    down, right = max(1, height // 8), max(1, width // 8)
    padded = F.pad(images, (right, right, down, down))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, tops, lefts, H, W), a view
    top, left = (draws[0] * (2 * down + 1)).long(), (draws[1] * (2 * right + 1)).long()
    return windows[torch.arange(batch, device=images.device), :, top, left].contiguous()


def mirror(images: Tensor, draws: Tensor) -> Tensor:
    """Mirror those of the images (B, C, H, W) whose number in `draws` (B,), from [0, 1), is below one half."""
    return torch.where((draws < 0.5).view(-1, 1, 1, 1), images.flip(-1), images)


def zoom(image: Tensor, size: tuple[int, int], seed: int) -> Tensor:
    """Resize a random part of an image (C, h, w) to `size` and mirror it half the time, as is usual for ImageNet.

    The random numbers follow from `seed`; torch's own random state does not change.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return v2.RandomHorizontalFlip()(v2.RandomResizedCrop(size, antialias=True)(image))


def mix(*numbers: int) -> int:
    """Hash several numbers into one seed, so that neighbouring numbers give unrelated seeds (SplitMix, 64 bits)."""
    value = 0
    for number in numbers:
        value = (value + number + 0x9E3779B97F4A7C15) % 2**64
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
        value ^= value >> 31
    return value % 2**63
