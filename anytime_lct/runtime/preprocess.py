"""Preprocessing of raw inputs, image files, arrays of pixels and text, as a bundle's manifest says."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, cast
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from anytime_lct.errors import InputError
from anytime_lct.exits.bundle import Manifest, Preprocessing
from anytime_lct.pixels import fit, read_picture
from anytime_lct.texts import as_tokens, decode, is_whole

PICTURE_CHANNELS = (1, 3)  # of image files: grey, RGB
ARRAY = ".npy"
NPY = b"\x93NUMPY"  # with which every .npy file begins, one that comes through a pipe too


def read_input(path: Path, manifest: Manifest) -> NDArray[Any]:
    """Read a file into a batch: (B, C, H, W) float32 for images, (1, T) int64 for text, (B, ..) for arrays.

    A .npy file holds an array as `from_array` takes it; any other is an image file or, for a network on text or texts,
    a text, decoded as in training. A pipe is read to its end. Raises InputError for a file that is missing, damaged or
    of the wrong kind.

    >>> read_input(Path("digit.png"), session.manifest).shape  # doctest: +SKIP
    (1, 1, 28, 28)
    """
    try:
        if path.is_dir():
            raise InputError(f"Expected an input file, got the folder '{path}'; name the files in it.")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"Expected an input file, got '{path}': {error.strerror}; check its name.") from None
    return from_bytes(content, str(path), manifest)


def from_bytes(content: bytes, name: str, manifest: Manifest) -> NDArray[Any]:
    """Turn what the file `name` holds into a batch, as `read_input` does; raises InputError."""
    if not content:
        raise InputError(f"Expected an input file, got '{name}', which is empty; name another one.")
    rules = manifest.preprocessing
    with naming(name):
        if rules.kind == "text":
            return from_text(_read_text(content, name, rules), rules)
        if name.lower().endswith(ARRAY) or content.startswith(NPY):
            return from_array(load_array(BytesIO(content), name), rules)
        if rules.takes_text:
            return from_text(_read_text(content, name, rules), rules)
        if rules.kind == "array":
            raise InputError(f"Expected a .npy file for this network, got '{name}'; save the array with numpy.save.")
        return from_picture(content, name, rules)


@contextmanager
def naming(name: str) -> Generator[None]:
    """Put the name of a file into the messages of InputErrors in this block that lack it."""
    try:
        yield
    except InputError as error:
        message = str(error)
        raise InputError(message if name in message else f"In '{name}': {message[0].lower()}{message[1:]}") from None


def from_text(text: str, rules: Preprocessing) -> NDArray[np.int64]:
    """Turn a text into numbers of symbols or tokens, (1, T); raises InputError for an unknown symbol or an empty text.

    >>> from_text("abba", Preprocessing(kind="text", symbols="ab"))
    array([[0, 1, 1, 0]])
    """
    if not rules.takes_text:
        raise InputError(
            f"Expected {'numbers' if rules.kind == 'array' else 'images'} for this network, got text; name "
            f"{'' if rules.kind == 'array' else 'image files or '}.npy arrays."
        )
    if rules.tokenizer is not None:
        if not is_whole(text):
            raise InputError("Expected a text in UTF-8, got other bytes; encode it as UTF-8.")
        return _as_ids(as_tokens([text], rules.tokenizer_json), rules.tokens or 0)
    if not text:
        raise InputError("Expected at least one character of text, got none; give some text to continue.")
    number = {symbol: k for k, symbol in enumerate(rules.symbols)}
    for position, symbol in enumerate(text, start=1):
        if symbol not in number:
            raise InputError(
                f"Expected the {len(number)} symbols that the network knows, got {symbol!r} as character {position}; "
                f"remove or replace it."
            )
    return np.array([[number[symbol] for symbol in text]], dtype=np.int64)


def from_picture(
    content: bytes | memoryview, name: str, rules: Preprocessing, formats: tuple[str, ...] | None = None
) -> NDArray[np.float32]:
    """Make a network input (1, C, H, W) of the content of an image file, called `name` in messages; raises InputError.

    Only files of `formats`, by Pillow's names, are read.
    """
    channels, height, width = _image_shape(rules)
    if channels not in PICTURE_CHANNELS:
        raise InputError(f"Expected a .npy array for a network on {channels} channels, got '{name}'; save one.")
    pixels = read_picture(BytesIO(content), name, channels, formats)
    return normalise(fit(pixels, height, width, rules.resize)[None], rules)


def from_array(array: NDArray[Any], rules: Preprocessing) -> NDArray[Any]:
    """Make a batch of an array: of images, (B, C, H, W) float32.

    uint8 are raw pixels, (H, W), (H, W, C), (B, H, W) or (B, H, W, C), which are resized and normalised; float32 and
    float64 are network inputs already, (C, H, W) or (B, C, H, W). For a network on arrays it is a sample, or a batch of
    them: numbers, which become float32, or numbers of tokens, int64. Raises InputError.
    """
    return from_samples(samples(array, rules), rules)


def samples(array: NDArray[Any], rules: Preprocessing) -> NDArray[Any]:
    """Return an array as `from_array` takes it with a batch dimension, not copied; raises InputError.

    Pixels are (B, H, W, C), network inputs (B, C, H, W) or (B, ..).
    """
    if array.size == 0:
        raise InputError(f"Expected at least one sample, got an array of shape {array.shape}; add one.")
    if rules.kind == "array":
        return _batch_of_arrays(array, rules)
    channels, height, width = _image_shape(rules)
    if array.dtype == np.uint8:
        return _batch_of_pixels(array, channels, (height, width))
    if array.dtype.kind != "f" or array.dtype.itemsize not in (4, 8):
        raise InputError(
            f"Expected uint8 pixels or float32 network inputs, got {array.dtype.name}; convert them to one of the two."
        )
    batch = array[None] if array.ndim == 3 else array
    if batch.shape[1:] != (channels, height, width):
        raise InputError(
            f"Expected network inputs of shape ({channels}, {height}, {width}), with or without a batch dimension "
            f"before, got {array.shape}; give raw pixels as uint8."
        )
    return batch


def from_samples(batch: NDArray[Any], rules: Preprocessing) -> NDArray[Any]:
    """Make a batch of network inputs of what `samples` returns, or of some of it; raises InputError."""
    if rules.tokens:
        return _as_ids(batch, rules.tokens)
    if batch.dtype == np.uint8 and rules.kind == "image":
        _, height, width = _image_shape(rules)
        return normalise(np.stack([fit(image, height, width, rules.resize) for image in batch]), rules)
    with np.errstate(over="ignore"):
        floats = np.ascontiguousarray(batch, dtype=np.float32)
    if not np.isfinite(floats).all():
        raise InputError("Expected finite numbers in the range of float32, got NaN or infinity; clean the array first.")
    return floats


def check_batch(x: object, manifest: Manifest) -> NDArray[Any]:
    """Return a batch as the network takes it, C-contiguous float32 or int64.

    Takes float32 and float64 of any byte order, or for text and tokens integers below their number. Raises InputError.
    """
    expected = manifest.input_shape
    if not isinstance(x, np.ndarray):
        raise InputError(
            f"Expected a numpy array of shape {show_shape(expected)}, got a {type(x).__name__}; convert it first."
        )
    x = cast("NDArray[Any]", x)
    check_shape(x.shape, expected)
    if x.size == 0:
        raise InputError(
            f"Expected at least one sample of shape {show_shape(expected)}, got {show_shape(x.shape)}; add one."
        )
    return _as_ids(x, manifest.symbols) if manifest.input_dtype == "int64" else _as_floats(x)


def check_shape(shape: tuple[int, ...], expected: tuple[int | str, ...]) -> None:
    """Raise InputError for a shape that a network does not take; a name in `expected` stands for any size."""
    if len(shape) != len(expected) or [
        size for size, actual in zip(expected, shape, strict=True) if size != actual and not isinstance(size, str)
    ]:
        raise InputError(
            f"Expected an input of shape {show_shape(expected)}, got {show_shape(shape)}; the first dimension is the "
            f"batch."
        )


def normalise(pixels: NDArray[np.uint8], rules: Preprocessing) -> NDArray[np.float32]:
    """Scale pixels (B, H, W, C) to [0, 1], subtract the mean, divide by the std, and put channels first."""
    scaled = pixels.astype(np.float32)
    scaled /= np.float32(255)  # in place, as a batch can take much memory
    scaled -= np.array(rules.mean or (0.0,), dtype=np.float32)
    scaled /= np.array(rules.std or (1.0,), dtype=np.float32)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def _batch_of_pixels(array: NDArray[np.uint8], channels: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Reshape pixels to (B, H, W, C). Three dimensions are one image where the last is the number of channels."""
    if array.ndim == 3 and array.shape[-1] == channels and not (channels == 1 and array.shape[1:] == size):
        return array[None]
    if array.ndim == 4 and array.shape[-1] == channels:
        return array
    # (28, 28, 3) is a colour image, and must not be read as 28 images three pixels wide.
    colour = array.ndim == 3 and array.shape[-1] in (2, 3, 4) and array.shape[1:] != size
    if channels == 1 and array.ndim in (2, 3) and not colour:
        return array.reshape(-1, *array.shape[-2:], 1)
    shapes = "(H, W), (B, H, W), (H, W, 1) or (B, H, W, 1)" if channels == 1 else "(H, W, {0}) or (B, H, W, {0})"
    raise InputError(
        f"Expected pixels of {channels} channel{'s' if channels > 1 else ''}, {shapes.format(channels)}, got an array "
        f"of shape {array.shape}; convert its channels."
    )


