"""Image files as the input of a request: their sizes are checked before any is decoded, as `predict` decodes them."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray

from anytime_lct.exits.bundle import Manifest
from anytime_lct.pixels import decoding_bytes
from anytime_lct.runtime.preprocess import PICTURE_CHANNELS, from_picture
from anytime_lct.serving.limits import MEGA, Limits
from anytime_lct.serving.request import Refusal

# What other decoders read is more than a server takes from anybody. By the bytes with which the files begin.
FORMATS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG"}
File = bytes | memoryview


def takes_pictures(manifest: Manifest) -> bool:
    """Return whether the input of a network can be image files."""
    return manifest.preprocessing.channels in PICTURE_CHANNELS


def is_picture(content: File) -> bool:
    """Return whether bytes begin as a JPEG or PNG file does.

    >>> is_picture(b"\\x89PNG\\r\\n\\x1a\\n..")
    True
    """
    return bytes(content[:8]).startswith(tuple(FORMATS))


def read_files(elements: Sequence[str | File]) -> list[File]:
    """Return the elements of a BYTES tensor as image files; raises Refusal for strings and other files."""
    if not elements:
        raise Refusal("Expected at least one image, got none; send some.")
    files: list[File] = []
    for number, element in enumerate(elements, start=1):
        if isinstance(element, str):
            raise Refusal(
                "Expected image files in base64 in JSON, with 'content_type' \"base64\" in the input's parameters, got "
                "strings without it; add it, or send binary data."
            )
        if not is_picture(element):
            raise Refusal(f"Expected JPEG or PNG files in BYTES, got another kind as image {number}; convert it.")
        files.append(element)
    return files


def decoding_size(files: Sequence[File], input_bytes: int, limits: Limits) -> int:
    """Return the bytes of memory that decoding takes at most, beside an input of `input_bytes`.

    Raises Refusal for an image that this server never has memory for, and UnreadableError.
    """
    most = 0
    for number, file in enumerate(files, start=1):
        size = len(file) + decoding_bytes(BytesIO(file), f"image {number}", _formats())
        if size + len(file) + 2 * input_bytes > limits.alone:
            raise Refusal(
                f"Expected images that are decoded within {limits.alone // MEGA} MB, got one that takes "
                f"{size // MEGA} MB as image {number}; make it smaller, or give the server a larger --max-body."
            )
        most = max(most, size)
    return most + input_bytes  # the images one by one, before they are a batch


def decode(files: Sequence[File], manifest: Manifest) -> NDArray[np.float32]:
    """Return the network's input (B, C, H, W) of image files, as `predict` reads them; raises UnreadableError."""
    rules = manifest.preprocessing
    return np.concatenate(
        [from_picture(file, f"image {number}", rules, _formats()) for number, file in enumerate(files, start=1)]
    )


def _formats() -> tuple[str, ...]:
    return tuple(FORMATS.values())
