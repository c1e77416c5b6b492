"""Image files as people see them, resized to a network's input: the same where networks are measured and answer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from anytime_lct.errors import UnreadableError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that swap height and width
# Bytes a pixel while an image is decoded, turned and copied: of these modes, and of others, which have more copies.
PLAIN_MODES, PLAIN, OTHER = ("1", "L", "P", "RGB"), 14, 20
# Of the names of image files, in training and where networks answer.
EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif", ".jfif", ".avif",
)  # fmt: skip
LONGEST = 16  # of an image, in times of its shorter side: what is longer is cropped before it is enlarged


def read_picture(
    source: str | IO[bytes], name: str, channels: int, formats: tuple[str, ...] | None = None
) -> NDArray[np.uint8]:
    """Read an image file as pixels (H, W, C), RGB or grey, as a viewer shows it: turned by EXIF, on a white ground.

    `name` stands for the file in messages; only files of `formats`, by Pillow's names, are read. An image of several
    frames is its first. Raises UnreadableError for a file that is no image or damaged, has more than 8 bits a channel,
    or more pixels than Pillow decodes.
    """
    with _opened(source, name, formats) as image:
        return as_seen(image, channels)


def as_seen(image: Picture, channels: int) -> NDArray[np.uint8]:
    """Return an opened image as `read_picture` does a file; raises Pillow's errors."""
    shown, mode = _on_white(_upright(image)), "L" if channels == 1 else "RGB"
    pixels = np.array(shown if shown.mode == mode else shown.convert(mode))
    return pixels.reshape(*pixels.shape[:2], channels)


def picture_size(source: str | IO[bytes], name: str) -> tuple[int, int]:
    """Read the head of an image file; return the (height, width) of `read_picture`, or raise as it does."""
    with _opened(source, name) as image:
        width, height = image.size
        return (width, height) if image.format != "TIFF" and _orientation(image) in SIDEWAYS else (height, width)


def decoding_bytes(source: str | IO[bytes], name: str, formats: tuple[str, ...] | None = None) -> int:
    """Return the bytes of memory that `read_picture` takes at most, from the head of the file; raises as it does."""
    with _opened(source, name, formats) as image:
        is_plain = image.mode in PLAIN_MODES and not image.has_transparency_data
        return image.width * image.height * (PLAIN if is_plain else OTHER)


def load_decoders() -> None:
    """Import Pillow's usual decoders, so that the first image does not wait for them."""
    from PIL import Image

    Image.preinit()


@contextmanager
def _opened(source: str | IO[bytes], name: str, formats: tuple[str, ...] | None = None) -> Iterator[Picture]:
    """Open an image, without Pillow's warnings; its errors, here and in the block, become UnreadableError."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a large image, or of a flaw that Pillow reads all the same
            with Image.open(source, formats=formats) as image:
                if image.mode.startswith(("I", "F")):
                    raise UnreadableError(
                        f"The image '{name}' cannot be read: expected 8 bits a channel, got mode {image.mode}; convert "
                        f"it."
                    )
                yield image
        return
    except UnreadableError:
        raise
    except Image.DecompressionBombError:
        reason, remedy = f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels", "make it smaller"
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        system = error.strerror if isinstance(error, OSError) else None
        reason, remedy = system or "it is damaged or of another kind", "repair or remove it"
    raise UnreadableError(f"The image '{name}' cannot be read: {reason}; {remedy}.")


def shorter_side(height: int, width: int) -> int:
    """Return the size that the shorter side of an image is resized to; the (height, width) crop is seven eighths of it.

    >>> shorter_side(224, 224)
    256
    """
    return round(max(height, width) * 256 / 224)


def fit(pixels: NDArray[np.uint8], height: int, width: int, resize: int | None = None) -> NDArray[np.uint8]:
    """Resize pixels (H, W, C) to (height, width, C), bilinearly as Pillow does; pixels of that size are unchanged.

    With `resize`, the shorter side gets that length and the centre is cropped (torchvision's Resize and CenterCrop),
    of an image longer than 16 times its shorter side first the centre of that length; without it the whole image is
    stretched.

    >>> fit(np.zeros((300, 500, 3), np.uint8), 224, 224, resize=256).shape
    (224, 224, 3)
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    if resize is None:
        return _resized(pixels, height, width)
    cropped, resized = _sizes(pixels.shape[0], pixels.shape[1], resize)
    return np.ascontiguousarray(_centre(_resized(_centre(pixels, *cropped), *resized), height, width))


def fitting_bytes(shape: tuple[int, int, int], height: int, width: int, resize: int | None = None) -> int:
    """Return the bytes of memory that `fit` takes at most for pixels of a shape (H, W, C), beside them."""
    if shape[:2] == (height, width):
        return 0
    (tall, wide), (new_tall, new_wide) = _sizes(*shape[:2], resize) if resize else (shape[:2], (height, width))
    # Pillow resizes in two passes, and takes 4 bytes of a pixel of three channels, or one for each channel by itself.
    each = 4 if shape[2] == 3 else 1
    return each * tall * (wide + new_wide) + (each + 2 + 2 * shape[2]) * new_tall * new_wide


def _sizes(tall: int, wide: int, resize: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the size (H, W) to which `fit` crops an image of this size first, and that to which it then resizes it."""
    short = min(tall, wide)
    tall, wide = min(tall, LONGEST * short), min(wide, LONGEST * short)
    return (tall, wide), (int(resize * tall / short), int(resize * wide / short))


def _centre(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    top, left = round((pixels.shape[0] - height) / 2), round((pixels.shape[1] - width) / 2)
    return pixels[top : top + height, left : left + width]


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


def _upright(image: Picture) -> Picture:
    """Turn or mirror an image by its EXIF orientation; one whose EXIF is damaged stays as it is."""
    from PIL.Image import Transpose

    image.load()  # TIFF turns itself here
    orientation = _orientation(image)
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image


def _orientation(image: Picture) -> int | None:
    """Return the EXIF orientation, of what is read of the file so far; None where there is none or it is damaged."""
    from PIL import Image

    try:
        return Image.Image.getexif(image).get(ORIENTATION)  # that of PNG files would read all of them
    except Exception:  # damaged EXIF makes Pillow raise errors of many types
        return None


def _on_white(image: Picture) -> Picture:
    """Put an image with transparent pixels on a white ground."""
    from PIL import Image

    if not image.has_transparency_data:
        return image
    ground = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(ground, image.convert("RGBA"))
