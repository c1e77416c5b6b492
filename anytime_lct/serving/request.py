"""What a request asks for and what it gets: the words that the protocol and the engine share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from anytime_lct.errors import LCTError
from anytime_lct.exits.budget import Budget
from anytime_lct.exits.thresholds import Measure

ANY = Budget()
Mode = Literal["anytime", "fixed"]
Stopped = Literal["budget", "confident", "deadline", "load", "last"]


@dataclass(frozen=True)
class Ask:
    """What a request may cost.

    `budget` bounds multiply-adds, parameters and the exit. `timeout` are seconds from arrival until the answer
    is due. `min_confidence`, in (0, 1], stops at the first exit that is so sure by `measure`.
    `mean_flops` stops by the bundle's rule for such a mean cost over many requests. In the mode "fixed" the exit
    that the budget names answers, whatever the load.

    >>> Ask(Budget(flops=20e6), timeout=0.02)
    Ask(budget=Budget(flops=20000000.0, params=None, latency=None, exit=None), timeout=0.02, min_confidence=None, \
measure='max-probability', mean_flops=None, mode='anytime')
    """

    budget: Budget = ANY
    timeout: float | None = None
    min_confidence: float | None = None
    measure: Measure = "max-probability"
    mean_flops: float | None = None
    mode: Mode = "anytime"


@dataclass(frozen=True, eq=False)
class Reply:
    """The answer to a batch, and how it came about.

    `logits` are (B, K) for images and (B, T, K) for text; `exits` (B,) says which exit answered each sample;
    `exits_run` how many answers, of critics and of the main network, were computed on the way; `flops` the mean
    multiply-adds paid per sample; `queued` and `computed` are seconds; `on_time` is None without a deadline;
    `finished` is a reading of time.monotonic().
    """

    logits: NDArray[np.float32]
    exits: NDArray[np.int64]
    exits_run: int
    stopped: Stopped
    flops: float
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
    """A request that cannot be answered as it is; `status` is the HTTP status that says so."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
