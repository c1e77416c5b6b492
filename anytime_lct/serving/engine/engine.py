"""Requests in, answers out: threads that run what the scheduler says, and a watchdog that keeps the deadline.

submit -> scheduler -> worker: group 1 | ask | group 2 | ask | .. -> future
                       watchdog: due, and a group still runs -> the last answer -> future
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, InvalidStateError
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from anytime_lct.errors import LCTError
from anytime_lct.exits.budget import Ask
from anytime_lct.runtime.answer import Answer
from anytime_lct.runtime.timing import FORGET
from anytime_lct.runtime.walk import steps
from anytime_lct.serving.engine.job import Job, Served
from anytime_lct.serving.engine.scheduler import Scheduler
from anytime_lct.serving.request import Overloaded, Reply

HANDOVER = 0.0003


class Engine:
    """Answers requests of any number of served models with `threads` threads, one request on each.

    >>> engine = Engine(threads=2)                                                                # doctest: +SKIP
    >>> engine.submit(served, x, Ask(timeout=0.02), time.monotonic()).result().logits             # doctest: +SKIP
    """

    def __init__(self, threads: int = 1) -> None:
        if threads < 1:
            raise LCTError(f"Expected one compute thread at least, got {threads}; give more.")
        self._scheduler = Scheduler(threads)
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._watch = threading.Condition(self._lock)
        self._idle = threading.Condition(self._lock)
        self._is_open, self._is_running = True, True
        self._in_hand: set[Job] = set()  # those that could be answered in need, running or waiting to go on
        self._handover = HANDOVER
        targets = [self._run_worker] * threads + [self._run_watchdog]
        self._threads = [threading.Thread(target=target, name=target.__name__, daemon=True) for target in targets]
        for thread in self._threads:
            thread.start()

    def submit(self, served: Served, x: NDArray[Any], ask: Ask, arrived: float) -> Future[Reply]:
        """Take a request; `x` is as `session.check` returns it, `arrived` a reading of time.monotonic().

        Raises Overloaded where it could not be answered in time by any exit, and NothingFitsError and BudgetError
        where its budget fits none. Cancelling the future drops the request, if it has not begun.
        """
        job = Job(served, x, ask, arrived, served.session.plan(ask))
        with self._lock:
            if not self._is_open:
                raise Overloaded("The server is shutting down and takes no more requests; ask another.", 1.0)
            if ask.timeout is not None:
                job.due = arrived + ask.timeout - min(self._handover, ask.timeout / 4)
            self._scheduler.admit(job, time.monotonic())
            self._work.notify()
        job.future.add_done_callback(lambda future: self._drop(job) if future.cancelled() else None)
        return job.future

    def _drop(self, job: Job) -> None:
        """Let a cancelled request wait no longer."""
        with self._lock:
            self._scheduler.drop(job)
            if self._scheduler.is_idle:
                self._idle.notify_all()

    def sent(self, reply: Reply) -> None:
        """Be told that a reply has just been handed over: what passed since it was ready is allowed for from now on."""
        seen = min(time.monotonic() - reply.finished, 2.0 * self._handover)  # one lost time slice is none
        self._handover = max(HANDOVER, self._handover * FORGET, seen)

    def queue_length(self) -> int:
        """Return how many requests wait."""
        return len(self._scheduler)

    def drain(self, seconds: float) -> bool:
        """Take no more requests, and wait until all admitted ones are answered; tell whether they were in time."""
        with self._lock:
            self._is_open = False
            return self._idle.wait_for(lambda: self._scheduler.is_idle, seconds)

    def close(self) -> None:
        """End the threads; what still waits is cancelled."""
        waiting: list[Job] = []
        with self._lock:
            self._is_open = self._is_running = False
            while (job := self._scheduler.next(0.0)) is not None:
                self._scheduler.done(job)
                waiting.append(job)
            self._work.notify_all()
            self._watch.notify_all()
        for job in waiting:
            if not job.future.cancel():  # it has begun, and yielded
                _settle(job, job.last or Overloaded("The server shut down before it could answer; ask another.", 1.0))
        for thread in self._threads:
            thread.join()

    def _run_worker(self) -> None:
        while True:
            free = time.monotonic()
            with self._lock:
                while self._is_running and not len(self._scheduler):
                    self._work.wait()
                    free = time.monotonic()
                job = self._scheduler.next(time.monotonic()) if self._is_running else None
            if job is None:
                return
            in_parts = 0.0 if job.walk is None else -job.walk.seconds
            self._run(job)
            if job.walk is not None:
                in_parts += job.walk.seconds
                job.served.timing.saw_overhead(time.monotonic() - free - in_parts)

    def _run(self, job: Job) -> None:
        """Take a request as far as the scheduler lets it, and answer it, unless it has to yield."""
        resumed = time.monotonic()
        try:
            answer = self._go_through(job)
        except Exception as error:  # a graph that fails, memory: the request's own, the worker goes on
            answer = error
        job.computed += time.monotonic() - resumed
        with self._lock:
            if answer is None:
                self._scheduler.put_back(job)
                self._work.notify()
                return
            self._scheduler.done(job)
            self._in_hand.discard(job)
            if self._scheduler.is_idle:
                self._idle.notify_all()
        if job.walk is not None:
            job.walk.close()
        _settle(job, answer)

    def _go_through(self, job: Job) -> Answer | None:
        """Run groups, and ask behind each; None where another request goes first."""
        session = job.served.session
        if job.taken is None:
            if not job.future.set_running_or_notify_cancel():
                raise InvalidStateError("cancelled")
            job.began = time.monotonic()
            job.walk = session.walk(job.x)
            job.taken = steps(job.walk, job.most, job.plan.stopping, job.plan.ended)
            begin = True
        else:
            begin = False
        assert job.walk is not None
        try:
            if begin:
                next(job.taken)
            while True:
                if job.future.done():  # the watchdog was quicker: nobody waits for more
                    return job.last
                with self._lock:
                    order = self._scheduler.order(job, time.monotonic())
                    if order is None:
                        return None
                if order == "answer and deeper":
                    job.walk.answer()
                    self._keep_in_need(job)
                job.taken.send("deeper" if order == "answer and deeper" else order)
        except StopIteration as end:
            return job.walk.so_far(end.value)

    def _keep_in_need(self, job: Job) -> None:
        """Let the watchdog have what every sample was told so far."""
        assert job.walk is not None
        if job.walk.is_answered:
            answer = job.walk.so_far("deadline")
            with self._lock:
                job.last = replace(answer, logits=answer.logits.copy())
                self._in_hand.add(job)
                self._watch.notify()

    def _run_watchdog(self) -> None:
        """Answer with what there is when a request is due, and a group still runs or others go first."""
        with self._lock:
            while self._is_running:
                now = time.monotonic()
                for job in [job for job in self._in_hand if job.due <= now]:
                    self._in_hand.remove(job)
                    runs = job in self._scheduler.running
                    if runs:
                        job.computed = now - job.began
                    _settle(job, job.last)
                    if not runs:  # it has yielded, and now need not go on
                        self._scheduler.drop(job)
                        if job.walk is not None:
                            job.walk.close()
                        if self._scheduler.is_idle:
                            self._idle.notify_all()
                soonest = min((job.due - now for job in self._in_hand), default=threading.TIMEOUT_MAX)
                self._watch.wait(min(soonest, threading.TIMEOUT_MAX))


def _settle(job: Job, answer: Answer | Exception | None) -> None:
    """Give the answer to who waits for it, once."""
    try:
        if not isinstance(answer, Answer):
            if answer is not None and not job.future.cancelled():
                job.future.set_exception(answer)
            return
        finished = time.monotonic()
        due = None if job.ask.timeout is None else job.arrived + job.ask.timeout
        job.future.set_result(
            Reply(
                answer,
                queued=max(0.0, job.began - job.arrived),
                computed=job.computed,
                on_time=None if due is None else finished <= due,
                finished=finished,
            )
        )
    except InvalidStateError:  # the watchdog and the worker were ready at once: one answer is enough
        pass
