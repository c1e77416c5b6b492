"""The simulator of the benchmarks against periods worked out by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from simulator import Compute, Group, Receive, Send, Stage, Wire, local_critics, pipelined, run

FREE = Wire(0.0, float("inf"))


def test_local_critics_take_the_time_of_the_slowest_worker():
    quick, slow = Group(1.0, 0.1, 2.0, 0.2, 1e6), Group(2.0, 0.1, 3.0, 0.0, 0.0)
    assert run(local_critics([[quick], [slow]]), FREE) == pytest.approx(5.1)
    assert run(local_critics([[slow], [quick]]), FREE) == pytest.approx(5.1)
    assert run(local_critics([[quick, quick], [slow]]), FREE) == pytest.approx(6.6)
    assert run(local_critics([[quick] * 2, [quick] * 2, [slow]]), FREE) == pytest.approx(6.6)


def test_a_message_travels_while_the_worker_goes_on_until_the_wire_is_the_slowest():
    even = Group(1.0, 0.0, 2.0, 0.0, 1e6)
    assert run(local_critics([[even], [even]]), Wire(0.1, 1e6)) == pytest.approx(3.0)
    assert run(local_critics([[even], [even]]), Wire(0.0, 2e5)) == pytest.approx(5.0)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("W", "m"), [(2, 2), (2, 8), (4, 4), (4, 16)])
def test_pipelines_have_the_bubble_of_the_textbook(schedule, W, m):
    stage = Stage(1.0, 2.0, 0.0, 0.0)
    assert run(pipelined([stage] * W, m, schedule), FREE) == pytest.approx(3.0 * (m + W - 1))


def test_a_receive_that_is_not_posted_ahead_waits_for_the_whole_flight():
    wire = Wire(0.5, float("inf"))
    for ahead, expected in ((True, 2.0), (False, 2.5)):
        programs = [[Compute(1.0), Send(1, "a", 0.0)], [Compute(2.0), Receive(-1, "a", ahead=ahead)]]
        assert run(programs, wire) == pytest.approx(expected)


def test_programs_that_wait_for_each_other_are_refused():
    with pytest.raises(RuntimeError, match="wait for each other"):
        run([[Receive(1, "a"), Compute(1.0)], [Compute(1.0)]], FREE)
