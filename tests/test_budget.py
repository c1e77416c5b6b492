"""Budgets, and amounts as people write them."""

import math

import pytest

from anytime_lct.errors import BudgetError
from anytime_lct.exits.budget import (
    Ask,
    Budget,
    Share,
    in_flops,
    parse_count,
    parse_drop,
    parse_flops,
    parse_quality,
    parse_seconds,
    show_count,
    show_seconds,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("20M", 20e6), ("1.5k", 1500), ("1.1M", 1100000), ("2G", 2e9), ("2B", 2e9), ("1T", 1e12),
        ("3e6", 3e6), ("250000", 250000), (" 7 K ", 7000), ("20m", 20e6), (".5k", 500),
    ],
)  # fmt: skip
def test_counts(text: str, count: float) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize(("text", "seconds"), [("5ms", 0.005), ("300us", 0.0003), ("0.1s", 0.1), ("2 S", 2.0)])
def test_seconds(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    ("text", "value"), [("0.93", 0.93), ("93%", 0.93), ("93.1%", 0.931), ("1", 1.0), ("0", 0.0), ("93", 0.93)]
)
def test_qualities(text: str, value: float) -> None:
    assert parse_quality(text) == value


@pytest.mark.parametrize(
    ("text", "flops"),
    [("20M", 20e6), ("250000", 250000.0), ("70%", Share(0.7)), ("0.7", Share(0.7)), ("120%", Share(1.2))],
)
def test_multiply_adds_are_a_count_or_a_share(text: str, flops: object) -> None:
    assert parse_flops(text) == flops
    assert in_flops(parse_flops("70%"), 200) == pytest.approx(140)


@pytest.mark.parametrize("text", ["1", "1.0", "0", "0%", "-5%", "7%%", "half"])
def test_no_multiply_adds(text: str) -> None:
    with pytest.raises(BudgetError):
        parse_flops(text)


@pytest.mark.parametrize(
    ("text", "points"), [("1%", 1), ("0.5%", 0.5), ("1 point", 1), ("2points", 2), ("0.01", 1), ("1", 1), ("50", 50)]
)
def test_drops_of_accuracy_are_points_or_a_fraction(text: str, points: float) -> None:
    assert parse_drop(text, "accuracy") == points


@pytest.mark.parametrize(
    ("text", "metric"), [("0.5", "accuracy"), ("0.1", "accuracy"), ("1M", "accuracy"), ("1%", "bpc")]
)
def test_drops_that_could_mean_two_things_are_refused(text: str, metric: str) -> None:
    with pytest.raises(BudgetError, match="Expected"):
        parse_drop(text, metric)  # pyright: ignore
    assert parse_drop("0.05", "bpc") == 0.05


@pytest.mark.parametrize("text", ["", "M", "20Q", "-3M", "0", "nan", "inf", "1e999", "20 M M", "0x10", "1,5M", "5%"])
def test_no_counts(text: str) -> None:
    with pytest.raises(BudgetError):
        parse_count(text)


@pytest.mark.parametrize("text", ["5", "5m", "0ms", "-1s", "ms", "5 minutes"])
def test_no_seconds(text: str) -> None:
    with pytest.raises(BudgetError):
        parse_seconds(text)


@pytest.mark.parametrize("text", ["101", "101%", "-0.5", "0.9M", "high"])
def test_no_qualities(text: str) -> None:
    with pytest.raises(BudgetError):
        parse_quality(text)


@pytest.mark.parametrize("bound", [0, -1, math.nan, math.inf, True, "20M"])
@pytest.mark.parametrize("name", ["flops", "params", "latency"])
def test_bounds_are_positive_finite_numbers(name: str, bound: object) -> None:
    with pytest.raises(BudgetError, match=name):
        Budget(**{name: bound})  # pyright: ignore


@pytest.mark.parametrize("exit", [0, -1, 1.5, True, "2"])
def test_exits_count_from_one(exit: object) -> None:
    with pytest.raises(BudgetError, match="exit"):
        Budget(exit=exit)  # pyright: ignore


@pytest.mark.parametrize(
    ("ways", "says"),
    [
        ({"min_confidence": 0.5, "mean_flops": 1.0}, "both 'min_confidence' and 'mean_flops'"),
        ({"min_confidence": 0.5, "mode": "fixed"}, "both 'min_confidence' and the mode \"fixed\""),
        ({"mean_flops": 0.0}, "a mean budget"),
        ({"min_confidence": 1.5}, "above 0 and up to 1"),
        ({"timeout": 0.0}, "a timeout in seconds"),
    ],
)
def test_a_request_stops_in_one_way(ways: dict[str, object], says: str) -> None:
    with pytest.raises(BudgetError, match=says):
        Ask(**ways)  # pyright: ignore


def test_amounts_are_written_with_their_unit() -> None:
    counts = [show_count(n) for n in (0, 999, 1000, 40_812_345, 2e9, 3e12)]
    assert counts == ["0", "999", "1k", "40.81M", "2G", "3T"]
    assert [show_seconds(s) for s in (2.0, 0.00512, 0.0000300)] == ["2s", "5.12ms", "30us"]
