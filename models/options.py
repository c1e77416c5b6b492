"""Options that several networks share, and the images that they read."""

from __future__ import annotations

from collections.abc import Sequence

from anytime_lct.errors import ModelError


def expect_dropout(name: str, dropout: float, key: str = "a dropout") -> None:
    """Raise ModelError unless the option `key` is a share that can be dropped, at least 0 and below 1."""
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ModelError(f"Expected {key} from 0 up to below 1 for the network '{name}', got {dropout!r}.")


def expect_whole(name: str, key: str, value: int, smallest: int = 1) -> None:
    """Raise ModelError unless the option `key` is a whole number, at least `smallest`."""
    if type(value) is not int or value < smallest:
        raise ModelError(f"Expected {key} of at least {smallest} for the network '{name}', got {value!r}.")


def expect_wholes(
    name: str, key: str, values: Sequence[int], length: int | None = None, smallest: int = 1
) -> tuple[int, ...]:
    """Return the option `key`, a list of whole numbers from `smallest`, `length` of them where that is fixed.

    Raises ModelError for anything else.
    """
    numbers = tuple(values) if isinstance(values, list | tuple) else ()
    short = not numbers if length is None else len(numbers) != length
    if short or any(type(number) is not int or number < smallest for number in numbers):
        wanted = f"{'' if length is None else f'{length} '}whole numbers of at least {smallest}"
        raise ModelError(f"Expected {key} as a list of {wanted} for the network '{name}', got {values!r}.")
    return numbers


def expect_image(name: str, input_shape: tuple[int, ...], smallest: int) -> tuple[int, int, int]:
    """Return (C, H, W); raises ModelError for text, and for images that strides would reduce below one pixel."""
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ModelError(f"The network '{name}' reads images (C, H, W), but the data has inputs {tuple(input_shape)}.")
    channels, height, width = input_shape
    if min(height, width) < smallest:
        raise ModelError(
            f"The network '{name}' needs images of at least {smallest}x{smallest}, but the data has "
            f"{height}x{width}; choose another network or stem."
        )
    return channels, height, width
