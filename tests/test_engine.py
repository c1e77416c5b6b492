"""The engine with a real bundle: replies are the session's own answers, and no fault of one request is another's."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import CancelledError, wait
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import make_profile, write_image_bundle
from test_policy import images, made_timings

from anytime_lct.errors import BudgetError, BundleError, NothingFitsError
from anytime_lct.exits.budget import Ask, Budget
from anytime_lct.exits.thresholds import MeanCost, Thresholds, ThresholdTable
from anytime_lct.runtime.calibration import calibrate
from anytime_lct.runtime.chain import Chain
from anytime_lct.runtime.session import AnytimeSession
from anytime_lct.runtime.timings import load, save, timings_path
from anytime_lct.serving.engine import scheduler
from anytime_lct.serving.engine.engine import Engine
from anytime_lct.serving.engine.job import ServedBundle
from anytime_lct.serving.request import Overloaded


@pytest.fixture
def served(tmp_path: Path) -> ServedBundle:
    session = AnytimeSession(write_image_bundle(tmp_path / "tiny"))
    session.use_timings(made_timings((0.001, 0.020, 0.040), {1: 0.0001, 2: 0.0001}))
    return ServedBundle(session)


@pytest.fixture
def engine():
    instance = Engine(threads=2)
    yield instance
    instance.close()


def ask(engine: Engine, served: ServedBundle, x: np.ndarray, **fields):
    return engine.submit(served, x, Ask(**fields), time.monotonic())


def test_replies_are_the_sessions_answers(engine: Engine, served: ServedBundle):
    inputs = [images(1 + k % 3, seed=k) for k in range(60)]
    exits = [1 + k % 3 for k in range(60)]
    futures = [ask(engine, served, x, budget=Budget(exit=exit)) for x, exit in zip(inputs, exits, strict=True)]
    for x, exit, future in zip(inputs, exits, futures, strict=True):
        reply = future.result(10)
        assert set(reply.answer.exits) == {exit} and reply.answer.exits_run == 1 and reply.on_time is None
        assert reply.answer.stopped == ("last" if exit == 3 else "budget")
        np.testing.assert_array_equal(reply.answer.logits, served.session.run_to(exit, x).logits)
        assert reply.answer.flops == served.profile.cost(exit).flops and reply.queued >= 0 and reply.computed > 0
    assert engine.queue_length() == 0


def test_confidence_and_deadline_together(engine: Engine, served: ServedBundle):
    x = images(16)
    sure = ask(engine, served, x, min_confidence=0.6).result(10)
    np.testing.assert_array_equal(sure.answer.exits, served.session.run(x, min_confidence=0.6).exits)
    reply = ask(engine, served, x[:1], timeout=10.0).result(10)
    assert (reply.answer.exits[0], reply.on_time, reply.answer.stopped) == (3, True, "last")
    reply = ask(engine, served, x[:1], timeout=0.015).result(10)
    assert (reply.answer.exits[0], reply.answer.stopped) == (1, "deadline")


def test_what_cannot_be_is_said_at_once(engine: Engine, served: ServedBundle):
    with pytest.raises(Overloaded, match="until the deadline") as refused:
        ask(engine, served, images(1), timeout=1e-6)
    assert refused.value.retry_after > 0
    with pytest.raises(NothingFitsError):
        ask(engine, served, images(1), budget=Budget(flops=1))
    with pytest.raises(BudgetError):
        ask(engine, served, images(1), min_confidence=1.5)


def hold(monkeypatch, at: int) -> threading.Event:
    """Let group `at` wait for an event."""
    gate, real = threading.Event(), Chain.advance

    def advance(chain: Chain) -> None:
        if chain.depth + 1 == at:
            gate.wait(10)
        return real(chain)

    monkeypatch.setattr(Chain, "advance", advance)
    return gate


def test_the_watchdog_answers_while_a_group_hangs(engine: Engine, served: ServedBundle, monkeypatch):
    gate = hold(monkeypatch, at=2)
    reply = ask(engine, served, images(1), timeout=0.5).result(10)  # group 2 hangs, so somebody else must have answered
    assert (reply.answer.exits[0], reply.answer.stopped, reply.answer.exits_run) == (1, "deadline", 1)
    np.testing.assert_array_equal(reply.answer.logits, served.session.run_to(1, images(1)).logits)
    gate.set()
    assert ask(engine, served, images(1)).result(10).answer.exits[0] == 3  # the worker is free again


def test_a_cancelled_request_is_never_run(served: ServedBundle, monkeypatch):
    gate = hold(monkeypatch, at=1)
    engine = Engine(threads=1)
    first, second = (ask(engine, served, images(1)) for _ in range(2))
    while not first.running():
        time.sleep(0.001)
    assert engine.queue_length() == 1 and second.cancel()
    gate.set()
    assert first.result(10).answer.exits[0] == 3
    assert engine.drain(10) and second.cancelled()
    engine.close()


def test_a_request_that_has_yielded_is_answered_when_it_is_due(served: ServedBundle, monkeypatch):
    """The first has an answer in hand when the second, more urgent, goes first and hangs."""
    engine, gate, began = Engine(threads=1), threading.Event(), threading.Event()
    real, ran = Chain.advance, itertools.count()

    def advance(chain: Chain) -> None:
        number = next(ran)
        if number == 0:
            real(chain)
        elif number == 1:  # group 2 of the first, during which the second comes
            began.set()
            time.sleep(0.1)
            real(chain)
        else:
            gate.wait(10)
            real(chain)

    monkeypatch.setattr(Chain, "advance", advance)
    first = ask(engine, served, images(1), timeout=1.0)
    assert began.wait(10)
    second = ask(engine, served, images(1), timeout=0.5)
    reply = first.result(5)
    assert (reply.answer.exits[0], reply.answer.stopped) == (1, "deadline") and not gate.is_set() and not second.done()
    assert engine.queue_length() == 0
    gate.set()
    second.result(10)
    assert engine.drain(10)
    engine.close()


def test_a_group_that_takes_many_times_its_time_hangs(engine: Engine, served: ServedBundle, monkeypatch):
    monkeypatch.setattr(scheduler, "HANG_FACTOR", 1.0)
    monkeypatch.setattr(scheduler, "HANG_SECONDS", 0.02)
    gate = hold(monkeypatch, at=2)
    future = ask(engine, served, images(1))
    while not engine.hanging():
        time.sleep(0.001)
    gate.set()
    future.result(10)
    assert engine.hanging() == 0


def test_a_short_exit_is_answered_by_its_whole_graph(served: ServedBundle, monkeypatch):
    served.session.use_timings(made_timings((0.00001, 0.00001, 0.03), {1: 0.00001, 2: 0.00001}))
    short, engine = ServedBundle(served.session), Engine(threads=1)
    assert {name for name in served.session.graphs.loaded if "exit" in name} == {"exit_1.onnx", "exit_2.onnx"}
    expected = [served.session.run(images(2), Budget(exit=exit)) for exit in (1, 2)]
    monkeypatch.setattr(Chain, "advance", lambda chain: pytest.fail("a group runs"))
    for exit, answer in enumerate(expected, start=1):
        reply = engine.answer_here(short, images(2), Ask(budget=Budget(exit=exit)), time.monotonic())
        assert reply is not None and (reply.answer.flops, reply.answer.stopped) == (answer.flops, answer.stopped)
        np.testing.assert_array_equal(reply.answer.exits, answer.exits)
        np.testing.assert_allclose(reply.answer.logits, answer.logits, rtol=1e-5)
    engine.close()


def test_a_short_request_is_answered_in_the_thread_that_brings_it(served: ServedBundle, monkeypatch):
    engine, x, long = Engine(threads=1), images(2), Ask(budget=Budget(exit=2))
    assert engine.answer_here(served, x, long, time.monotonic()) is None  # calibrated at 30 ms
    served.session.use_timings(made_timings((0.00001, 0.00001, 0.00001), {1: 0.00001, 2: 0.00001}))
    assert engine.answer_here(served, x, Ask(timeout=1.0), time.monotonic()) is None
    for fields in ({}, {"budget": Budget(exit=2)}, {"min_confidence": 0.6}, {"mode": "fixed"}):
        reply = engine.answer_here(served, x, Ask(**fields), time.monotonic())
        expected = served.session.run(x, Ask(**fields))
        assert reply is not None and reply.on_time is None and reply.answer.stopped == expected.stopped
        np.testing.assert_array_equal(reply.answer.logits, expected.logits)
        np.testing.assert_array_equal(reply.answer.exits, expected.exits)
    gate = hold(monkeypatch, at=1)
    busy = ask(engine, served, images(1))
    while not busy.running():
        time.sleep(0.001)
    assert engine.answer_here(served, x, Ask(), time.monotonic()) is None  # it would pass the one that runs
    gate.set()
    assert busy.result(10) and engine.drain(10)
    with pytest.raises(Overloaded, match="shutting down"):
        engine.answer_here(served, x, Ask(), time.monotonic())
    engine.close()


def test_a_deadline_years_away_is_no_harm(engine: Engine, served: ServedBundle, monkeypatch):
    gate = hold(monkeypatch, at=2)
    far = ask(engine, served, images(1), timeout=1e11)
    reply = ask(engine, served, images(1), timeout=0.5).result(10)  # by the watchdog
    assert (reply.answer.exits[0], reply.answer.stopped) == (1, "deadline")
    gate.set()
    assert far.result(10).answer.exits[0] == 3


def test_cancelled_requests_make_room_at_once(served: ServedBundle, monkeypatch):
    gate = hold(monkeypatch, at=1)
    engine = Engine(threads=1)
    first, *others = (ask(engine, served, images(1)) for _ in range(20))
    while not first.running():
        time.sleep(0.001)
    assert engine.queue_length() == 19 and all(each.cancel() for each in others)
    assert engine.queue_length() == 0
    gate.set()
    assert engine.drain(10) and first.result().answer.exits[0] == 3
    engine.close()


def test_a_request_that_fails_harms_no_other(engine: Engine, served: ServedBundle, monkeypatch):
    real = Chain.advance

    def advance(chain: Chain) -> None:
        if chain.hidden().flat[0] == 77.0:
            raise BundleError("broken")
        real(chain)

    monkeypatch.setattr(Chain, "advance", advance)
    bad = images(1)
    bad[:] = 77.0
    futures = [ask(engine, served, bad if k % 2 else images(1)) for k in range(8)]
    wait(futures, 10)
    for k, future in enumerate(futures):
        if k % 2:
            with pytest.raises(BundleError, match="broken"):
                future.result()
        else:
            assert future.result().answer.exits[0] == 3
    monkeypatch.setattr(Chain, "advance", real)
    assert ask(engine, served, images(1)).result(10).answer.exits[0] == 3


def test_drain_answers_all_that_was_admitted_and_takes_no_more(served: ServedBundle):
    engine = Engine(threads=1)
    futures = [ask(engine, served, images(1)) for _ in range(20)]
    assert engine.drain(10) and all(future.done() for future in futures)
    with pytest.raises(Overloaded, match="shutting down"):
        ask(engine, served, images(1))
    engine.close()


def test_close_cancels_what_waits(served: ServedBundle, monkeypatch):
    gate = hold(monkeypatch, at=1)
    engine = Engine(threads=1)
    first, second = (ask(engine, served, images(1)) for _ in range(2))
    while not first.running():
        time.sleep(0.001)
    threading.Timer(0.05, gate.set).start()
    engine.close()
    assert first.result(10).answer.exits[0] == 3
    with pytest.raises(CancelledError):
        second.result(10)


def test_timings_are_measured_where_there_are_none(tmp_path: Path):
    bundle = write_image_bundle(tmp_path / "tiny")
    messages: list[str] = []
    served = ServedBundle(bundle, messages.append)
    assert timings_path(bundle.path).is_file() and messages[0] == "measuring batches of 1"
    messages.clear()
    assert ServedBundle(bundle, messages.append).timing.to_exit(3, 1) > 0 and not messages
    assert served.timing is not None


def test_timings_for_other_threads_stay_where_they_are(tmp_path: Path):
    bundle = write_image_bundle(tmp_path / "tiny")
    chosen = calibrate(AnytimeSession(bundle, threads=2), sizes=(1,), seconds=0.01)
    save(chosen, bundle)
    assert ServedBundle(bundle).timing is not None and load(bundle, None) == chosen


def test_a_fixed_exit_is_that_exit_whatever_the_load_and_the_profile_say(tmp_path: Path):
    profile = make_profile(values=(0.8, 0.9, 0.85))  # the last is not the best
    session = AnytimeSession(write_image_bundle(tmp_path / "tiny", profile=profile))
    session.use_timings(made_timings((1.0, 1.0, 1.0)))
    served, engine = ServedBundle(session), Engine(1)
    for exit in (1, 2, 3):
        reply = ask(engine, served, images(1), budget=Budget(exit=exit), timeout=0.001, mode="fixed").result(10)
        assert reply.answer.exits.tolist() == [exit]
    assert ask(engine, served, images(1), mode="fixed").result(10).answer.exits.tolist() == [2]
    with pytest.raises(BudgetError, match="among those served"):
        ask(engine, served, images(1), budget=Budget(exit=4), mode="fixed")
    engine.close()


def test_a_mean_budget_stops_by_the_bundles_rule(engine: Engine, tmp_path: Path):
    bundle = write_image_bundle(tmp_path / "tiny")
    accuracy, cost = bundle.profile.quality(1), MeanCost(flops=1.0, low=1.0, high=1.0)
    rule = Thresholds(
        mean_flops=120.0, measure="margin", at={1: 0.4, 2: 0.0}, shares={1: 0.5, 2: 0.5}, accuracy=accuracy, cost=cost
    )
    session = AnytimeSession(replace(bundle, thresholds=ThresholdTable(rules=(rule,))))
    session.use_timings(made_timings())
    served, x = ServedBundle(session), images(16)
    reply = ask(engine, served, x, mean_flops=125.0).result(10)
    np.testing.assert_array_equal(reply.answer.exits, session.run(x, thresholds=rule).exits)
    assert set(reply.answer.exits) == {1, 2}
    with pytest.raises(NothingFitsError):
        ask(engine, served, x, mean_flops=10.0)
    assert set(ask(engine, served, x, mean_flops=125.0, budget=Budget(exit=1)).result(10).answer.exits) == {1}
    without = AnytimeSession(bundle)
    without.use_timings(made_timings())
    with pytest.raises(BudgetError, match="anytime-lct thresholds RUN"):
        ask(engine, ServedBundle(without), x, mean_flops=125.0)
