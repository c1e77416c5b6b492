"""Pictures of any size brought to a network's, alike where networks are measured and where they answer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def shorter_side(height: int, width: int) -> int:
    """Return what the shorter side of a picture is resized to, of which (height, width) is seven eighths.

    >>> shorter_side(224, 224)
    256
    """
    return round(max(height, width) * 256 / 224)


def fit(pixels: NDArray[np.uint8], height: int, width: int, resize: int | None = None) -> NDArray[np.uint8]:
    """Bring pixels (H, W, C) to (height, width, C), bilinearly as Pillow does; those of that size stay as they are.

    With `resize`, the shorter side becomes that long and the centre is cut out (torchvision's Resize and CenterCrop);
    without it the whole picture is stretched.

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
        whole = Image.fromarray(np.ascontiguousarray(pixels))
        return np.asarray(whole.resize((width, height), Image.Resampling.BILINEAR))
    planes = [
        np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize((width, height), Image.Resampling.BILINEAR))
        for plane in np.moveaxis(pixels, -1, 0)
    ]
    return np.stack(planes, axis=-1)
