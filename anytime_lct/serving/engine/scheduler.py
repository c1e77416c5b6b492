"""Which request runs next, and how deep: earliest deadline first, each as deep as all can go in time.

    waiting, by deadline   [a b c d ..]  -> admitted only if it ends in time and makes no other request late
                            |
    workers                 a: group 1 | group 2 | ..    behind each group: may it go deeper?

Behind a group a request goes deeper only if its own deadline allows it and if, after that, all waiting requests could
go as deep and still end in time. So under load exits get shallower for all requests alike, and none is late. A request
yields to one with an earlier deadline. Requests without a deadline come last, but do not starve: for one that has
waited longer than `PATIENCE`, those with a deadline get shallower. Time is an argument everywhere: tests need no clock.

All of this asks one forecast who would be late: the queue in its order, each job on the worker that is free first, for
the predicted seconds to one exit. Requests join when they are admitted (`joining`): then a batch is a job of the queue
as others are, and takes the seconds of its size. So the forecast counts on no batch that `next` does not start, and a
job that ends before its time makes no other one late.
"""

from __future__ import annotations

import heapq
import itertools
import math
from bisect import insort
from collections.abc import Iterator

from anytime_lct.exits.budget import show_seconds
from anytime_lct.runtime import deadline
from anytime_lct.runtime.deadline import MAX_SLACK, next_exit
from anytime_lct.runtime.walk import Order
from anytime_lct.serving.engine.job import Job
from anytime_lct.serving.engine.joining import joined
from anytime_lct.serving.request import Overloaded

MAX_WAITING = 1024
MIN_SECONDS = 0.001  # the shortest time in a message
PATIENCE = 1.0  # seconds
# A request hangs whose next groups take so many times their predicted seconds, and so many seconds more.
HANG_FACTOR, HANG_SECONDS = 10.0, 10.0
# A job in the queue: when it is due, when it arrived, its number, its kind, which says how long it takes, and the job.
Entry = tuple[float, float, int, tuple[int, ...], Job]


