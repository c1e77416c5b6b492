"""Tensors of the V2 protocol: JSON lists or little-endian bytes become arrays and strings.

Nothing is allocated for a shape before the length of its data is checked.
"""

from __future__ import annotations

import math
from base64 import b64decode
from collections.abc import Iterable
from itertools import chain
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from anytime_lct.serving.request import Refusal, show
from anytime_lct.serving.v2.json_text import Numbers

# The datatypes that inputs may have; the wire is little-endian.
DTYPES: dict[str, np.dtype[Any]] = {
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "UINT8": np.dtype("u1"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
}
TEXT = "BYTES"
MAX_DIMENSIONS = 8
MAX_SIZE = 1 << 63  # of one dimension


def read_shape(raw: object) -> tuple[int, ...]:
    """Check a shape: a list of up to 8 whole numbers, none negative or beyond 63 bits; raises Refusal."""
    sizes = cast("list[object]", raw) if isinstance(raw, list) else []
    is_short = 0 < len(sizes) <= MAX_DIMENSIONS
    if not is_short or not all(type(size) is int and 0 <= size < MAX_SIZE for size in sizes):
        raise Refusal(
            f"Expected 'shape' to be a list of 1 to {MAX_DIMENSIONS} whole numbers, got {show(raw)}; "
            "the first is the batch."
        )
    return tuple(cast("list[int]", raw))


def from_bytes(datatype: str, shape: tuple[int, ...], raw: memoryview) -> NDArray[Any]:
    """View little-endian bytes as an array without a copy; raises Refusal where their number does not match the shape.

    >>> from_bytes("FP32", (1, 2), memoryview(b"\\0\\0\\x80?\\0\\0\\0@"))
    array([[1., 2.]], dtype=float32)
    """
    dtype, count = DTYPES[datatype], math.prod(shape)
    if len(raw) != count * dtype.itemsize:
        raise Refusal(
            f"Expected {count * dtype.itemsize} bytes for {datatype} of shape {list(shape)}, got {len(raw)}; "
            "'binary_data_size' and the shape must agree."
        )
    array = _shaped(np.frombuffer(raw, dtype), shape)
    # The JSON before the bytes has any length, so that they may not be aligned.
    return array if array.flags.aligned else array.copy()


def from_list(datatype: str, shape: tuple[int, ...], data: object) -> NDArray[Any]:
    """Return an array of JSON numbers, flat or nested as the shape says; raises Refusal.

    >>> from_list("FP32", (2, 2), [[1, 2], [3, 4.5]])
    array([[1. , 2. ],
           [3. , 4.5]], dtype=float32)
    """
    if isinstance(data, Numbers):
        return _from_numbers(datatype, shape, data)
    flat = _flatten(data, shape)
    dtype = DTYPES[datatype]
    allowed = {int, float} if dtype.kind == "f" else {int}
    if others := set(map(type, flat)) - allowed:
        expected = "numbers" if dtype.kind == "f" else "whole numbers"
        raise Refusal(f"Expected {expected} in 'data' of {datatype}, got a {_type_name(others.pop())}; convert it.")
    try:
        with np.errstate(over="ignore"):
            array = np.array(flat, dtype)
    except (OverflowError, ValueError):
        raise Refusal(f"Expected 'data' in the range of {datatype}, got a number beyond it; check the input.") from None
    return _shaped(array, shape)


def _from_numbers(datatype: str, shape: tuple[int, ...], numbers: Numbers) -> NDArray[Any]:
    """Read many numbers a piece at a time, so that other threads have their turns between."""
    count = math.prod(shape)
    if len(numbers) != count:
        raise _miscounted(shape, len(numbers))
    if not numbers.has_shape(shape):
        raise _uneven(shape)
    array = np.empty(count, DTYPES[datatype])
    filled = 0
    for piece in numbers.pieces():
        array[filled : filled + len(piece)] = from_list(datatype, (len(piece),), piece)
        filled += len(piece)
    if filled != count:
        raise _miscounted(shape, filled)
    return _shaped(array, shape)


def elements_from_list(shape: tuple[int, ...], data: object) -> list[str]:
    """Return the strings of a BYTES tensor in JSON; raises Refusal."""
    flat = _flatten(data, shape)
    if others := set(map(type, flat)) - {str}:
        raise Refusal(f"Expected strings in 'data' of BYTES, got a {_type_name(others.pop())}; send text.")
    return cast("list[str]", flat)


def elements_from_bytes(shape: tuple[int, ...], raw: memoryview) -> list[memoryview]:
    """Return the elements of a binary BYTES tensor, each after its length in 4 little-endian bytes; raises Refusal.

    >>> elements_from_bytes((1,), memoryview(b"\\2\\0\\0\\0ab"))[0].tobytes()
    b'ab'
    """
    count, elements, offset = math.prod(shape), list[memoryview](), 0
    while offset < len(raw) and len(elements) < count:
        start = offset + 4
        end = start + int.from_bytes(raw[offset:start], "little")
        if start > len(raw) or end > len(raw):
            raise Refusal("Expected every string of BYTES after its length, got a length beyond the end; encode again.")
        elements.append(raw[start:end])
        offset = end
    if len(elements) != count or offset != len(raw):
        raise Refusal(
            f"Expected {count} strings of BYTES, got {'more' if offset < len(raw) else len(elements)}; fix the shape."
        )
    return elements


def bytes_from_elements(elements: Iterable[str]) -> bytes:
    """Return strings as a binary BYTES tensor.

    >>> bytes_from_elements(["ab"])
    b'\\x02\\x00\\x00\\x00ab'
    """
    encoded = (element.encode() for element in elements)
    return b"".join(part for each in encoded for part in (len(each).to_bytes(4, "little"), each))


def from_base64(element: str | memoryview) -> bytes:
    """Return what an element of BYTES holds in base64; raises Refusal.

    >>> from_base64("YWI=")
    b'ab'
    """
    try:
        return b64decode(element, validate=True)
    except ValueError:
        raise Refusal("Expected base64 in BYTES, as 'content_type' says, got other text; encode it again.") from None


def _shaped(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    try:
        return array.reshape(shape)
    except ValueError:  # a size of 0 with others that are too large for any machine
        raise Refusal(f"Expected a shape that an array can have, got {show(list(shape))}; fix it.") from None


def _flatten(data: object, shape: tuple[int, ...]) -> list[Any]:
    """Flatten nested lists, one level at a time, and check their lengths against the shape."""
    count = math.prod(shape)
    if not isinstance(data, list):
        raise Refusal(f"Expected 'data' as a list of {count} values, got {show(data)}; send a list.")
    level = cast("list[Any]", data)
    if level and type(level[0]) is list:
        for depth, size in enumerate(shape):
            if len(level) != math.prod(shape[: depth + 1]):
                raise _uneven(shape)
            if depth < len(shape) - 1:
                if set(map(type, level)) - {list} or set(map(len, level)) - {shape[depth + 1]}:
                    raise _uneven(shape)
                level = list(chain.from_iterable(level))
            elif size and type(level[0]) is list:
                raise _uneven(shape)
    if len(level) != count:
        raise _miscounted(shape, len(level))
    return level


def _miscounted(shape: tuple[int, ...], count: int) -> Refusal:
    return Refusal(
        f"Expected {math.prod(shape)} values in 'data' for shape {list(shape)}, got {count}; fix one of them."
    )


def _uneven(shape: tuple[int, ...]) -> Refusal:
    return Refusal(f"Expected 'data' flat or nested as {list(shape)}, got lists of other lengths; fix one of them.")


def _type_name(type_: type) -> str:
    names = {
        bool: "truth value", int: "whole number", float: "fraction", str: "string", list: "list", dict: "object",
        type(None): "null",
    }  # fmt: skip
    return names.get(type_, type_.__name__)