def _batch_of_arrays(array: NDArray[Any], rules: Preprocessing) -> NDArray[Any]:
    if array.dtype.kind not in ("iu" if rules.tokens else "fiu") or array.dtype.itemsize > 8:
        expected = "whole numbers of tokens" if rules.tokens else "numbers"
        raise InputError(f"Expected {expected}, got {array.dtype.name}; convert them first.")
    batch = array[None] if array.shape == rules.shape else array
    if batch.shape[1:] != rules.shape:
        raise InputError(
            f"Expected samples of shape {show_shape(rules.shape)}, with or without a batch dimension before, got "
            f"{array.shape}; reshape the array."
        )
    return batch


def load_array(source: BytesIO | Path, name: str, *, mapped: bool = False) -> NDArray[Any]:
    """Read the array of the .npy file `name`; raises InputError.

    With `mapped`, it is a memmap, unless its first dimension is not the outermost in the file.
    """
    try:
        array = np.load(source, mmap_mode="r" if mapped else None, allow_pickle=False)
        if isinstance(array, np.memmap) and not array.flags.c_contiguous:
            array = np.load(source, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, SyntaxError, TypeError, KeyError, BadZipFile):
        raise InputError(
            f"Expected '{name}' to hold one array of numbers, got a damaged or pickled file; save it again with "
            f"numpy.save."
        ) from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise InputError(f"Expected '{name}' to hold one array, got an archive of several; save one with numpy.save.")
    return cast("NDArray[Any]", array)


