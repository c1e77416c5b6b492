"""Requests that join: on a simulated machine nobody is late because of it; in the engine each gets its own answer."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import Future, wait
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from bundles import write_image_bundle
from test_policy import images, same
from test_scheduler import CRITICS, FULL, GROUPS, Machine, job, poisson, share_on_time

from anytime_lct.exits.budget import Ask, Budget
from anytime_lct.runtime.chain import Chain
from anytime_lct.runtime.confidence import confidence
from anytime_lct.runtime.session import AnytimeSession
from anytime_lct.runtime.timing import Timing
from anytime_lct.runtime.timings import Times, Timings
from anytime_lct.serving.engine import job as jobs
from anytime_lct.serving.engine.engine import Engine
from anytime_lct.serving.engine.job import Job, ServedBundle
from anytime_lct.serving.engine.joining import sizes_to
from anytime_lct.serving.engine.scheduler import Scheduler
from anytime_lct.serving.request import Overloaded, Reply

SIZES = (1, 2, 4, 8)


def batched(grows: float = 0.1, groups=GROUPS, critics=CRITICS) -> Timings:
    """Times of which every further sample takes a share of the first's."""
    times = {
        size: Times(
            groups=tuple(same(s * (1 + grows * (size - 1))) for s in groups),
            critics={i: same(s * (1 + grows * (size - 1))) for i, s in critics.items()},
        )
        for size in SIZES
    }
    return Timings(bundle="", machine="", runtime="", threads=1, sizes=times)


def model(batches: tuple[int, ...] = SIZES[1:], grows: float = 0.1) -> SimpleNamespace:
    timing = Timing(batched(grows))
    timing.slack = 0.0
    session, manifest = SimpleNamespace(served=(1, 2, 3)), SimpleNamespace(row=SimpleNamespace(is_text=False))
    return SimpleNamespace(session=session, timing=timing, manifest=manifest, batches=batches)


def run(requests, served, workers: int = 1) -> Machine:
    arrivals = [job(each.arrived, each.ask.timeout, mode=each.ask.mode, served=served) for each in requests]
    return Machine(workers).run(arrivals)


def mean_exit(machine: Machine) -> float:
    return float(np.mean([exit for _, exit in machine.ended.values()]))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("load", [0.5, 0.9, 1.3, 2.5, 6.0])
def test_nobody_admitted_is_late_where_requests_join(workers: int, load: float):
    arrivals = list(poisson(workers * load / FULL, 1.5, timeout=0.02))
    alone, together = (run(arrivals, model(batches), workers) for batches in ((), SIZES[1:]))
    assert share_on_time(alone) == share_on_time(together) == 1.0
    assert len(together.shed) <= len(alone.shed)
    assert mean_exit(together) > mean_exit(alone) - 0.05


def test_no_request_is_shed_for_which_there_is_time_in_a_batch():
    """At 8 ms, 10 of these loads are 1,250 requests a second: alone 500 reach exit 1, in batches of 8 it is 2,350."""
    arrivals = list(poisson(10 / FULL, 1, timeout=0.02))
    alone, together = (run(arrivals, model(batches)) for batches in ((), SIZES[1:]))
    assert len(alone.shed) > 0.5 * len(arrivals) and share_on_time(together) == 1.0
    assert not together.shed and mean_exit(together) > 1.5


@pytest.mark.parametrize("workers", [1, 2])
def test_nobody_is_late_among_models_and_deadlines_of_all_kinds(workers: int):
    models = [model(), model(grows=0.4), model(batches=())]
    luck, now, arrivals = random.Random(4), 0.0, []  # a request that yields to another is not made late by it either
    while (now := now + luck.expovariate(6 * workers / FULL)) < 1:
        timeout = luck.choice((0.004, 0.01, 0.02, 0.02, 0.1, None))
        arrivals.append(job(now, timeout, most=luck.choice((2, 3, 3)), served=luck.choice(models)))
    machine = Machine(workers).run(arrivals)
    assert share_on_time(machine) == 1.0 and len(machine.shed) < 0.15 * len(arrivals)


