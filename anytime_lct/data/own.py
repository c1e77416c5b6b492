"""The user's own data: parts whose items are read by number, as `factory` or a file gives them.

Images are Pillow's, or uint8 arrays, or floats (C, H, W) in [0, 1]; strings are texts, which become tokens (`words`);
anything else is an array (`arrays`). A loader stands for its data set, as minibatches and their order follow from the
seed. What items draw from the random states of torch, Python and numpy follows from seed, epoch and number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anytime_lct.data import arrays, words
from anytime_lct.data.batches import Dataset, Images, fitted
from anytime_lct.data.factory import Given
from anytime_lct.data.images import IMAGENET, ImageSet, load_images, mean_and_std
from anytime_lct.data.items import Items, Label, stacked
from anytime_lct.data.locations import root_of
from anytime_lct.data.pictures import IN_MEMORY_BYTES, LARGEST, SMALL_SIDE, choose_size
from anytime_lct.pixels import as_seen, shorter_side
from anytime_lct.recipes.recipe import DataRecipe


def load(give: Callable[[str, Path], Given], recipe: DataRecipe, seed: int) -> Dataset:
    """Load what `give` gives for the recipe's name and folder, images, texts or arrays; raises DataError."""
    given = give(recipe.name, root_of(recipe))
    sample = Items(given.parts["train"], given.title("train"), _as_is, random=True).item(0)[0]
    kind = recipe.inputs
    if isinstance(sample, str):
        given, kind = words.of_texts(given, recipe), "arrays"
    if kind == "auto":
        kind = "images" if is_image(sample) else "arrays"
    if kind == "arrays":
        return arrays.load(given, recipe, seed)
    return load_images(partial(read, given), recipe, seed)


def is_image(sample: Any) -> bool:
    """Return whether a sample is an image."""
    if isinstance(sample, np.ndarray | Tensor):
        is_pixels = sample.dtype in (torch.uint8, np.uint8)
        is_floats = sample.is_floating_point() if isinstance(sample, Tensor) else sample.dtype.kind == "f"
        return (sample.ndim >= 2 and is_pixels) or (sample.ndim == 3 and is_floats)
    return not isinstance(sample, list | tuple | int | float | np.number)


def read(given: Given, recipe: DataRecipe, root: Path) -> ImageSet:
    """Read images, each part into memory where it is small and not random; raises DataError."""
    parts = {part: Items(dataset, given.title(part), pixels_of) for part, dataset in given.parts.items()}
    channels = replace(parts["train"], random=True).item(0)[0].shape[0]
    convert = partial(pixels_of, channels=channels)
    parts = {part: replace(items, convert=convert) for part, items in parts.items()}
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
            items = replace(items, random=draws)
            labels = items.labels(numbers, [label for _, label in examples])
            images[part] = Images(labels, shape, None, items, resize)
    classes = given.names_of({part: each.labels for part, each in images.items()})
    train, on_demand = images["train"], images["train"].pixels is None
    statistics = IMAGENET if on_demand and channels == 3 else None
    if on_demand and channels != 3:
        statistics = mean_and_std(train.view(torch.tensor(samples["train"][0])))
    augment = "none" if samples["train"][2] else "imagenet" if not alike or max(size) > SMALL_SIDE else "crop-flip"
    if augment == "crop-flip" and channels == 1:
        augment = "crop"  # mirrored signs are others
    if train.labels.is_floating_point():
        augment = "none"  # a moved image may have other targets
    return ImageSet(train, images.get("test"), classes, statistics, augment, images.get("validation"))


def _as_is(sample: Any) -> Any:
    return sample


def _in_memory(items: Items, shape: tuple[int, ...]) -> Images:
    pixels, labels = torch.empty(len(items), *shape, dtype=torch.uint8), list[Label]()
    for number in range(len(items)):
        image, label = items.item(number)
        labels.append(label)
        pixels[number] = torch.from_numpy(fitted(image, shape, None)).permute(2, 0, 1)
    return Images(stacked(labels, items.name), shape, pixels)


def pixels_of(image: Any, channels: int | None = None) -> Tensor:
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
            f"data.mean and data.std normalise, or set data.inputs=arrays for numbers that are no pixels"
        )
    return (pixels * 255).round().to(torch.uint8)
