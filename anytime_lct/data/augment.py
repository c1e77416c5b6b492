"""Augmentation of training images: they are moved, mirrored or zoomed by random numbers that the caller passes in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from anytime_lct.errors import DataError
from anytime_lct.recipes.recipe import Policy

SMALL = 64
Transform = Callable[[Any], Any]


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


def policy_of(name: Policy, shape: tuple[int, ...]) -> Transform | None:
    """Return torchvision's policy of a name, None for "none", for images of `shape`; raises DataError.

    AutoAugment's is the one that its paper learns on ImageNet, or on CIFAR-10 for images of at most 64 x 64.

    >>> policy_of("randaugment", (3, 32, 32))
    RandAugment(num_ops=2, magnitude=9, num_magnitude_bins=31, interpolation=InterpolationMode.NEAREST)
    """
    if name == "none":
        return None
    if shape[0] not in (1, 3):
        raise DataError(
            f"Expected images of 1 or 3 channels with data.policy = {name}, which changes colours, got {shape[0]}; "
            f"leave it out."
        )
    if name == "autoaugment":
        small = max(shape[1:]) <= SMALL
        return v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10 if small else v2.AutoAugmentPolicy.IMAGENET)
    return v2.RandAugment() if name == "randaugment" else v2.TrivialAugmentWide()


def apply(policy: Transform, images: Tensor, seeds: Sequence[int]) -> Tensor:
    """Change images, uint8 (B, C, H, W), one by one; random numbers follow from the seed of each.

    torch's own random state does not change.
    """
    with torch.random.fork_rng(devices=[]):
        changed = []
        for image, seed in zip(images, seeds, strict=True):
            torch.default_generator.manual_seed(seed)
            changed.append(policy(image))
    return torch.stack(changed)


def erase(images: Tensor, draws: Tensor, share: float) -> Tensor:
    """Set a random box of each of a `share` of the images (B, C, H, W) to 0 (Zhong et al., "Random Erasing", 2020).

    A box covers 0.02 to 0.33 of the image, with sides in a ratio of 0.3 to 3.3, cut to the image. `draws` (5, B) holds
    numbers from [0, 1), on the CPU: whether, area, ratio, top and left.

    >>> erase(torch.ones(1, 1, 8, 8), torch.zeros(5, 1), share=1.0).sum()               # a box of 1 x 2
    tensor(62.)
    """
    height, width = images.shape[2:]
    chosen, area, ratio, top, left = draws.double()
    area, ratio = (0.02 + 0.31 * area) * height * width, 0.3 * 11.0**ratio
    tall = (area * ratio).sqrt().round().clamp(1, height) * (chosen < share)
    wide = (area / ratio).sqrt().round().clamp(1, width)
    inside = []
    for start, length, side in ((top, tall, height), (left, wide, width)):
        first = (start * (side - length + 1)).long().unsqueeze(1)
        places = torch.arange(side)
        inside.append((places >= first) & (places < first + length.long().unsqueeze(1)))
    boxes = inside[0].unsqueeze(2) & inside[1].unsqueeze(1)  # (B, H, W)
    return images.masked_fill(boxes.unsqueeze(1).to(images.device, non_blocking=True), 0.0)


def mix(*numbers: int) -> int:
    """Hash several numbers into one seed, so that neighbouring numbers give unrelated seeds (SplitMix, 64 bits)."""
    value = 0
    for number in numbers:
        value = (value + number + 0x9E3779B97F4A7C15) % 2**64
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
        value ^= value >> 31
    return value % 2**63
