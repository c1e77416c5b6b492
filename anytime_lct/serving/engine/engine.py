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
from anytime_lct.exits.budget import Ask, StopReason
from anytime_lct.runtime.answer import Answer
from anytime_lct.runtime.timing import DECAY
from anytime_lct.runtime.walk import Walk, steps
from anytime_lct.serving.engine.job import Job, ServedBundle, batch_size
from anytime_lct.serving.engine.joining import parts
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
            if job.walk is None:
                job.future.cancel()
            else:  # it has yielded
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
        job.resumed = time.monotonic()
        try:
            answers = self._advance(job)
        except Exception as error:  # a graph that fails, or no memory: the request fails, the worker goes on
            answers = error
        job.computed += time.monotonic() - job.resumed
        with self._lock:
            if answers is None:
                self._scheduler.put_back(job)
                self._work.notify()
                return
            self._scheduler.done(job)
            self._with_fallback.discard(job)
            if self._scheduler.is_idle:
                self._idle.notify_all()
        if job.walk is not None:
            job.walk.close()
        _settle(job, answers)

    def _advance(self, job: Job) -> tuple[Answer, ...] | None:
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
                if job.members and job.plan.stopping is not None:
                    _settle_final(job, job.walk)
                with self._lock:
                    order = self._scheduler.order(job, time.monotonic())
                    if order is None:
                        return None
                if order == "answer and deeper":
                    job.walk.answer()
                    self._store_fallback(job)
                job.steps.send("deeper" if order == "answer and deeper" else order)
        except StopIteration as end:
            return _answers(job, job.walk, end.value)

    def _store_fallback(self, job: Job) -> None:
        """Give the watchdog the answers so far, if every sample has one."""
        assert job.walk is not None
        if job.walk.is_answered:
            answers = _answers(job, job.walk, "deadline")
            with self._lock:
                job.fallback = tuple(replace(answer, logits=answer.logits.copy()) for answer in answers)
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


def _answers(job: Job, walk: Walk, stopped: StopReason) -> tuple[Answer, ...]:
    """Return the answer of each of the job's requests: its rows."""
    return tuple(walk.answer_so_far(stopped, samples) for _, samples in parts(job))


def _settle_final(job: Job, walk: Walk) -> None:
    """Answer the requests of a batch that has not ended of which no sample is on the way any more."""
    for request, samples in parts(job):
        if not request.future.done() and walk.is_final(samples):
            computed = job.computed + time.monotonic() - job.resumed
            _set(request, job.started, computed, walk.answer_so_far("confident", samples))


def _settle(job: Job, outcome: tuple[Answer, ...] | Exception) -> None:
    """Set the results of the futures of a job's requests, each once; of a batch, its own shows that it is answered."""
    for k, request in enumerate(job.requests):
        _set(request, job.started, job.computed, outcome if isinstance(outcome, Exception) else outcome[k])
    if job.members:
        job.future.cancel()


def _set(request: Job, started: float, computed: float, outcome: Answer | Exception) -> None:
    try:
        if isinstance(outcome, Exception):
            if not request.future.cancelled():
                request.future.set_exception(outcome)
            return
        finished = time.monotonic()
        due = None if request.ask.timeout is None else request.arrived + request.ask.timeout
        request.future.set_result(
            Reply(
                outcome,
                queued=max(0.0, started - request.arrived),
                computed=computed,
                on_time=None if due is None else finished <= due,
                finished=finished,
            )
        )
    except InvalidStateError:  # the watchdog and the worker finished at the same time, or the batch before its end
        pass
