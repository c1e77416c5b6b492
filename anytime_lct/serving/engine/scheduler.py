"""Who runs next, and how deep: earliest deadline first, everyone as deep as all can go in time.

    waiting, by deadline   [a b c d ..]  -> admitted only if it, and all who were in time before, will end in time
                            |
    workers                 a: group 1 | group 2 | ..    behind each group: may it go deeper?

Behind a group a request goes deeper only if its own deadline allows it and if, after that, all who wait could go as
deep and still end in time. So under load exits get shallower for all alike, and nobody late. It yields to one whose
deadline is earlier. Requests without a deadline come last, but not never: for one that has waited longer than
`PATIENCE`, those with a deadline get shallower. Time is an argument everywhere: a test needs no clock.
"""

from __future__ import annotations

import heapq
import itertools
import math
from bisect import insort

from anytime_lct.exits.budget import show_seconds
from anytime_lct.runtime import deadline
from anytime_lct.runtime.deadline import MOST_SLACK, next_exit
from anytime_lct.runtime.walk import Order
from anytime_lct.serving.engine.job import Job
from anytime_lct.serving.request import Overloaded

MOST_WAITING = 1024
SOON = 0.001
PATIENCE = 1.0  # seconds


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

        Nor is it admitted where it would make one late that was admitted before and is not late without it. One of the
        mode "fixed" asks for no promise and is given none; it is refused only where too many wait.
        """
        if len(self._waiting) >= MOST_WAITING:
            raise Overloaded(f"Expected fewer than {MOST_WAITING} waiting requests; try again later.", 1.0)
        if not job.is_fixed:
            late = self._late(now, 0, joining=job)
            if job in late:
                raise self._overloaded(
                    f"Expected {show_seconds(job.seconds_to(0))} for exit {job.first} behind the requests before it, "
                    f"got {show_seconds(max(SOON, job.due - now))} until the deadline"
                )
            if late and not late <= self._late(now, 0):
                raise self._overloaded("Expected time for one more request, got others that it would make late")
        self._wait(job)

    def next(self, now: float) -> Job | None:
        """Take the waiting request with the earliest deadline; it counts as running from now on."""
        if not self._waiting:
            return None
        job = self._waiting.pop(0)[2]
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
            if self._late(now + on_the_way, exit, deepening=job):
                return self._stop(job, "load", now)
        return self._go(job, order, now + on_the_way)

    def put_back(self, job: Job) -> None:
        """Let a request that yielded wait again; what it has run stays run."""
        self._running.remove(job)
        self._wait(job)

    def done(self, job: Job) -> None:
        """Forget a request that was answered while it ran."""
        self._running.remove(job)

    def drop(self, job: Job) -> None:
        """Forget a request that waits, if it does: it was answered meanwhile, or nobody wants it any more."""
        self._waiting = [entry for entry in self._waiting if entry[2] is not job]

    def _wait(self, job: Job) -> None:
        insort(self._waiting, (job.due, next(self._numbers), job))

    def _go(self, job: Job, order: Order, now: float) -> Order:
        job.until = now + job.seconds_to(next_exit(job.served.session.served, job.depth))
        return order

    def _stop(self, job: Job, order: Order, now: float) -> Order:
        job.until = now + job.seconds_to(0)
        return order

    def _overloaded(self, words: str) -> Overloaded:
        backlog = sum(each.seconds_to(0) for _, _, each in self._waiting) / self._workers
        return Overloaded(f"{words}; allow more, or try again later.", max(backlog, SOON))

    def _late(self, now: float, exit: int, *, joining: Job | None = None, deepening: Job | None = None) -> set[Job]:
        """Return those of the waiting who would end late, each by `exit` or as near to it as it may.

        `joining` waits too; `deepening`, which runs, first goes on to `exit`: it hears of the first that is late, and,
        where it has a deadline, of those without one that would wait longer than PATIENCE.
        """
        free = [now] * (self._workers - len(self._running))
        for job in self._running:
            if job is deepening:
                free.append(now + job.seconds_to(exit))
            else:
                free.append(max(now, job.until))
        heapq.heapify(free)
        queue = self._waiting
        if joining is not None:
            queue = [*queue]
            insort(queue, (joining.due, next(self._numbers), joining))
        patience = PATIENCE if deepening is not None and deepening.due < math.inf else math.inf
        late: set[Job] = set()
        known: dict[tuple[int, int, int, int], float] = {}  # those alike take as long
        for due, _, job in queue:
            if due == math.inf == patience:
                break  # nor has anyone behind it a deadline
            kind = (id(job.served), job.size, job.depth, job.most * (-1 if job.is_fixed else 1))
            if (seconds := known.get(kind)) is None:
                seconds = known[kind] = job.seconds_to(exit)
            begin = heapq.heappop(free)
            end = begin + seconds
            heapq.heappush(free, end)
            if due == math.inf:
                is_late = begin > job.arrived + patience
            else:
                slack = min(job.served.timing.slack, MOST_SLACK * (due - job.arrived))
                is_late = not job.is_fixed and end + slack > due
            if is_late:
                late.add(job)
                if deepening is not None:
                    break
        return late
