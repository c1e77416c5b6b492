"""What a request gets: a reply, or a refusal of some kind; the words that protocols, service and engine share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from anytime_lct.errors import BundleError, LCTError
from anytime_lct.runtime.answer import Answer

Kind = Literal["invalid", "unknown", "large", "slow", "encoding", "overloaded", "failed"]
"""Why a request is not answered: it cannot be understood, names what is not there, brings too much, comes too slowly,
is packed in another way, came while others had all the time or memory, or met a fault of the server's own."""


@dataclass(frozen=True, eq=False)
class Reply:
    """An answer to a batch, and its times.

    `queued` and `computed` are seconds; `on_time` is None without a deadline; `finished` is a reading of
    time.monotonic().
    """

    answer: Answer
    queued: float
    computed: float
    on_time: bool | None
    finished: float = 0.0


class Overloaded(LCTError):  # noqa: N818 - named by what the server is, as its answer says
    """Too busy to answer in time; `retry_after` are seconds after which it may be tried again."""

    def __init__(self, message: str = "", retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Refusal(LCTError, ValueError):  # noqa: N818
    """A request that cannot be answered as it is; `kind` says why, and a protocol what that is in its own codes."""

    def __init__(self, message: str, kind: Kind = "invalid") -> None:
        super().__init__(message)
        self.kind: Kind = kind


class ClientGone(Exception):  # noqa: N818 - nobody is left to be told of an error
    """The client hung up before its request was whole, or before its answer was."""


def kind_of(error: LCTError) -> Kind:
    """Return the kind of any error that a request met.

    >>> kind_of(Overloaded("later"))
    'overloaded'
    """
    if isinstance(error, Refusal):
        return error.kind
    if isinstance(error, Overloaded):
        return "overloaded"
    return "failed" if isinstance(error, BundleError) else "invalid"  # a file of the server's own, whatever was asked


def show(value: object) -> str:
    """Write what came, cut short: nobody wants megabytes back."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or lists within lists
        return "something else"
    return text if len(text) <= 60 else f"{text[:57]}..."
