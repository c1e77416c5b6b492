"""Requests in, answers out: worker threads that follow the scheduler, and a watchdog that keeps the deadlines.

submit -> scheduler -> worker: group 1 | order | group 2 | order | .. -> future
                       watchdog: due, and a group still runs -> the fallback answer -> future

A short request without a deadline is answered in the thread that brings it, if nothing waits.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, InvalidStateError
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anytime_lct.errors import LCTError
from anytime_lct.exits.budget import Ask
from anytime_lct.runtime.answer import Answer
from anytime_lct.runtime.timing import DECAY
from anytime_lct.runtime.walk import steps
from anytime_lct.serving.engine.job import Job, ServedBundle, batch_size
from anytime_lct.serving.engine.joining import shares
from anytime_lct.serving.engine.scheduler import Scheduler
from anytime_lct.serving.request import Overloaded, Reply

# The least seconds allowed for a finished reply to reach its client.
MIN_HANDOVER = 0.0003


class Engine:
    """Answers requests for any number of bundles with `threads` threads, one request on each.

    >>> engine = Engine(threads=2)  # doctest: +SKIP
    >>> engine.submit(bundle, x, Ask(timeout=0.02), time.monotonic()).result().answer.logits  # doctest: +SKIP
    """

    def __init__(self, threads: int = 1) -> None:
        if threads < 1:
            raise LCTError(f"Expected at least one compute thread, got {threads}; choose more.")
        self._scheduler = Scheduler(threads)
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._watch = threading.Condition(self._lock)
        self._idle = threading.Condition(self._lock)
        self._is_open, self._is_running = True, True
        self._with_fallback: set[Job] = set()  # running, or waiting to go on
        self._handover = MIN_HANDOVER
        targets = [self._run_worker] * threads + [self._run_watchdog]
        self._threads = [threading.Thread(target=target, name=target.__name__, daemon=True) for target in targets]
        for thread in self._threads:
            thread.start()

    def submit(self, bundle: ServedBundle, x: NDArray[Any], ask: Ask, arrived: float) -> Future[Reply]:
        """Admit a request; `x` is as `session.check` returns it, `arrived` a value of time.monotonic().

        Raises Overloaded where no exit could answer in time, and NothingFitsError and BudgetError where no exit fits
        the budget. Cancelling the future drops the request, if it has not started.
        """
        job = Job(bundle, x, ask, arrived, bundle.session.plan(ask))
        with self._lock:
            self._check_open()
            if ask.timeout is not None:
                job.due = arrived + ask.timeout - min(self._handover, ask.timeout / 4)
            self._scheduler.admit(job, time.monotonic())
            self._work.notify()
        job.future.add_done_callback(lambda future: self._drop(job) if future.cancelled() else None)
        return job.future

    def answer_here(self, bundle: ServedBundle, x: NDArray[Any], ask: Ask, arrived: float) -> Reply | None:
        """Answer a request in this thread, or return None where it should be submitted instead.

        It has no deadline, takes no longer than handing it to a worker, and nothing waits. Raises what `submit` does,
        and BundleError.
        """
        if ask.timeout is not None:
            return None
        plan = bundle.session.plan(ask)
        if not bundle.is_short(plan.deepest, batch_size(x, bundle.manifest)):
            return None
        with self._lock:
            self._check_open()
            if not self._scheduler.is_free:
                return None
        started = time.monotonic()
        answer = bundle.run(x, plan)
        finished = time.monotonic()
        return Reply(answer, max(0.0, started - arrived), finished - started, None, finished)

    def _check_open(self) -> None:
        if not self._is_open:
            raise Overloaded("The server is shutting down and takes no more requests; use another server.", 1.0)

    def _drop(self, job: Job) -> None:
        """Remove a cancelled request from the queue."""
        with self._lock:
            self._scheduler.drop(job)
            if self._scheduler.is_idle:
                self._idle.notify_all()

    def record_sent(self, reply: Reply) -> None:
        """Record that a reply has just been written: later requests allow for the time since it was ready."""
        observed = min(time.monotonic() - reply.finished, 2.0 * self._handover)  # one lost time slice counts little
        self._handover = max(MIN_HANDOVER, self._handover * DECAY, observed)

    def queue_length(self) -> int:
        """Return the number of requests that wait."""
        return len(self._scheduler)

    def hanging(self) -> int:
        """Return the number of requests that hang in a worker thread, which nothing can end but its process."""
        with self._lock:
            return self._scheduler.hanging(time.monotonic())

    def drain(self, seconds: float) -> bool:
        """Admit no more requests, and wait until the admitted ones are answered; return whether they are."""
        with self._lock:
            self._is_open = False
            return self._idle.wait_for(lambda: self._scheduler.is_idle, seconds)

    def close(self) -> None:
        """End the threads, and cancel the requests that still wait."""
        waiting: list[Job] = []
        with self._lock:
            self._is_open = self._is_running = False
            while (job := self._scheduler.next(0.0)) is not None:
                self._scheduler.done(job)
                waiting += job.requests if job.walk is None else [job]
            self._work.notify_all()
            self._watch.notify_all()
        for job in waiting:
            if not job.future.cancel():  # it has started, and yielded
                error = Overloaded("The server shut down before it could answer; use another server.", 1.0)
                _settle(job, job.fallback or error)
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
            seconds_before = 0.0 if job.walk is None else job.walk.seconds
            self._run(job)
            if job.walk is not None:
                in_parts = job.walk.seconds - seconds_before
                job.bundle.timing.observe_overhead(time.monotonic() - free - in_parts)

    def _run(self, job: Job) -> None:
        """Run a request as far as the scheduler orders, and answer it, unless it has to yield."""
        resumed = time.monotonic()
        try:
            answer = self._advance(job)
        except Exception as error:  # a graph that fails, or no memory: the request fails, the worker goes on
            answer = error
        job.computed += time.monotonic() - resumed
        with self._lock:
            if answer is None:
                self._scheduler.put_back(job)
                self._work.notify()
                return
            self._scheduler.done(job)
            self._with_fallback.discard(job)
            if self._scheduler.is_idle:
                self._idle.notify_all()
        if job.walk is not None:
            job.walk.close()
        _settle(job, answer)

    def _advance(self, job: Job) -> Answer | None:
        """Run groups and follow the order behind each; None where another request goes first."""
        is_new = job.steps is None
        if job.steps is None:
            begun = tuple(each for each in job.requests if each.future.set_running_or_notify_cancel())
            if not begun:
                raise InvalidStateError("cancelled")
            if job.members:
                job.members = begun
            job.started = time.monotonic()
            job.walk = job.bundle.session.walk(np.concatenate([each.x for each in begun]) if job.members else job.x)
            job.steps = steps(job.walk, job.deepest, job.plan.stopping, job.plan.stop_reason)
        assert job.walk is not None
        try:
            if is_new:
                next(job.steps)
            while True:
                if job.future.done():  # the watchdog has answered
                    return job.fallback
                with self._lock:
                    order = self._scheduler.order(job, time.monotonic())
                    if order is None:
                        return None
                if order == "answer and deeper":
                    job.walk.answer()
                    self._store_fallback(job)
                job.steps.send("deeper" if order == "answer and deeper" else order)
        except StopIteration as end:
            return job.walk.answer_so_far(end.value)

    def _store_fallback(self, job: Job) -> None:
        """Give the watchdog the answers so far, if every sample has one."""
        assert job.walk is not None
        if job.walk.is_answered:
            answer = job.walk.answer_so_far("deadline")
            with self._lock:
                job.fallback = replace(answer, logits=answer.logits.copy())
                self._with_fallback.add(job)
                self._watch.notify()

    def _run_watchdog(self) -> None:
        """Give the fallback when a request is due while a group still runs or others go first."""
        with self._lock:
            while self._is_running:
                now = time.monotonic()
                for job in [job for job in self._with_fallback if job.due <= now]:
                    self._with_fallback.remove(job)
                    is_running = job in self._scheduler.running
                    if is_running:
                        job.computed = now - job.started
                    _settle(job, job.fallback)
                    if not is_running:  # it has yielded, and need not go on
                        self._scheduler.drop(job)
                        if job.walk is not None:
                            job.walk.close()
                        if self._scheduler.is_idle:
                            self._idle.notify_all()
                soonest = min((job.due - now for job in self._with_fallback), default=threading.TIMEOUT_MAX)
                self._watch.wait(min(soonest, threading.TIMEOUT_MAX))


def _settle(job: Job, answer: Answer | Exception | None) -> None:
    """Set the result of a job's future, once; of a batch, those of its members too, each its share."""
    if job.members and not job.future.done():
        parts = shares(answer, job.members) if isinstance(answer, Answer) else [answer] * len(job.members)
        for member, part in zip(job.members, parts, strict=True):
            member.started, member.computed = job.started, job.computed
            _settle(member, part)
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
                queued=max(0.0, job.started - job.arrived),
                computed=job.computed,
                on_time=None if due is None else finished <= due,
                finished=finished,
            )
        )
    except InvalidStateError:  # the watchdog and the worker finished at the same time
        pass
