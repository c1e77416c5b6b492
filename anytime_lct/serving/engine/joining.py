"""Requests that wait join: those of one model, shape and plan run as one batch, and each gets its rows of the answer.

    waiting, by deadline   [a b c d ..]  <- e     b is of another model
                            |   | |       |
    one walk               [a   c d       e]: group 1 | group 2 | ..  -> answers of a, c, d, e

A request joins when it is admitted, or not at all; that is decided by deadlines (`scheduler`). A batch grows up to the
largest size that pays by the timings of this machine. Where samples stop by their confidence, the rest of the batch
goes on, and a request is answered when its last sample stops.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice

from anytime_lct.serving.engine.job import Job

# Requests join if the time that is left to one is at most so many times that of the other: they get equally deep.
ALIKE = 2.0
# A new request tries to join at most so many of the jobs that wait.
MAX_TRIED = 4


def sizes_to(most: int) -> tuple[int, ...]:
    """Return the sizes of batches up to `most` samples that are measured.

    >>> sizes_to(20)
    (1, 2, 4, 8, 16)
    """
    return tuple(2**k for k in range(most.bit_length()))


def joined(job: Job, waiting: Sequence[Job], now: float) -> Iterator[Job]:
    """Yield batches of a new request and a job of the queue that has room for it, the last of the queue first."""
    if not job.bundle.batches:
        return
    room = job.bundle.batches[-1] - job.samples
    others = (each for each in reversed(waiting) if _is_alike(job, each, now) and each.samples <= room)
    for other in islice(others, MAX_TRIED):
        yield _together(job, other)


def parts(job: Job) -> Iterator[tuple[Job, slice]]:
    """Yield the requests of a job, and the samples of its walk that are theirs."""
    start = 0
    for request in job.requests:
        yield request, slice(start, start + len(request.x))
        start += len(request.x)


def _is_alike(job: Job, other: Job, now: float) -> bool:
    """Return whether a new request and a job that waits may run as one."""
    return (
        other.bundle is job.bundle
        and other.walk is None
        and other.is_fixed == job.is_fixed
        and other.x.shape[1:] == job.x.shape[1:]
        and other.plan == job.plan
        and (job.due == math.inf) == (other.due == math.inf)
        and (job.is_fixed or job.due == math.inf or _is_as_urgent(job, other, now))
    )


def _is_as_urgent(job: Job, other: Job, now: float) -> bool:
    soonest, latest = min(job.due, other.due), max(job.due, other.requests[-1].due)
    return latest - now <= ALIKE * (soonest - now)


def _together(job: Job, other: Job) -> Job:
    members = sorted((*other.requests, job), key=lambda each: (each.due, each.arrived))
    first = members[0]
    return Job(first.bundle, first.x, first.ask, first.arrived, first.plan, first.due, members=tuple(members))
