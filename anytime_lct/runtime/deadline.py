"""Deeper, or no deeper: what a request with a deadline does behind a group."""

from __future__ import annotations

from anytime_lct.runtime.timing import Timing
from anytime_lct.runtime.walk import Order, Walk

# An answer that costs at most this share of the next group is worth having in case that group comes too late.
INSURANCE = 0.1
# What predictions may be wrong by is allowed for, up to this share of the whole time that the request brought.
MOST_SLACK = 0.25


def next_exit(served: tuple[int, ...], depth: int) -> int:
    """Return the first served exit behind `depth`, which must not be the last.

    >>> next_exit((1, 3, 4), 1)
    3
    """
    return next(exit for exit in served if exit > depth)


def order(timing: Timing, walk: Walk, left: float, timeout: float) -> Order:
    """Decide behind a served exit which is not the last: `left` of the request's `timeout` seconds are left."""
    deeper = timing.to_exit(next_exit(walk.served, walk.depth), walk.size, walk.depth)
    here = 0.0 if walk.is_answered_here else timing.critic(walk.depth, walk.size)
    slack = min(timing.slack, MOST_SLACK * timeout)
    insured = here <= INSURANCE * deeper
    if deeper + slack + (here if insured else 0.0) <= left:
        return "answer and deeper" if insured else "deeper"
    return "late" if here > left else "deadline"
