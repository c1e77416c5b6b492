"""Stopping when sure or short of time: each sample is told what its exit says alone, and pays what it ran."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bundles import SYMBOLS, make_profile, write_image_bundle, write_text_bundle

from anytime_lct.errors import BudgetError, BundleError, NothingFitsError
from anytime_lct.exits.budget import Ask, Budget
from anytime_lct.exits.thresholds import MEASURES, MeanCost, Thresholds
from anytime_lct.runtime import calibration, deadline, timings
from anytime_lct.runtime.confidence import confidence
from anytime_lct.runtime.session import AnytimeSession
from anytime_lct.runtime.timing import Timing
from anytime_lct.runtime.timings import Quantiles, Times, Timings
from anytime_lct.runtime.walk import steps

GROUPS, CRITICS = (0.010, 0.020, 0.040), {1: 0.001, 2: 0.002}


def images(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 1, 6, 6)).astype(np.float32)


def same(seconds: float) -> Quantiles:
    return Quantiles(p50=seconds, p90=seconds, p99=seconds)


def made_timings(groups=GROUPS, critics=CRITICS, sizes=(1, 4)) -> Timings:
    """Times that grow with the size of the batch."""
    times = {
        size: Times(
            groups=tuple(same(s * size) for s in groups), critics={i: same(s * size) for i, s in critics.items()}
        )
        for size in sizes
    }
    return Timings(bundle="", machine="", runtime="", threads=1, sizes=times)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> AnytimeSession:
    return AnytimeSession(write_image_bundle(tmp_path_factory.mktemp("images")))


def test_measures_by_hand():
    p = np.array([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]])
    entropy = 1 + (0.7 * np.log(0.7) + 0.2 * np.log(0.2) + 0.1 * np.log(0.1)) / np.log(3)
    for measure, expected in (("max-probability", [0.7, 1 / 3]), ("margin", [0.5, 0]), ("entropy", [entropy, 0])):
        np.testing.assert_allclose(confidence(np.log(p), measure), expected, atol=1e-6)
    softened = p**0.5 / (p**0.5).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(confidence(np.log(p), temperature=2.0), softened.max(axis=1), atol=1e-6)
    of_text = np.stack([np.zeros((2, 3)), np.log(p)], axis=1)
    np.testing.assert_allclose(confidence(of_text), [0.7, 1 / 3], atol=1e-6)
    for measure in MEASURES:  # certain, and large enough to overflow
        np.testing.assert_allclose(confidence(np.array([[1e4, 0.0]], np.float32), measure), [1.0])


@pytest.mark.parametrize("measure", MEASURES)
def test_every_sample_stops_at_the_first_exit_that_is_sure(session: AnytimeSession, measure):
    x = images(32)
    every = list(session.stream(x))
    sure = np.stack([confidence(answer.logits, measure) for answer in every[:2]])
    threshold = float(np.median(sure))
    answer = session.run(x, min_confidence=threshold, measure=measure)
    expected = np.where(sure[0] >= threshold, 1, np.where(sure[1] >= threshold, 2, 3))
    assert set(expected) == {1, 2, 3}
    np.testing.assert_array_equal(answer.exits, expected)
    chosen = np.stack([each.logits for each in every])[expected - 1, np.arange(32)]
    np.testing.assert_allclose(answer.logits, chosen, rtol=1e-5, atol=1e-6)
    assert (answer.exit, answer.exits_run, answer.stopped) == (3, 3, "last")
    paid = np.array([0, 35, 105, 205])[expected]  # every visited critic is paid for, the later groups by the rest alone
    assert answer.flops == pytest.approx(paid.mean())


def test_a_single_sample_pays_no_more_than_it_ran(session: AnytimeSession):
    answer = session.run(images(1), min_confidence=1e-6)
    assert (answer.exit, answer.flops, answer.stopped) == (1, 35, "confident")
    answer = session.run(images(1), Budget(exit=2), min_confidence=1.0)
    assert (answer.exit, answer.flops, answer.stopped) == (2, 105, "budget")


@pytest.mark.parametrize(
    ("budget", "deepest", "stopped"),
    [(Budget(), 3, "last"), (Budget(exit=2), 2, "budget"), (Budget(flops=35), 1, "budget")],
)
def test_who_is_not_confident_goes_to_the_deepest_exit_though_another_is_better(tmp_path, budget, deepest, stopped):
    session = AnytimeSession(write_image_bundle(tmp_path, profile=make_profile((0.95, 0.9, 0.8))))
    assert session.choose(budget) == 1
    answer = session.run(images(1), Ask(budget, min_confidence=1.0, measure="margin"))
    assert (answer.exit, answer.stopped) == (deepest, stopped)
    with pytest.raises(NothingFitsError):
        session.run(images(1), Budget(flops=1), min_confidence=0.9)


def test_keywords_are_those_of_an_ask(session: AnytimeSession):
    x = images(8)
    for ask, keywords in (
        (Ask(Budget(flops=100)), {"budget": Budget(flops=100)}),
        (Ask(min_confidence=0.5, measure="margin"), {"min_confidence": 0.5, "measure": "margin"}),
        (Ask(Budget(exit=2), min_confidence=0.9), {"budget": Budget(exit=2), "min_confidence": 0.9}),
    ):
        one, other = session.run(x, ask), session.run(x, **keywords)
        np.testing.assert_array_equal(one.exits, other.exits)
        np.testing.assert_array_equal(one.logits, other.logits)
        assert (one.flops, one.stopped) == (other.flops, other.stopped)


def test_a_fixed_exit_is_the_very_one_that_is_named(tmp_path: Path):
    session = AnytimeSession(write_image_bundle(tmp_path, served=(1, 3), profile=make_profile((0.9, 0.8, 0.7))))
    assert session.run(images(1), Ask(Budget(exit=3))).exit == 1  # the most accurate up to exit 3
    assert session.run(images(1), Ask(Budget(exit=3), mode="fixed")).exit == 3
    with pytest.raises(BudgetError, match="a fixed exit among those served, 1, 3, got 2"):
        session.run(images(1), Ask(Budget(exit=2), mode="fixed"))


def test_temperatures_of_the_profile_count(tmp_path: Path):
    profile = make_profile()
    hot = profile.model_copy(
        update={"exits": tuple(e.model_copy(update={"temperature": 1e6}) for e in profile.exits)}
    )  # at so high a temperature all classes are alike
    session = AnytimeSession(write_image_bundle(tmp_path, profile=hot))
    assert session.run(images(1), min_confidence=0.34).exit == 3
    assert session.run(images(1), min_confidence=0.33).exit == 1
    np.testing.assert_allclose(session.run(images(2)).probabilities, 1 / 3, atol=1e-5)


@pytest.mark.parametrize("only", ["", "exits"])
def test_an_answer_shows_the_confidence_by_which_it_stops(tmp_path: Path, only: str):
    profile, x = make_profile(), images(200)
    exits = tuple(e.model_copy(update={"temperature": 0.2 * e.index}) for e in profile.exits)
    profile = profile.model_copy(update={"exits": exits})
    session = AnytimeSession(write_image_bundle(tmp_path, profile=profile, only=only))
    for exit in (1, 2, 3):
        answer = session.run_to(exit, x)
        shown = answer.probabilities.max(axis=1)
        assert np.array_equal(shown, confidence(answer.logits, temperature=0.2 * exit))
    if not only:
        level = float(np.median(session.run_to(1, x).probabilities.max(axis=1)))
        answer = session.run(x, min_confidence=level)
        early = answer.exits < 3
        assert early.any() and not early.all()
        assert answer.probabilities.max(axis=1)[early].min() >= np.float32(level)


def test_thresholds_pass_exits_that_they_do_not_name(session: AnytimeSession):
    cost = MeanCost(flops=1.0, low=1.0, high=1.0)
    accuracy = session.profile.quality(1)
    rule = Thresholds(
        mean_flops=1.0, measure="margin", at={2: 0.5, 3: 0.0}, shares={2: 0.5, 3: 0.5}, accuracy=accuracy, cost=cost
    )
    x = images(32)
    second = next(answer for answer in session.stream(x) if answer.exit == 2)
    answer = session.run(x, thresholds=rule)
    np.testing.assert_array_equal(answer.exits, np.where(confidence(second.logits, "margin") >= 0.5, 2, 3))
    assert answer.flops == pytest.approx(np.where(answer.exits == 2, 100, 200).mean())
    with pytest.raises(BudgetError, match="'min_confidence' and a rule"):
        session.run(x, min_confidence=0.5, thresholds=rule)


def test_text_stops_by_what_comes_next(tmp_path: Path):
    session = AnytimeSession(write_text_bundle(tmp_path))
    x = np.random.default_rng(0).integers(0, len(SYMBOLS), (8, 5))
    every = list(session.stream(x))
    sure = confidence(every[0].logits)
    answer = session.run(x, min_confidence=float(np.median(sure)))
    assert 0 < (answer.exits == 1).sum() < 8
    for row, exit in enumerate(answer.exits):
        np.testing.assert_allclose(answer.logits[row], every[exit - 1].logits[row], rtol=1e-5)


@pytest.mark.parametrize("bad", [0, -0.1, 1.1, float("nan"), True])
def test_confidences_out_of_range(session: AnytimeSession, bad):
    with pytest.raises(BudgetError, match="above 0 and up to 1"):
        session.run(images(1), min_confidence=bad)


def test_timing_predicts_sums_and_follows_what_it_sees():
    timing = Timing(made_timings())
    assert timing.to_exit(2, 1) == pytest.approx(0.032)
    assert timing.to_exit(3, 1, depth=1) == pytest.approx(0.060)
    assert timing.group(1, 2) == pytest.approx(0.020) and timing.group(1, 8) == pytest.approx(0.080)
    assert timing.slack == 0.0
    timing.observe_group(1, 1, 0.015)
    assert timing.slack == pytest.approx(0.005)
    for _ in range(200):
        timing.observe_group(1, 1, 0.030)
    assert timing.group(1, 4) == pytest.approx(0.120, rel=0.01)
    assert timing.group(2, 1) == pytest.approx(0.020)
    for _ in range(2000):
        timing.observe_group(1, 1, 0.010)
    assert timing.group(1, 1) == pytest.approx(0.010, rel=0.01)
    assert timing.slack < 0.02


def test_timing_learns_what_a_request_takes_beside_its_parts():
    timing = Timing(made_timings())
    for _ in range(100):
        timing.observe_overhead(0.0004)
    assert timing.overhead == pytest.approx(0.0004, rel=0.01)
    timing.slack = 0.0
    timing.observe_overhead(0.0104)  # a time slice lost: remembered as slack, no new rule
    assert timing.overhead < 0.0006 and timing.slack == pytest.approx(0.01, rel=0.01)
    timing.observe_overhead(-1.0)
    assert 0.0 < timing.overhead < 0.0006


def test_orders_behind_a_group(session: AnytimeSession):
    timing = Timing(made_timings(critics={1: 0.001, 2: 0.030}))
    with session.walk(images(1)) as walk:
        walk.advance()  # to exit 2: 0.050 more; critic 1: 0.001, little enough to be had on the way
        assert deadline.order(timing, walk, 0.100, 0.100) == "answer and deeper"
        assert deadline.order(timing, walk, 0.050, 0.100) == "deadline"
        assert deadline.order(timing, walk, 0.0005, 0.100) == "late"
        timing.slack = 0.030
        assert deadline.order(timing, walk, 0.075, 0.100) == "deadline"
        assert deadline.order(timing, walk, 0.075, 0.060) == "answer and deeper"  # a quarter of the timeout at most
        timing.slack = 0.0
        walk.answer()
        walk.advance()  # critic 2 costs too much to be had on the way
        assert deadline.order(timing, walk, 0.045, 0.100) == "deeper"
        assert deadline.order(timing, walk, 0.035, 0.100) == "deadline"
        assert deadline.order(timing, walk, 0.020, 0.100) == "late"


def test_late_is_content_with_the_last_answer(session: AnytimeSession):
    for orders, exit, exits_run in (
        (["answer and deeper", "late"], 1, 1),
        (["deeper", "late"], 2, 1),
        (["answer and deeper", "deadline"], 2, 2),
        (["load"], 1, 1),
        (["deeper", "deeper"], 3, 1),
    ):
        with session.walk(images(2)) as walk:
            way = steps(walk, 3)
            try:
                next(way)
                for order in orders:
                    way.send(order)
            except StopIteration as end:
                answer = walk.answer_so_far(end.value)
        assert (answer.exit, answer.exits_run) == (exit, exits_run)
        np.testing.assert_array_equal(answer.logits, session.run_to(exit, images(2)).logits)


def test_a_timeout_needs_timings_and_takes_the_deepest_exit_in_time(tmp_path: Path):
    session = AnytimeSession(write_image_bundle(tmp_path))
    with pytest.raises(BudgetError, match="anytime-lct calibrate"):
        session.run(images(1), timeout=1.0)
    session.use_timings(made_timings())
    assert (session.run(images(1), timeout=100.0).exit, session.run(images(1), timeout=100.0).stopped) == (3, "last")
    session.use_timings(made_timings(groups=(0.01, 1000.0, 1000.0)))
    answer = session.run(images(1), timeout=10.0)
    assert (answer.exit, answer.stopped) == (1, "deadline")
    assert session.run(images(1), timeout=1e-9).exit == 1
    with pytest.raises(BudgetError, match="timeout"):
        session.run(images(1), timeout=-1.0)


def test_latency_budgets_go_by_this_machine(tmp_path: Path):
    session = AnytimeSession(write_image_bundle(tmp_path))
    session.use_timings(made_timings())
    assert session.choose(Budget(latency=0.033)) == 2
    assert session.choose(Budget(latency=0.012)) == 1


def test_calibration_is_found_again_and_not_trusted_elsewhere(tmp_path: Path):
    bundle = write_image_bundle(tmp_path / "tiny.bundle")
    session = AnytimeSession(bundle)
    measured = calibration.calibrate(session, sizes=(1, 2), seconds=0.01)
    assert list(measured.sizes) == [1, 2] and len(measured.sizes[1].groups) == 3
    assert set(measured.sizes[1].critics) == {1, 2}
    path = timings.save(measured, bundle)
    assert path == tmp_path / "tiny.bundle.calibration.json"
    assert timings.load(bundle, 1) == measured and AnytimeSession(bundle).timing is not None
    assert timings.load(bundle, 2) is None and timings.load(bundle, None) == measured
    path.write_text(path.read_text().replace(measured.machine, "another machine"))
    assert timings.load(bundle, 1) is None and AnytimeSession(bundle).timing is None
    path.write_text("{")
    with pytest.raises(BundleError, match="calibrate"):
        AnytimeSession(bundle)
    assert AnytimeSession(bundle, calibrated=False).timing is None


def test_threads_are_those_that_are_worth_it(tmp_path: Path):
    assert calibration.fewest_threads({1: 1.0, 2: 0.96, 4: 0.97}) == 1
    assert calibration.fewest_threads({1: 1.0, 2: 0.6, 4: 0.58}) == 2
    bundle = write_image_bundle(tmp_path / "tiny.bundle")
    both = [AnytimeSession(bundle, threads=number) for number in (1, 2)]
    assert calibration.fastest_threads(both, seconds=0.01) in (1, 2)
    assert AnytimeSession(bundle, threads=None).threads == 1
    timings.save(calibration.calibrate(both[1], sizes=(1,), seconds=0.01), bundle)
    session = AnytimeSession(bundle, threads=None)
    assert session.threads == 2 and session.timing is not None and AnytimeSession(bundle).timing is None


def test_whole_exits_cannot_be_stopped_on_the_way(tmp_path: Path):
    session = AnytimeSession(write_image_bundle(tmp_path, only="exits"))
    assert session.run(images(1)).exit == 3
    for keywords in ({"min_confidence": 0.5}, {"thresholds": None, "min_confidence": 0.9}):
        with pytest.raises(BundleError, match="layer groups"):
            session.run(images(1), **keywords)
    with pytest.raises(BundleError, match="layer groups"):
        calibration.calibrate(session)
