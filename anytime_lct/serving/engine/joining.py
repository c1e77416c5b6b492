"""Requests that wait join: those of one model, shape and plan run as one batch, and each gets its rows of the answer.

    waiting, by deadline   [a b c d ..]        b is of another model
                            |   | |
    one walk               [a c d]: group 1 | group 2 | ..  -> answers of a, c, d

Sizes of batches are powers of two, those that pay by the timings of this machine. Requests of which samples stop early
run alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from anytime_lct.runtime.answer import Answer
from anytime_lct.runtime.deadline import MAX_SLACK
from anytime_lct.serving.engine.job import Job

# Requests join if the time that is left to one is at most so many times that of the other: they get equally deep.
ALIKE = 2.0


def sizes_to(most: int) -> tuple[int, ...]:
    """Return the sizes of batches up to `most` samples.

    >>> sizes_to(20)
    (1, 2, 4, 8, 16)
    """
    return tuple(2**k for k in range(most.bit_length()))


def joined(job: Job, waiting: Iterable[Job], now: float) -> Iterator[Job]:
    """Yield the batches that a request which has not started may begin as, the largest first; `waiting` by deadline."""
    sizes = job.bundle.batches
    if not sizes or job.walk is not None or job.plan.stopping is not None:
        return
    others = _alike(job, waiting, sizes[-1], now)
    for size in reversed(sizes):
        members, samples = [job], len(job.x)
        for other in others:
            if samples + len(other.x) <= size:
                members.append(other)
                samples += len(other.x)
        if samples == size and len(members) > 1:
            batch = Job(job.bundle, job.x, job.ask, job.arrived, job.plan, job.due, members=tuple(members))
            if is_as_deep(job, batch, now):
                yield batch


def is_as_deep(job: Job, batch: Job, now: float) -> bool:
    """Return whether the batch reaches by the request's deadline the exit that the request alone reaches."""
    if job.due == math.inf:
        return True
    timing = job.bundle.timing
    left = job.due - now - timing.overhead - min(timing.slack, MAX_SLACK * (job.due - job.arrived))
    exits = [job.deepest] if job.is_fixed else [exit for exit in job.bundle.session.served if exit <= job.deepest]
    reached = max((exit for exit in exits if timing.to_exit(exit, job.size) <= left), default=None)
    if reached is None:
        return job.is_fixed  # late in any case
    return timing.to_exit(reached, batch.size) <= left


def shares(answer: Answer, members: Sequence[Job]) -> Iterator[Answer]:
    """Yield the answer of every request of a batch: its rows."""
    start = 0
    for member in members:
        rows = slice(start, start + len(member.x))
        yield replace(answer, logits=answer.logits[rows], exits=answer.exits[rows])
        start = rows.stop


def _alike(job: Job, waiting: Iterable[Job], most: int, now: float) -> list[Job]:
    """Return the waiting requests that may run with `job`, as many as a batch of `most` samples can take."""
    others: list[Job] = []
    for other in waiting:
        if len(others) >= most:
            break
        is_alike = (
            other.bundle is job.bundle
            and other.walk is None
            and other.plan == job.plan
            and other.is_fixed == job.is_fixed
            and other.x.shape[1:] == job.x.shape[1:]
            and (job.due == math.inf) == (other.due == math.inf)
        )
        if is_alike and (job.is_fixed or job.due == math.inf or other.due - now <= ALIKE * (job.due - now)):
            others.append(other)
    return others
