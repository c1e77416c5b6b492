"""What a request with a deadline does behind a group: go deeper, or answer."""

from __future__ import annotations

from anytime_lct.runtime.timing import Timing
from anytime_lct.runtime.walk import Order, Walk

# An answer that takes at most this fraction of the time to the next exit is computed first, in case that is too late.
INSURANCE = 0.1
# The allowance for wrong predictions is at most this fraction of the request's timeout.
MAX_SLACK = 0.25


def next_exit(served: tuple[int, ...], depth: int) -> int:
    """Return the first served exit deeper than `depth`, which must not be the last.

    >>> next_exit((1, 3, 4), 1)
    3
    """
    return next(exit for exit in served if exit > depth)


def order(timing: Timing, walk: Walk, remaining: float, timeout: float) -> Order:
    """Decide at a served exit that is not the last, with `remaining` of the request's `timeout` seconds."""
    deeper = timing.to_exit(next_exit(walk.served, walk.depth), walk.size, walk.depth)
    here = 0.0 if walk.is_answered_here else timing.critic(walk.depth, walk.size)
    slack = min(timing.slack, MAX_SLACK * timeout)
    is_insured = here <= INSURANCE * deeper
    if deeper + slack + (here if is_insured else 0.0) <= remaining:
        return "answer and deeper" if is_insured else "deeper"
    return "late" if here > remaining else "deadline"
