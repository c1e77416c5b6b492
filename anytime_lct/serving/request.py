"""What a request gets, a reply or a refusal of some kind: the types that protocols, service and engine share."""

from __future__ import annotations

from typing import Literal, NamedTuple

from anytime_lct.errors import BundleError, LCTError
from anytime_lct.runtime.answer import Answer

Kind = Literal["invalid", "unidentified", "forbidden", "unknown", "large", "slow", "encoding", "overloaded", "failed"]
"""Why a request is not answered: it is wrong, its client has no key or may not ask, it names an unknown model, is too
large, arrives too slowly, has an unknown encoding, finds no time or memory left, or the server fails."""


class Reply(NamedTuple):
    """An answer to a batch, and its times.

    `queued` and `computed` are seconds; `on_time` is None without a deadline; `finished` is the value of
    time.monotonic() when the answer was ready.
    """

    answer: Answer
    queued: float
    computed: float
    on_time: bool | None
    finished: float = 0.0


class Overloaded(LCTError):  # noqa: N818 - the state of the server
    """The server is too busy to answer in time; a client may try again after `retry_after` seconds."""

    def __init__(self, message: str = "", retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Refusal(LCTError, ValueError):  # noqa: N818
    """A request cannot be answered as it is; `kind` says why, and a protocol translates it into its own codes."""

    def __init__(self, message: str, kind: Kind = "invalid") -> None:
        super().__init__(message)
        self.kind: Kind = kind


class ClientGone(Exception):  # noqa: N818 - no error: there is no client to report it to
    """The client closed the connection before its request or its answer was complete."""


def kind_of(error: LCTError) -> Kind:
    """Return the kind of refusal that an error becomes.

    >>> kind_of(Overloaded("later"))
    'overloaded'
    """
    if isinstance(error, Refusal):
        return error.kind
    if isinstance(error, Overloaded):
        return "overloaded"
    return "failed" if isinstance(error, BundleError) else "invalid"  # a broken bundle is not the client's fault


def show(value: object) -> str:
    """Format a value of a request for a message, cut to 60 characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or deeply nested lists
        return "something else"
    return text if len(text) <= 60 else f"{text[:57]}..."
