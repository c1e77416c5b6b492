"""JSON as text and as values; long arrays of numbers stay text, to be read in pieces later.

JSON is read in one call that holds all other threads, and pydantic's reader takes a seventh of the time of Python's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from pydantic_core import PydanticSerializationError, from_json, to_json

from anytime_lct.serving.request import Refusal, show

LONG = 1 << 15  # bytes from which an array of numbers stays text
PIECE = 1 << 15  # bytes of it that are read at a time
MANY = 1 << 17  # commas of the other text, which is read at once
MARK = b"-Infinity"  # stands for a long array; it is no number in JSON
DIGITS = b"0123456789+-.eE"
_MASK = bytes(ord("0") if byte in DIGITS + b",[] \t\r\n" else ord("x") for byte in range(256))
_RUN = b"0" * LONG
_TO_MARKS = bytes.maketrans(DIGITS, b"d" * len(DIGITS))
_TO_SPACES = bytes.maketrans(b"[]", b"  ")


@dataclass(frozen=True, repr=False)
class Numbers:
    """An array of numbers, flat or nested, as the text of JSON."""

    text: bytes

    def __repr__(self) -> str:
        return f"a list of {len(self)} numbers"

    def __len__(self) -> int:
        return self.text.count(b",") + 1

    def has_shape(self, shape: tuple[int, ...]) -> bool:
        """Return whether the brackets are those of this shape, flat or nested; the sizes are positive.

        >>> Numbers(b"[[1, 2], [3, 4]]").has_shape((2, 2)), Numbers(b"[[1, 2], [3]]").has_shape((2, 2))
        (True, False)
        """
        marks = self.text.translate(_TO_MARKS, b" \t\r\n")
        if b"d[" in marks or b"]d" in marks:
            return False
        brackets = marks.translate(None, b"d")
        length = shape[-1] + 1
        for size in reversed(shape[:-1]):
            length = size * (length + 1) + 1
        if len(brackets) != length:  # before anything of that length is made
            return brackets == b"[%b]" % (b"," * (len(self) - 1))
        nested = b"[%b]" % (b"," * (shape[-1] - 1))
        for size in reversed(shape[:-1]):
            nested = b"[%b]" % b",".join([nested] * size)
        return brackets == nested

    def pieces(self) -> Iterator[list[Any]]:
        """Yield the values in order, some thousands at a time; raises Refusal."""
        text = self.text.translate(_TO_SPACES)
        start = 0
        while start < len(text):
            end = text.find(b",", start + PIECE)
            end = len(text) if end < 0 else end
            yield cast("list[Any]", _decode(b"[%b]" % text[start:end]))
            start = end + 1


def read_json(raw: bytes) -> object:
    """Return the value of a JSON text, in which a long array is Numbers; raises Refusal.

    >>> read_json(b'{"shape": [1, 2]}')
    {'shape': [1, 2]}
    """
    if len(raw) < LONG:
        return _decode(raw)
    text, arrays = _set_apart(raw)
    if text.count(b",") > MANY:
        raise Refusal(f"Expected at most {MANY} values beside 'data', got more; send numbers, or binary data.")
    waiting = iter(arrays)

    def take(name: str) -> Numbers:
        if name != MARK.decode():
            _refuse_constant(name)
        return next(waiting)

    value = _decode(text, json.JSONDecoder(parse_constant=take))
    if next(waiting, None) is not None:
        raise Refusal("Expected a request in JSON, got a text that is an array of numbers; send it as an array.")
    return value


def write_json(value: object) -> bytes:
    """Return a value as compact JSON."""
    try:
        return to_json(value)
    except PydanticSerializationError:  # names of files need not be Unicode
        return json.dumps(value).encode()


def read_object(raw: object, what: str) -> dict[str, Any]:
    """Return a JSON object; raises Refusal for another value."""
    if not isinstance(raw, dict):
        raise Refusal(f"Expected {what} as a JSON object, got {show(raw)}; fix it.")
    return cast("dict[str, Any]", raw)


def read_boolean(parameters: dict[str, Any], key: str) -> bool:
    """Return a truth value, by default False; raises Refusal for another value."""
    value = parameters.get(key, False)
    if type(value) is not bool:
        raise Refusal(f"Expected '{key}' as true or false, got {show(value)}; fix it.")
    return value


def _set_apart(raw: bytes) -> tuple[bytes, list[Numbers]]:
    """Return the text with a mark for each long array of numbers, and those."""
    if MARK in raw:
        _refuse("-Infinity is not a number in JSON")
    mask = raw.translate(_MASK)
    parts: list[bytes] = []
    arrays: list[Numbers] = []
    copied = end = 0
    while (start := mask.find(_RUN, end)) >= 0:
        end = mask.find(b"x", start)
        end = len(raw) if end < 0 else end
        first, last = raw.find(b"[", start, end), raw.rfind(b"]", start, end)
        if 0 <= first < last:
            parts += (raw[copied:first], MARK)
            arrays.append(Numbers(raw[first : last + 1]))
            copied = last + 1
    return b"".join((*parts, raw[copied:])), arrays


def _decode(raw: bytes, decoder: json.JSONDecoder | None = None) -> object:
    try:
        return from_json(raw, allow_inf_nan=False) if decoder is None else decoder.decode(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        _refuse("too deeply nested" if isinstance(error, RecursionError) else str(error)[:120])


def _refuse(reason: str) -> NoReturn:
    raise Refusal(f"Expected a request in JSON, got something else ({reason}); fix it.") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")