class Scheduler:
    """The waiting and the running requests of `workers` workers; not thread-safe: its owner holds a lock.

    >>> scheduler = Scheduler(workers=1)          # doctest: +SKIP
    >>> scheduler.admit(job, now=time.monotonic())  # doctest: +SKIP
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._waiting: list[Entry] = []
        self._length = 0
        self._numbers = itertools.count()
        self._running: list[Job] = []

    def __len__(self) -> int:
        """Number of requests that wait."""
        return self._length

    @property
    def running(self) -> list[Job]:
        """The requests that run."""
        return self._running

    def hanging(self, now: float) -> int:
        """Return the number of running requests that hang."""
        return sum(job.hangs_at < now for job in self._running)

    @property
    def is_idle(self) -> bool:
        """Whether no request waits or runs."""
        return not self._waiting and not self._running

    @property
    def is_free(self) -> bool:
        """Whether a worker has nothing to do."""
        return not self._waiting and len(self._running) < self._workers

    def admit(self, job: Job, now: float) -> None:
        """Put a request into the queue, or raise Overloaded at once where not even its first exit is in time.

        It is also shed where it would make an admitted request late that is in time without it. It joins others where
        that makes nobody late, and all who wait could go as deep as if it waited alone, or there is no time for it
        alone. A request of the mode "fixed" has no guarantee, and is shed only where too many wait.
        """
        if self._length >= MAX_WAITING:
            raise Overloaded(f"Expected fewer than {MAX_WAITING} waiting requests; try again later.", 1.0)
        late = self._late(self._waiting, now)
        alone = self._queue_with(job)
        served = job.bundle.session.served if job.bundle.batches else ()
        exit = next((exit for exit in (*reversed(served), 0) if self._late(alone, now, exit) <= late), None)
        for batch in joined(job, [entry[-1] for entry in self._waiting], now):
            queue = self._queue_with(batch)
            if all(self._late(queue, now, each) <= late for each in {0, exit or 0}):
                break
        else:
            queue = alone
            if exit is None and not job.is_fixed:
                raise self._overloaded(job, job in self._late(alone, now), now)
        self._waiting = queue
        self._length += 1

    def next(self, now: float) -> Job | None:
        """Start the waiting job with the earliest deadline, and return it; None where none waits."""
        if not self._waiting:
            return None
        job = self._waiting.pop(0)[-1]
        self._length -= len(job.requests)
        self._expect(job, 0, now)
        self._running.append(job)
        return job

    def order(self, job: Job, now: float) -> Order | None:
        """Decide behind a group of a running request; None: yield to a request with an earlier deadline."""
        if job.is_fixed:
            return self._go(job, "deeper", now)
        assert job.walk is not None
        order: Order = "deeper"
        critic_seconds = 0.0
        if job.due < math.inf:
            remaining = job.due - now - job.bundle.timing.overhead
            order = deadline.order(job.bundle.timing, job.walk, remaining, job.due - job.arrived)
            if order in ("deadline", "late"):
                return self._stop(job, order, now)
            if order == "answer and deeper":
                critic_seconds = job.bundle.timing.critic(job.depth, job.size)
        if self._waiting:
            if self._waiting[0][0] < job.due and self._may_yield(job, now):
                return None
            exit = next_exit(job.walk.served, job.depth)
            if any(self._forecast(self._waiting, now + critic_seconds, exit, deeper_job=job)):
                return self._stop(job, "load", now)
        return self._go(job, order, now + critic_seconds)

    def _may_yield(self, job: Job, now: float) -> bool:
        """Return whether it makes nobody late that a running request goes back into the queue, itself included."""
        late = self._late(self._waiting, now)
        self._running.remove(job)
        late_then = self._late(self._queue_with(job), now)
        self._running.append(job)
        return late_then <= late

    def put_back(self, job: Job) -> None:
        """Put a request that yielded back into the queue; it keeps its progress."""
        self._running.remove(job)
        self._waiting = self._queue_with(job)
        self._length += len(job.requests)

    def done(self, job: Job) -> None:
        """Remove a running request that is answered."""
        self._running.remove(job)

    def drop(self, job: Job) -> None:
        """Remove a request from the queue, if it is there: it is answered or cancelled. The rest of its batch waits."""
        for k, entry in enumerate(self._waiting):
            waiting = entry[-1]
            if waiting is job:
                del self._waiting[k]
                self._length -= len(job.requests)
                return
            if job in waiting.members:
                waiting.members = tuple(each for each in waiting.members if each is not job)
                self._waiting[k : k + 1] = [(*entry[:3], _kind(waiting), waiting)] if waiting.members else []
                self._length -= 1
                return

    def _queue_with(self, job: Job) -> list[Entry]:
        """Return the queue with one job more, in the place of those whose requests it takes."""
        members = set(job.members)
        queue = [*self._waiting] if not members else [e for e in self._waiting if members.isdisjoint(e[-1].requests)]
        insort(queue, (job.due, job.arrived, next(self._numbers), _kind(job), job))
        return queue

    def _go(self, job: Job, order: Order, now: float) -> Order:
        self._expect(job, next_exit(job.bundle.session.served, job.depth), now)
        return order

    def _stop(self, job: Job, order: Order, now: float) -> Order:
        self._expect(job, 0, now)
        return order

    def _expect(self, job: Job, exit: int, now: float) -> None:
        """Record when a running request can answer by `exit`, or the nearest that it allows."""
        seconds = job.seconds_to(exit)
        job.answer_at = now + seconds
        job.hangs_at = now + HANG_SECONDS + HANG_FACTOR * seconds

    def _overloaded(self, job: Job, is_late: bool, now: float) -> Overloaded:
        """The error for a request that is not admitted: it would be late itself, or make others late."""
        message = "Expected time for one more request, got others that it would make late"
        if is_late:
            message = (
                f"Expected {show_seconds(job.seconds_to(0))} for exit {job.shallowest} behind the requests before it, "
                f"got {show_seconds(max(MIN_SECONDS, job.due - now))} until the deadline"
            )
        backlog = sum(entry[-1].seconds_to(0) for entry in self._waiting) / self._workers
        return Overloaded(f"{message}; allow more time, or try again later.", max(backlog, MIN_SECONDS))

    def _late(self, queue: list[Entry], now: float, exit: int = 0) -> set[Job]:
        """Return the requests of a queue that end late if `exit` or the nearest answers each."""
        return {request for job in self._forecast(queue, now, exit) for request in job.requests}

    def _forecast(self, queue: list[Entry], now: float, exit: int, *, deeper_job: Job | None = None) -> Iterator[Job]:
        """Yield the jobs of a queue that end late if `exit` or the nearest answers each.

        `deeper_job`, which runs, first goes on to `exit`. Where it has a deadline, one without that would wait longer
        than PATIENCE is late too.
        """
        free = [now] * (self._workers - len(self._running))
        for job in self._running:
            free.append(now + job.seconds_to(exit) if job is deeper_job else max(now, job.answer_at))
        heapq.heapify(free)
        is_patience_short = deeper_job is not None and deeper_job.due < math.inf
        of_kind: dict[tuple[int, ...], tuple[float, float]] = {}  # jobs of a kind take equally long
        for due, arrived, _, kind, job in queue:
            if due == math.inf and not is_patience_short:
                break  # all further requests have no deadline either
            if (times := of_kind.get(kind)) is None:
                times = of_kind[kind] = job.seconds_to(exit), job.bundle.timing.slack
            start = free[0]
            end = start + times[0]
            heapq.heapreplace(free, end)
            if due == math.inf:
                if start > arrived + PATIENCE:
                    yield job
            elif end + times[1] > due and end + MAX_SLACK * (due - arrived) > due and not job.is_fixed:
                yield job


def _kind(job: Job) -> tuple[int, ...]:
    """What says how long a job that waits takes to an exit."""
    return id(job.bundle), job.size, job.depth, job.deepest, job.is_fixed