class Confident(Machine):
    """Half of the samples stop at every exit before the last."""

    luck = random.Random(0)

    def behind(self, job: Job, now: float) -> None:
        walk = job.walk
        if job.depth == job.deepest or walk.is_answered_here:
            super().behind(job, now)
            return
        now += job.bundle.timing.critic(job.depth, job.size)
        walk.is_answered = walk.is_answered_here = True
        walk.size = sum(self.luck.random() < 0.5 for _ in range(walk.size))
        self.at(now, "judged" if walk.size else "answer", job)


@pytest.mark.parametrize("workers", [1, 2])
def test_nobody_is_late_where_samples_stop_early(workers: int):
    models = [model(), model(grows=0.4), model(batches=())]
    luck, arrivals = random.Random(1), list(poisson(6 * workers / FULL, 1, timeout=0.02, seed=1))
    machine = Confident(workers).run([job(each.arrived, 0.02, served=luck.choice(models)) for each in arrivals])
    assert share_on_time(machine) == 1.0 and len(machine.shed) < 0.15 * len(arrivals)


def test_one_joins_that_would_be_late_alone_and_is_shed_where_the_batch_would_be():
    """Behind 2 ms: one more alone ends at 4 ms and two at 6, but two in a batch at 4.2 and three at 4.4."""
    served, scheduler = model(), Scheduler(1)
    scheduler.admit(job(0.0, 0.02, served=served), 0.0)
    scheduler.next(0.0)
    pair = [job(0.0, 0.0043, served=served) for _ in range(2)]
    for each in pair:
        scheduler.admit(each, 0.0)
    with pytest.raises(Overloaded, match="for exit 1 behind"):
        scheduler.admit(job(0.0, 0.0043, served=served), 0.0)
    assert len(scheduler) == 2 and scheduler.next(0.002).members == tuple(pair)


def test_the_rest_of_a_batch_waits_when_one_is_dropped():
    served, scheduler = model(), Scheduler(1)
    jobs = [job(0.0, None, served=served) for _ in range(3)]
    for each in jobs:
        scheduler.admit(each, 0.0)
    scheduler.drop(jobs[0])
    scheduler.drop(jobs[0])
    assert len(scheduler) == 2
    for each in jobs:
        scheduler.drop(each)
    assert len(scheduler) == 0 and scheduler.next(0.0) is None


def test_deadlines_of_all_lengths_hold():
    arrivals = [
        each
        for seed, timeout in enumerate((0.004, 0.01, 0.02, 0.1))
        for each in poisson(0.6 / FULL, 3, timeout=timeout, seed=seed)
    ]
    machine = run(sorted(arrivals, key=lambda each: each.arrived), model())
    assert share_on_time(machine) == 1.0 and len(machine.shed) < 0.1 * len(arrivals)


@pytest.mark.parametrize("mode", ["anytime", "fixed"])
def test_a_full_queue_is_answered_in_a_fraction_of_the_time(mode: str):
    arrivals = [job(0.0, None, mode=mode) for _ in range(320)]
    alone, together = (run(arrivals, model(batches)) for batches in ((), SIZES[1:]))
    ends = [max(end for end, _ in machine.ended.values()) for machine in (alone, together)]
    assert ends[0] == pytest.approx(320 * FULL) and ends[1] < 0.23 * ends[0]  # 1.7 / 8, but for the first and last
    assert {exit for _, exit in together.ended.values()} == {3}


def test_one_of_another_kind_waits_for_one_batch_more_at_most():
    common, rare = model(), model(batches=())
    waits = []
    for batches in ((), SIZES[1:]):
        common.batches = batches
        crowd = [job(0.0, None, served=common) for _ in range(60)]
        other = job(0.0, None, served=rare)
        machine = Machine().run([*crowd[:20], other, *crowd[20:]])
        waits.append(machine.ended[other][0])
    assert waits[1] <= waits[0] + 1.7 * FULL


