"""Limits on the memory and time that one request, and all requests together, may use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from anytime_lct.serving.request import Overloaded, Refusal

MEGA = 1 << 20
SMALL = 1 << 14  # bytes that a request may always take while there are any
LEFT, LEAST = 8, 4  # a larger one leaves 8 times its size to smaller ones, up to a quarter of all


@dataclass(frozen=True)
class Limits:
    """Bounds in bytes, samples and seconds, so that no client uses memory or time without limit.

    `body` bounds a body, compressed and uncompressed; `json` its JSON part, which takes twenty times its size to parse;
    `in_flight` what all requests together hold: heads that wait, bodies, inputs, hidden tensors and answers. `images`
    or `characters` bound the input of a request, `side` the height and width of pixels. A body must arrive within
    `read_seconds`, its answer be read within the same time, and headers arrive within `header_seconds`.
    """

    body: int = 64 * MEGA
    json: int = 8 * MEGA
    in_flight: int = 256 * MEGA
    images: int = 256
    characters: int = 16_384
    side: int = 16_384
    header_bytes: int = 64 * 1024
    header_seconds: float = 10.0
    read_seconds: float = 30.0
    connections: int = 4096

    @property
    def alone(self) -> int:
        """The bytes that one request can hold at most; the others are left to smaller ones."""
        return self.in_flight - self.in_flight // LEAST


DEFAULT_LIMITS = Limits()


class Allowance:
    """The memory that all requests may use together, `limit` bytes; used from the event loop alone.

    The larger a request, the more it leaves to smaller ones: a few large uploads, slow or not, do not lock them out.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def hold(self) -> Holding:
        """Return a holding, for one request, to take bytes with; when it ends, as a context, they are given back."""
        return Holding(self)


class Holding:
    """The memory that one request uses."""

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self.used = 0

    def __enter__(self) -> Holding:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back(self.used)

    def take(self, size: int) -> None:
        """Take `size` more bytes.

        Raises Overloaded where all requests together would use too many, and Refusal where this one alone would.
        """
        allowance = self._allowance
        used = self.used + size
        left = min(LEFT * (used - SMALL), allowance.limit // LEAST) if used > SMALL else 0
        if used > allowance.limit - left:
            raise Refusal(
                f"Expected a request that takes at most {allowance.limit - left} bytes with its input, hidden tensors "
                "and answer, got a larger one; send fewer samples at a time.",
                "large",
            )
        if allowance.used + size > allowance.limit - left:
            raise Overloaded(
                f"Expected at most {allowance.limit} bytes of requests at a time, got more; try again later, or send "
                "fewer samples at a time.",
                1.0,
            )
        allowance.used += size
        self.used = used

    def give_back(self, size: int) -> None:
        """Give `size` of the bytes back."""
        self._allowance.used -= size
        self.used -= size

    @contextmanager
    def borrow(self, size: int) -> Iterator[None]:
        """Take `size` more bytes and give them back at the end; raises Overloaded and Refusal."""
        self.take(size)
        try:
            yield
        finally:
            self.give_back(size)


def too_large(limit: int) -> Refusal:
    """Return the refusal of a body beyond a limit."""
    return Refusal(
        f"Expected a body of at most {limit} bytes, got a larger one; send fewer samples at a time.", "large"
    )
