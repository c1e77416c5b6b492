"""Which request runs next, and how deep: earliest deadline first, each as deep as all can go in time.

    waiting, by deadline   [a b c d ..]  -> admitted only if it ends in time and makes no other request late
                            |
    workers                 a: group 1 | group 2 | ..    behind each group: may it go deeper?

Behind a group a request goes deeper only if its own deadline allows it and if, after that, all waiting requests could
go as deep and still end in time. So under load exits get shallower for all requests alike, and none is late. A request
yields to one with an earlier deadline. Requests without a deadline come last, but do not starve: for one that has
waited longer than `PATIENCE`, those with a deadline get shallower. Requests that may join do so when the first of them
starts (`joining`). Time is an argument everywhere: tests need no clock.
"""

from __future__ import annotations

import heapq
import itertools
import math
from bisect import insort

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


class Scheduler:
    """The waiting and the running requests of `workers` workers; not thread-safe: its owner holds a lock.

    >>> scheduler = Scheduler(workers=1)          # doctest: +SKIP
    >>> scheduler.admit(job, now=time.monotonic())  # doctest: +SKIP
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._waiting: list[tuple[float, int, Job]] = []
        self._numbers = itertools.count()
        self._running: list[Job] = []

    def __len__(self) -> int:
        """Number of requests that wait."""
        return len(self._waiting)

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

        It is also shed where it would make an admitted request late that is in time without it. A request of the
        mode "fixed" has no guarantee, and is shed only where too many wait.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise Overloaded(f"Expected fewer than {MAX_WAITING} waiting requests; try again later.", 1.0)
        if not job.is_fixed:
            late = self._late(now, 0, new_job=job)
            if job in late:
                raise self._overloaded(
                    f"Expected {show_seconds(job.seconds_to(0))} for exit {job.shallowest} behind the requests before "
                    f"it, got {show_seconds(max(MIN_SECONDS, job.due - now))} until the deadline"
                )
            if late and not late <= self._late(now, 0):
                raise self._overloaded("Expected time for one more request, got others that it would make late")
        self._wait(job)

    def next(self, now: float) -> Job | None:
        """Start the waiting request with the earliest deadline, and return it, or a batch of it and others.

        None where none waits. Others join where that makes no waiting request late that is in time without it.
        """
        if not self._waiting:
            return None
        job = self._waiting.pop(0)[2]
        self._expect(job, 0, now)
        self._running.append(job)
        late = None
        for batch in joined(job, (entry[2] for entry in self._waiting), now):
            late = self._late(now, 0) if late is None else late
            waiting, members = self._waiting, set(batch.members)
            self._waiting = [entry for entry in waiting if entry[2] not in members]
            self._running[-1] = batch
            self._expect(batch, 0, now)
            if self._late(now, 0) <= late:
                return batch
            self._waiting, self._running[-1] = waiting, job
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
            if self._waiting[0][0] < job.due:
                return None
            exit = next_exit(job.walk.served, job.depth)
            if self._late(now + critic_seconds, exit, deeper_job=job):
                return self._stop(job, "load", now)
        return self._go(job, order, now + critic_seconds)

    def put_back(self, job: Job) -> None:
        """Put a request that yielded back into the queue; it keeps its progress."""
        self._running.remove(job)
        self._wait(job)

    def done(self, job: Job) -> None:
        """Remove a running request that is answered."""
        self._running.remove(job)

    def drop(self, job: Job) -> None:
        """Remove a request from the queue, if it is there: it is answered or cancelled."""
        self._waiting = [entry for entry in self._waiting if entry[2] is not job]

    def _wait(self, job: Job) -> None:
        insort(self._waiting, (job.due, next(self._numbers), job))

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

    def _overloaded(self, message: str) -> Overloaded:
        backlog = sum(each.seconds_to(0) for _, _, each in self._waiting) / self._workers
        return Overloaded(f"{message}; allow more time, or try again later.", max(backlog, MIN_SECONDS))

    def _late(self, now: float, exit: int, *, new_job: Job | None = None, deeper_job: Job | None = None) -> set[Job]:
        """Return the waiting requests that would end late, each answered by `exit` or the nearest that it allows.

        `new_job` waits too. `deeper_job`, which runs, first goes on to `exit`: then only the first late request is
        returned, and, where `deeper_job` has a deadline, one without that would wait longer than PATIENCE is late too.
        """
        free = [now] * (self._workers - len(self._running))
        for job in self._running:
            if job is deeper_job:
                free.append(now + job.seconds_to(exit))
            else:
                free.append(max(now, job.answer_at))
        heapq.heapify(free)
        queue = self._waiting
        if new_job is not None:
            queue = [*queue]
            insort(queue, (new_job.due, next(self._numbers), new_job))
        patience = PATIENCE if deeper_job is not None and deeper_job.due < math.inf else math.inf
        late: set[Job] = set()
        cache: dict[tuple[int, int, int, int], float] = {}  # similar requests take equally long
        for due, _, job in queue:
            if due == math.inf == patience:
                break  # all further requests have no deadline either
            key = (id(job.bundle), job.size, job.depth, job.deepest * (-1 if job.is_fixed else 1))
            if (seconds := cache.get(key)) is None:
                seconds = cache[key] = job.seconds_to(exit)
            start = heapq.heappop(free)
            end = start + seconds
            heapq.heappush(free, end)
            if due == math.inf:
                is_late = start > job.arrived + patience
            else:
                slack = min(job.bundle.timing.slack, MAX_SLACK * (due - job.arrived))
                is_late = not job.is_fixed and end + slack > due
            if is_late:
                late.add(job)
                if deeper_job is not None:
                    break
        return late