def test_only_those_alike_join():
    """The last of these alone joins the first: others are of another model, plan, shape, mode or deadline."""
    served = model()
    first = job(0.0, 0.05, served=served)
    others = [
        job(0.0, 0.06, served=model()),
        job(0.0, 0.06, most=2, served=served),
        job(0.0, 0.06, mode="fixed", served=served),
        job(0.0, None, served=served),
        job(0.0, 0.2, served=served),
        job(0.0, 0.06, served=served),
    ]
    shaped = job(0.0, 0.06, served=served)
    shaped.x = np.zeros((1, 2))
    scheduler = Scheduler(1)
    for each in (first, shaped, *others):
        scheduler.admit(each, 0.0)
    assert scheduler.next(0.0).members == (first, others[-1])
    assert len(scheduler) == 6


def test_a_batch_is_no_larger_than_the_deadlines_allow():
    """Alone 8 ms reach the end; two samples take 8.8 ms, eight 13.6 ms."""
    for timeout, members in ((0.0081, 0), (0.009, 2), (0.011, 4), (0.014, 8)):
        served = model()
        scheduler = Scheduler(1)
        scheduler.admit(job(0.0, timeout, served=served), 0.0)
        for _ in range(7):
            scheduler.admit(job(0.0, 2 * timeout, mode="anytime", served=served), 0.0)
        assert len(scheduler.next(0.0).members) == members


def test_sizes_that_do_not_pay_are_not_used():
    pairs = list(zip(SIZES, SIZES, strict=True))
    assert jobs.paying(Timing(batched(0.1)), 3, pairs) == (2, 4, 8)
    assert jobs.paying(Timing(batched(0.6)), 3, pairs) == (4, 8)
    assert jobs.paying(Timing(batched(0.9)), 3, pairs) == () == jobs.paying(Timing(batched()), 3, [(1, 1)])
    assert sizes_to(1) == (1,) and sizes_to(9) == SIZES


@pytest.fixture
def served(tmp_path: Path) -> ServedBundle:
    session = AnytimeSession(write_image_bundle(tmp_path / "tiny"))
    session.use_timings(batched(groups=(0.001, 0.002, 0.003), critics={1: 0.0001, 2: 0.0001}))
    return ServedBundle(session, sizes=SIZES)


@pytest.fixture
def held(served: ServedBundle, monkeypatch: pytest.MonkeyPatch):
    """An engine of one thread that runs a first request, until the gate opens; and the sizes of what runs then."""
    engine, gate, sizes, advance = Engine(1), threading.Event(), [], Chain.advance
    start = Chain.start

    def is_worker() -> bool:
        return threading.current_thread().name == "_run_worker"

    def waiting(chain: Chain) -> bool:
        if is_worker():
            gate.wait(10)
        return advance(chain)

    def started(chain: Chain, x: np.ndarray, depth: int = 0) -> None:
        if is_worker():
            sizes.append(len(x))
        start(chain, x, depth)

    monkeypatch.setattr(Chain, "advance", waiting)
    monkeypatch.setattr(Chain, "start", started)
    first = engine.submit(served, images(1), Ask(), time.monotonic())
    while not first.running():
        time.sleep(0.001)
    yield engine, gate, sizes
    gate.set()
    engine.close()


