"""Resize images of any size to a network's input, the same way where networks are measured and where they answer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def shorter_side(height: int, width: int) -> int:
    """Return the size that the shorter side of an image is resized to; the (height, width) crop is seven eighths of it.

    >>> shorter_side(224, 224)
    256
    """
    return round(max(height, width) * 256 / 224)


def fit(pixels: NDArray[np.uint8], height: int, width: int, resize: int | None = None) -> NDArray[np.uint8]:
    """Resize pixels (H, W, C) to (height, width, C), bilinearly as Pillow does; pixels of that size are unchanged.

    With `resize`, the shorter side gets that length and the centre is cropped (torchvision's Resize and CenterCrop);
    without it the whole image is stretched.

    >>> fit(np.zeros((300, 500, 3), np.uint8), 224, 224, resize=256).shape
    (224, 224, 3)
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    if resize is None:
        return _resized(pixels, height, width)
    tall, wide = pixels.shape[:2]
    short = min(tall, wide)
    tall, wide = int(resize * tall / short), int(resize * wide / short)
    top, left = round((tall - height) / 2), round((wide - width) / 2)
    return np.ascontiguousarray(_resized(pixels, tall, wide)[top : top + height, left : left + width])


def _resized(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    from PIL import Image

    if pixels.shape[-1] == 3:
        image = Image.fromarray(np.ascontiguousarray(pixels))
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    planes = [
        np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize((width, height), Image.Resampling.BILINEAR))
        for plane in np.moveaxis(pixels, -1, 0)
    ]
    return np.stack(planes, axis=-1)