def _read_text(content: bytes, name: str, rules: Preprocessing) -> str:
    text = decode(content, name, rules.encoding, f"save it as {(rules.encoding or 'utf-8').upper()}")
    # Editors end files with a line feed, which is not part of the text unless the network knows that symbol.
    return text if "\n" in rules.symbols else text.removesuffix("\n").removesuffix("\r")


def _image_shape(rules: Preprocessing) -> tuple[int, int, int]:
    if rules.channels is None or rules.height is None or rules.width is None:
        raise InputError("Expected text for this network, got an image or an array; give a text file or --text.")
    return rules.channels, rules.height, rules.width


def _as_floats(x: NDArray[Any]) -> NDArray[np.float32]:
    if x.dtype.kind != "f" or x.dtype.itemsize not in (4, 8):
        raise InputError(
            f"Expected float32 or float64 numbers, normalised as in training, got {x.dtype.name}; convert them first."
        )
    if x.dtype.itemsize == 8:
        with np.errstate(over="ignore"):
            x = x.astype(np.float32)
    floats = np.ascontiguousarray(x, dtype=np.float32)
    if not np.isfinite(floats).all():
        raise InputError("Expected finite numbers in the range of float32, got NaN or infinity; clean the input first.")
    return floats


def _as_ids(x: NDArray[Any], symbols: int) -> NDArray[np.int64]:
    if x.dtype.kind not in "iu":
        raise InputError(f"Expected whole numbers of symbols, got {x.dtype.name}; encode the text first.")
    low, high = x.min(), x.max()
    if low < 0 or high >= symbols:
        raise InputError(
            f"Expected symbols of 0 to {symbols - 1}, got {low if low < 0 else high}; encode the text again."
        )
    return np.ascontiguousarray(x, dtype=np.int64)


def show_shape(shape: tuple[int | str, ...]) -> str:
    """Format a shape as numpy does, without quotes around named dimensions."""
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
