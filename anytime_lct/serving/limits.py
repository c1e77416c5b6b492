"""What one request, and all of them together, may take of the server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from anytime_lct.serving.request import Overloaded, Refusal

MEGA = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Bounds in bytes, samples and seconds, so that no client takes memory or time without end.

    `body` bounds a body, compressed and not; `json` its JSON part, which costs twenty times its size to read;
    `in_flight` all bodies being read or answered, and the answers. `images` or `characters` are what one request may
    bring. A body has `read_seconds` to arrive, its answer as long to be taken, the headers `header_seconds`.
    """

    body: int = 64 * MEGA
    json: int = 8 * MEGA
    in_flight: int = 256 * MEGA
    images: int = 256
    characters: int = 16_384
    header_bytes: int = 64 * 1024
    header_seconds: float = 10.0
    read_seconds: float = 30.0
    connections: int = 4096


USUAL = Limits()


class Allowance:
    """Bytes that all requests may hold together; used from the event loop alone."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0

    @contextmanager
    def hold(self) -> Iterator[Holding]:
        """Give a request something to take bytes with; they are given back at the end."""
        holding = Holding(self)
        try:
            yield holding
        finally:
            self.held -= holding.held


class Holding:
    """The bytes that one request holds."""

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self.held = 0

    def take(self, size: int) -> None:
        """Hold so many bytes more; raises Overloaded where all requests together hold too many."""
        allowance = self._allowance
        if allowance.held + size > allowance.most:
            raise Overloaded(
                f"Expected at most {allowance.most} bytes of requests at a time, got more; try again later.", 1.0
            )
        allowance.held += size
        self.held += size


def too_large(limit: int) -> Refusal:
    """The error of a body beyond a limit."""
    return Refusal(
        f"Expected a body of at most {limit} bytes, got a larger one; send fewer samples at a time.", "large"
    )
