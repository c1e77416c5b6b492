"""The scheduler against a simulated machine: time is a number here, and every part takes what was calibrated."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
from test_policy import made_timings

from anytime_lct.exits.budget import Ask
from anytime_lct.runtime.session import Plan
from anytime_lct.runtime.timing import Timing
from anytime_lct.serving.engine.job import Job
from anytime_lct.serving.engine.scheduler import MAX_WAITING, Scheduler
from anytime_lct.serving.request import Overloaded

# Exits of 2, 4 and 8 ms, critics included; a capacity of 125 a second at full depth, of 500 at exit 1.
GROUPS, CRITICS = (0.0019, 0.002, 0.0041), {1: 0.0001, 2: 0.0001}
FULL, FIRST = 0.008, 0.002


class Stand:
    """What the scheduler sees of a batch on its way."""

    served = (1, 2, 3)

    def __init__(self, size: int) -> None:
        self.size, self.depth, self.is_answered, self.is_answered_here = size, 0, False, False


def model(served=(1, 2, 3), groups=GROUPS, critics=CRITICS):
    timing = Timing(made_timings(groups, critics))
    timing.slack = 0.0
    return SimpleNamespace(
        session=SimpleNamespace(served=served),
        timing=timing,
        manifest=SimpleNamespace(row=SimpleNamespace(is_text=False)),
        batches=(),
    )


def job(at: float, timeout: float | None, most: int = 3, mode="anytime", served=None) -> Job:
    queued = Job(served or MODEL, np.zeros((1, 1)), Ask(timeout=timeout, mode=mode), at, Plan(most, None, "budget"))
    queued.due = math.inf if timeout is None else at + timeout
    return queued


MODEL = model()


class Machine:
    """Runs jobs by a scheduler, as the engine does, on a clock of its own; notes when each ended, and by which exit."""

    def __init__(self, workers: int = 1) -> None:
        self.scheduler = Scheduler(workers)
        self.free = workers
        self.events: list[tuple[float, int, str, Job]] = []
        self.numbers = itertools.count()
        self.ended: dict[Job, tuple[float, int]] = {}
        self.shed: list[Job] = []
        self.begun: list[Job] = []

    def at(self, when: float, what: str, job: Job) -> None:
        heapq.heappush(self.events, (when, next(self.numbers), what, job))

    def run(self, jobs) -> Machine:
        for each in jobs:
            self.at(each.arrived, "arrives", each)
        while self.events:
            now, _, what, job = heapq.heappop(self.events)
            if what == "arrives":
                try:
                    self.scheduler.admit(job, now)
                except Overloaded as refused:
                    assert refused.retry_after > 0
                    self.shed.append(job)
            elif what in ("group", "judged"):
                if what == "group":
                    job.walk.depth += 1
                    job.walk.is_answered_here = False
                self.behind(job, now)
            else:
                self.scheduler.done(job)
                self.free += 1
                self.ended |= dict.fromkeys(job.requests, (now, job.walk.depth))
            while self.free and len(self.scheduler):
                self.free -= 1
                self.resume(self.scheduler.next(now), now)
        return self

    def resume(self, job: Job, now: float) -> None:
        if job.walk is None:
            self.begun += job.requests
            job.walk = Stand(job.size)
            self.at(now + job.bundle.timing.group(1, job.size), "group", job)
        else:
            self.behind(job, now)

    def behind(self, job: Job, now: float) -> None:
        timing, depth = job.bundle.timing, job.walk.depth
        critic = 0.0 if job.walk.is_answered_here else timing.critic(depth, job.size)
        if depth == job.deepest:
            self.at(now + critic, "answer", job)
            return
        order = self.scheduler.order(job, now) if depth in Stand.served else "deeper"
        if order is None:
            self.scheduler.put_back(job)
            self.free += 1
        elif order == "late" and job.walk.is_answered:
            self.at(now, "answer", job)
        elif order in ("deadline", "load", "late"):
            self.at(now + critic, "answer", job)
        else:
            if order == "answer and deeper":
                job.walk.is_answered = job.walk.is_answered_here = True
                now += critic
            self.at(now + timing.group(depth + 1, job.size), "group", job)


def poisson(rate: float, seconds: float, timeout: float, seed: int = 0, **keys):
    luck, now = random.Random(seed), 0.0
    while (now := now + luck.expovariate(rate)) < seconds:
        yield job(now, timeout, **keys)


def by(job: Job) -> int:
    """The exit that answers one request alone."""
    ((_, exit),) = Machine().run([job]).ended.values()
    return exit


def share_on_time(machine: Machine) -> float:
    return sum(end <= each.due + 1e-9 for each, (end, _) in machine.ended.items()) / len(machine.ended)


@pytest.mark.parametrize(("workers", "load"), [(1, 0.5), (1, 1.3), (1, 2.5), (1, 6.0), (2, 1.3), (2, 6.0)])
def test_nobody_admitted_is_late_at_any_load(workers, load):
    machine = Machine(workers).run(poisson(workers * load / FULL, 20, timeout=0.02))
    assert share_on_time(machine) == 1.0
    if load <= 1.3:
        assert len(machine.shed) <= 0.01 * len(machine.ended)
    exits = [exit for _, exit in machine.ended.values()]
    assert np.mean(exits) == pytest.approx({0.5: 3.0, 1.3: 2.7, 2.5: 1.5, 6.0: 1.0}[load], abs=0.35)
    if load == 6.0:  # shed no more than the machine could not have done anyhow
        assert len(machine.ended) >= 0.93 * 20 * workers / FIRST


def test_the_fixed_depth_collapses_where_the_anytime_one_does_not():
    machine = Machine().run(poisson(1.3 / FULL, 20, timeout=0.02, mode="fixed"))
    assert share_on_time(machine) < 0.05 and not machine.shed
    assert {exit for _, exit in machine.ended.values()} == {3}


def test_without_load_everyone_goes_as_deep_as_its_deadline_allows():
    for timeout, exit in ((0.020, 3), (0.0079, 2), (0.0021, 1), (None, 3)):
        assert by(job(0.0, timeout)) == exit


def test_no_exit_in_time_is_refused_at_once():
    machine = Machine().run([job(0.0, 0.0019)])
    assert len(machine.shed) == 1 and not machine.ended


def test_one_that_would_make_another_late_is_refused():
    first = [job(0.0, 0.0025), job(0.0, 0.0045), job(0.0001, 0.0042)]
    machine = Machine().run(first)
    assert machine.shed == first[2:] and share_on_time(machine) == 1.0


def test_earliest_deadline_first_and_those_without_last():
    jobs = [job(0.0, 1.0), job(0.001, None), job(0.001, 0.9), job(0.001, 0.5)]
    machine = Machine().run(jobs)
    assert machine.begun == [jobs[0], jobs[3], jobs[2], jobs[1]]


def test_a_long_request_yields_behind_its_group_to_an_earlier_deadline():
    long = job(0.0, None)
    urgent = job(0.0005, 0.0062)
    machine = Machine().run([long, urgent])
    assert machine.ended[urgent][0] == pytest.approx(0.0019 + 0.0041) and machine.ended[urgent][1] == 2
    assert machine.ended[long][1] == 3 and machine.ended[long][0] == pytest.approx(0.008 + 0.0041)


def test_all_alike_get_shallower_not_some_in_full_and_some_at_exit_1():
    jobs = [job(0.0, 0.020) for _ in range(4)]
    machine = Machine().run(jobs)
    assert [exit for _, exit in machine.ended.values()] == [2, 2, 2, 2]
    assert (
        sorted(exit for _, exit in machine.ended.values()) == [2, 2, 3, 3]
        or len({exit for _, exit in machine.ended.values()}) == 1
    )


def test_exits_that_are_not_served_are_no_place_to_stop():
    one = job(0.0, 0.0079, served=model(served=(2, 3)))
    Stand.served = (2, 3)
    try:
        assert by(one) == 2
        assert len(Machine().run([job(0.0, 0.0039, served=model(served=(2, 3)))]).shed) == 1
    finally:
        Stand.served = (1, 2, 3)


def test_the_budget_is_the_deepest_however_much_time_there_is():
    assert by(job(0.0, 1.0, most=2)) == 2


def test_a_queue_that_is_full_refuses():
    scheduler = Scheduler(1)
    for _ in range(MAX_WAITING):
        scheduler.admit(job(0.0, None), 0.0)
    with pytest.raises(Overloaded):
        scheduler.admit(job(0.0, None), 0.0)
    with pytest.raises(Overloaded):
        scheduler.admit(job(0.0, None, mode="fixed"), 0.0)


def test_what_requests_take_beside_their_parts_counts_for_everyone_in_the_queue():
    """Ten requests of 2 ms fit into 20.5 ms; with another millisecond each, six of 3 ms do."""
    for overhead, admitted in ((0.0, 10), (0.001, 6)):
        served = model()
        served.timing.overhead = overhead
        scheduler, taken = Scheduler(1), 0
        for _ in range(12):
            try:
                scheduler.admit(job(0.0, 0.0205, served=served), 0.0)
                taken += 1
            except Overloaded:
                pass
        assert taken == admitted


def test_one_that_is_late_anyhow_keeps_nobody_out():
    scheduler = Scheduler(1)
    for _ in range(2):
        scheduler.admit(job(0.0, 0.0045), 0.0)
    lost = 0.001  # the processor was away: the second is late now, whoever comes
    for newcomer in (job(lost, None), job(lost, 10.0), job(lost, 0.0065)):
        scheduler.admit(newcomer, lost)
    with pytest.raises(Overloaded, match="for exit 1 behind"):
        scheduler.admit(job(lost, 0.004), lost)


def test_one_that_would_make_another_late_is_told_so():
    scheduler = Scheduler(1)
    scheduler.admit(job(0.0, 0.0025), 0.0)
    with pytest.raises(Overloaded, match="make late"):
        scheduler.admit(job(0.0001, 0.0023), 0.0001)


@pytest.mark.parametrize("mode", ["anytime", "fixed"])
def test_requests_without_a_deadline_do_not_starve(mode):
    """Where those with a deadline would take all the machine for depth, they leave it what exit 1 does not need."""
    urgent = list(poisson(0.6 / FIRST, 20, timeout=0.02, seed=1))
    patient = [job(k / 10, None, mode=mode) for k in range(150)]
    machine = Machine().run([*urgent, *patient])
    waits = [machine.ended[each][0] - each.arrived for each in patient]
    assert max(waits) < 1.5 and {machine.ended[each][1] for each in patient} == {3}
    assert all(machine.ended[each][0] <= each.due + 1e-9 for each in urgent if each in machine.ended)
    assert len(machine.shed) < 0.02 * len(urgent)


def test_requests_without_a_deadline_make_nobody_shallow_among_themselves():
    machine = Machine().run([job(0.0, None) for _ in range(300)])  # the last waits 2.4 seconds
    assert {exit for _, exit in machine.ended.values()} == {3}


def test_who_is_dropped_waits_no_longer():
    scheduler = Scheduler(1)
    jobs = [job(0.0, 0.1 * k) for k in (3, 1, 2)]
    for each in jobs:
        scheduler.admit(each, 0.0)
    scheduler.drop(jobs[1])
    scheduler.drop(jobs[1])
    assert [scheduler.next(0.0) for _ in range(3)] == [jobs[2], jobs[0], None]


def test_of_requests_without_a_deadline_no_more_start_than_there_are_workers():
    """One that yielded goes on before another starts, so that few hold the tensors between their groups."""
    scheduler, patient = Scheduler(workers=1), [job(at, None) for at in (0.0, 0.1, 0.2)]
    for each in patient:
        scheduler.admit(each, 0.2)
    assert scheduler.next(0.3) is patient[0]
    for at in (0.4, 0.5):
        patient[0].walk = patient[0].walk or Stand(1)
        urgent = job(at, 1.0)
        scheduler.admit(urgent, at)
        assert scheduler.order(patient[0], at) is None
        scheduler.put_back(patient[0])
        assert scheduler.next(at) is urgent
        scheduler.done(urgent)
        assert scheduler.next(at) is patient[0]