def test_each_gets_its_own_answer(served: ServedBundle, held):
    engine, gate, sizes = held
    assert served.batches == (2, 4, 8)
    inputs = [images(1 + (k == 1), seed=k) for k in range(7)]
    asks = [Ask(Budget(exit=2)) if k == 6 else Ask() for k in range(7)]
    futures = [engine.submit(served, x, ask, time.monotonic()) for x, ask in zip(inputs, asks, strict=True)]
    gate.set()
    for x, ask, future in zip(inputs, asks, futures, strict=True):
        reply, expected = future.result(10), served.session.run(x, ask)
        np.testing.assert_allclose(reply.answer.logits, expected.logits, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(reply.answer.exits, expected.exits)
        assert (reply.answer.flops, reply.answer.stopped) == (expected.flops, expected.stopped)
        assert reply.computed > 0 and reply.queued > 0
    assert sizes == [1, 7, 1]  # 1 + 2 + 1 + 1 + 1 + 1, and the one to exit 2


def test_each_stops_by_its_own_confidence_and_is_answered_then(served: ServedBundle, held, monkeypatch):
    """Requests of 1 and 2 images in one batch; the last group waits until all that stop before it are answered."""
    engine, gate, sizes = held
    inputs = [images(1 + (k == 1), seed=k) for k in range(7)]
    x = np.concatenate(inputs)
    sure = [confidence(answer.logits, temperature=1.0) for answer in served.session.stream(x)]
    ask = Ask(min_confidence=float(np.median(sure[:2])), timeout=60.0)
    futures = [engine.submit(served, each, ask, time.monotonic()) for each in inputs]
    whole, alone = served.session.run(x, ask), [served.session.run(each, ask) for each in inputs]
    early = [future for future, answer in zip(futures, alone, strict=True) if answer.exit < 3]
    assert 0 < len(early) < 7 and {1, 2, 3} == set(whole.exits)
    advance = Chain.advance

    def last(chain: Chain) -> bool:
        if chain.depth == 2 and threading.current_thread().name == "_run_worker":
            wait(early, 10)
        return advance(chain)

    monkeypatch.setattr(Chain, "advance", last)
    gate.set()
    rows = iter(whole.logits)
    for future, each in zip(futures, alone, strict=True):
        answer = future.result(5).answer
        np.testing.assert_array_equal(answer.logits, [next(rows) for _ in answer.logits])
        np.testing.assert_array_equal(answer.exits, each.exits)
        facts = (answer.exit, answer.exits_run, answer.flops, answer.stopped)
        assert facts == (each.exit, each.exits_run, each.flops, each.stopped)
        np.testing.assert_allclose(answer.probabilities, each.probabilities, rtol=1e-5)
    assert sizes[:2] == [1, 8] and len(sizes) == 4


def test_one_that_is_cancelled_leaves_the_others(served: ServedBundle, held):
    engine, gate, sizes = held
    inputs = [images(1, seed=k) for k in range(5)]
    futures = [engine.submit(served, x, Ask(timeout=60.0), time.monotonic()) for x in inputs]
    assert futures[0].cancel() and futures[2].cancel()
    gate.set()
    for k in (1, 3, 4):
        expected = served.session.run(inputs[k]).logits
        np.testing.assert_allclose(futures[k].result(10).answer.logits, expected, rtol=1e-5, atol=1e-5)
    assert engine.drain(10) and sizes == [1, 3]


def test_a_batch_that_has_yielded_is_refused_when_the_engine_closes(served: ServedBundle, monkeypatch):
    engine, groups, advance = Engine(1), threading.Semaphore(0), Chain.advance
    monkeypatch.setattr(Chain, "advance", lambda chain: groups.acquire(timeout=10) and advance(chain))

    def begin(future: Future[Reply]) -> None:
        while not future.running():
            time.sleep(0.001)

    begin(first := engine.submit(served, images(1), Ask(), time.monotonic()))
    pair = [engine.submit(served, images(1), Ask(), time.monotonic()) for _ in range(2)]
    groups.release(3)
    first.result(10)
    begin(pair[0])
    urgent = engine.submit(served, images(1), Ask(timeout=60.0), time.monotonic())
    groups.release()
    begin(urgent)
    closing = threading.Thread(target=engine.close)
    closing.start()
    for future in pair:
        assert isinstance(future.exception(10), Overloaded)
    groups.release(3)
    closing.join(10)
    assert urgent.result(10).answer.exit == 3


def test_a_graph_that_fails_fails_all_of_the_batch_and_no_other(served: ServedBundle, held, monkeypatch):
    engine, gate, _ = held
    monkeypatch.setattr(Chain, "start", lambda chain, x, depth=0: 1 / 0)
    futures = [engine.submit(served, images(1), Ask(), time.monotonic()) for _ in range(2)]
    gate.set()
    for future in futures:
        assert isinstance(future.exception(10), ZeroDivisionError)
    monkeypatch.undo()
    assert engine.submit(served, images(1), Ask(), time.monotonic()).result(10).answer.exit == 3
