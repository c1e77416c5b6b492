"""What may befall a training image: moved, mirrored, zoomed; drawn from numbers that the caller hands in."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2


def move(images: Tensor, luck: Tensor) -> Tensor:
    """Pad images (B, C, H, W) by an eighth of their sides with zeros, and crop each at a random place.

    `luck` (2, B) holds numbers from [0, 1), for top and left. This is torchvision's RandomCrop(padding=..) of
    each sample, a batch at a time.

    >>> move(torch.ones(1, 1, 8, 8), torch.zeros(2, 1)).sum()   # by one down and right
    tensor(49.)
    """
    batch, _, height, width = images.shape
    down, right = max(1, height // 8), max(1, width // 8)
    padded = F.pad(images, (right, right, down, down))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, tops, lefts, H, W), a view
    top, left = (luck[0] * (2 * down + 1)).long(), (luck[1] * (2 * right + 1)).long()
    return windows[torch.arange(batch), :, top, left].contiguous()


def mirror(images: Tensor, luck: Tensor) -> Tensor:
    """Mirror those of the images (B, C, H, W) whose `luck` (B,), from [0, 1), is below one half."""
    return torch.where((luck < 0.5).view(-1, 1, 1, 1), images.flip(-1), images)


def zoom(image: Tensor, size: tuple[int, int], seed: int) -> Tensor:
    """Resize a random part of an image (C, h, w) to `size`, mirror it half the time: usual for ImageNet.

    What is drawn follows from `seed`; torch's own random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return v2.RandomHorizontalFlip()(v2.RandomResizedCrop(size, antialias=True)(image))


def mix(*numbers: int) -> int:
    """Make one seed of several numbers, far apart for neighbours (SplitMix, in 64 bits)."""
    value = 0
    for number in numbers:
        value = (value + number + 0x9E3779B97F4A7C15) % 2**64
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
        value ^= value >> 31
    return value % 2**63
