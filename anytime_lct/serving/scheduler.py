"""Who runs next, and how deep: earliest deadline first, everyone as deep as all can go in time.

    waiting, by deadline   [a b c d ..]  -> admitted only if all, each by its first exit, end in time
                            |
    workers                 a: group 1 | group 2 | ..    behind each group: may it go deeper?

Behind a group a request goes deeper only if its own deadline allows it and if, after that, all who wait could go as
deep and still end in time. So under load exits get shallower for all alike, and nobody late. It yields to one whose
deadline is earlier. Time is an argument everywhere: a test needs no clock.
"""

from __future__ import annotations

import heapq
import itertools
import math

from anytime_lct.budget import show_seconds
from anytime_lct.runtime import deadline
from anytime_lct.runtime.deadline import MOST_SLACK, next_exit
from anytime_lct.runtime.walk import Order
from anytime_lct.serving.job import Job
from anytime_lct.serving.request import Overloaded

MOST_WAITING = 1024
SOON = 0.001


class Scheduler:
    """The waiting and the running requests of `workers` workers; not safe by itself, its owner holds a lock.

    >>> scheduler = Scheduler(workers=1)          # doctest: +SKIP
    >>> scheduler.admit(job, now=time.monotonic())  # doctest: +SKIP
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._waiting: list[tuple[float, int, Job]] = []
        self._numbers = itertools.count()
        self._running: list[Job] = []

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    def running(self) -> list[Job]:
        return self._running

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self._running

    def admit(self, job: Job, now: float) -> None:
        """Let a request wait for its turn, or raise Overloaded at once: when not even its first exit is in time.

        Nor is it admitted where it would make one late that was admitted before. One of the mode "fixed" asks for no
        promise and is given none; it is refused only where too many wait.
        """
        if len(self._waiting) >= MOST_WAITING:
            raise Overloaded(f"Expected fewer than {MOST_WAITING} waiting requests; try again later.", 1.0)
        if not job.is_fixed and not self._all_in_time(now, 0, joining=job):
            backlog = sum(each.seconds_to(0) for _, _, each in self._waiting) / self._workers
            raise Overloaded(
                f"Expected {show_seconds(job.seconds_to(0))} for exit {job.first} behind the requests before it, got "
                f"{show_seconds(max(SOON, job.due - now))} until the deadline; allow more, or try again later.",
                max(backlog, SOON),
            )
        self._wait(job)

    def next(self, now: float) -> Job | None:
        """Take the waiting request with the earliest deadline; it counts as running from now on."""
        if not self._waiting:
            return None
        job = heapq.heappop(self._waiting)[2]
        job.until = now + job.seconds_to(0)
        self._running.append(job)
        return job

    def order(self, job: Job, now: float) -> Order | None:
        """Decide behind a group of a running request; None: another has the earlier deadline, yield to it."""
        if job.is_fixed:
            return self._go(job, "deeper", now)
        assert job.walk is not None
        order: Order = "deeper"
        on_the_way = 0.0
        if job.due < math.inf:
            left = job.due - now - job.served.timing.overhead
            order = deadline.order(job.served.timing, job.walk, left, job.due - job.arrived)
            if order in ("deadline", "late"):
                return self._stop(job, order, now)
            if order == "answer and deeper":
                on_the_way = job.served.timing.critic(job.depth, job.size)
        if self._waiting:
            if self._waiting[0][0] < job.due:
                return None
            exit = next_exit(job.walk.served, job.depth)
            if not self._all_in_time(now + on_the_way, exit, deepening=job):
                return self._stop(job, "load", now)
        return self._go(job, order, now + on_the_way)

    def put_back(self, job: Job) -> None:
        """Let a request that yielded wait again; what it has run stays run."""
        self._running.remove(job)
        self._wait(job)

    def done(self, job: Job) -> None:
        """Forget a request that was answered."""
        self._running.remove(job)

    def _wait(self, job: Job) -> None:
        heapq.heappush(self._waiting, (job.due, next(self._numbers), job))

    def _go(self, job: Job, order: Order, now: float) -> Order:
        job.until = now + job.seconds_to(next_exit(job.served.session.served, job.depth))
        return order

    def _stop(self, job: Job, order: Order, now: float) -> Order:
        job.until = now + job.seconds_to(0)
        return order

    def _all_in_time(self, now: float, exit: int, *, joining: Job | None = None, deepening: Job | None = None) -> bool:
        """Tell whether all who wait would end in time, each by `exit` or as near to it as it may.

        `joining` waits too; `deepening`, which runs, first goes on to `exit`.
        """
        free = [now] * (self._workers - len(self._running))
        for job in self._running:
            if job is deepening:
                free.append(now + job.seconds_to(exit))
            else:
                free.append(max(now, job.until))
        heapq.heapify(free)
        queue = sorted((due, number, job) for due, number, job in self._waiting)
        if joining is not None:
            queue.append((joining.due, next(self._numbers), joining))
            queue.sort()
        for due, _, job in queue:
            seconds = job.seconds_to(exit)
            end = heapq.heappop(free) + seconds
            heapq.heappush(free, end)
            if due < math.inf and not job.is_fixed:
                slack = min(job.served.timing.slack, MOST_SLACK * (due - job.arrived))
                if end + slack > due:
                    return False
        return True
