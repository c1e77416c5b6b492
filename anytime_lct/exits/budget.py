"""What an answer may cost, what a request asks for, and amounts such as 20M, 5ms and 93% as text."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from anytime_lct.errors import BudgetError
from anytime_lct.exits.tasks import METRICS, MetricName
from anytime_lct.exits.thresholds import Measure, Thresholds

Mode = Literal["anytime", "fixed"]
StopReason = Literal["budget", "confident", "deadline", "load", "last"]
"""Why no deeper exit answered: the budget's exit was reached, every sample was confident enough, the deadline was near,
other requests waited, or no deeper exit is better."""

COUNT_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
SECOND_UNITS = {"us": Decimal("1e-6"), "ms": Decimal("1e-3"), "s": Decimal(1)}
POINT_UNITS = ("%", "point", "points", "pp")
_AMOUNT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)((?:[eE][+-]?\d{1,3})?)\s*([A-Za-z%µ]*)")


@dataclass(frozen=True)
class Share:
    """A share of the main network's multiply-adds; above 1 for more than it costs. Raises BudgetError."""

    of_main: float

    def __post_init__(self) -> None:
        check_positive(self.of_main, "a share of the main network's flops")


Flops = float | Share
"""Multiply-adds for one sample, or the share of the main network's that they are."""


@dataclass(frozen=True)
class Budget:
    """Upper bounds on a sub-model, for one sample: multiply-adds, parameters, seconds, and the deepest exit.

    None is no bound. Raises BudgetError for a bound that is not a positive finite number.

    >>> Budget(flops=parse_count("20M"), latency=parse_seconds("5ms"))
    Budget(flops=20000000.0, params=None, latency=0.005, exit=None)
    """

    flops: Flops | None = None
    params: float | None = None
    latency: float | None = None
    exit: int | None = None

    def __post_init__(self) -> None:
        for name, bound in (("flops", self.flops), ("params", self.params), ("latency", self.latency)):
            if bound is not None and not isinstance(bound, Share):
                check_positive(bound, f"a budget of {name}")
        if self.exit is not None and (type(self.exit) is not int or self.exit < 1):
            raise BudgetError(
                f"Expected the deepest exit as a whole number from 1 on, got {self.exit!r}; exits count from 1."
            )

    @property
    def names_exit(self) -> bool:
        """Whether the budget bounds the exit alone."""
        return self.exit is not None and self.flops is self.params is self.latency is None


UNLIMITED = Budget()  # no bounds


@dataclass(frozen=True)
class Ask:
    """What a request asks for: what its answer may cost, when it is due, and when a sample may stop early.

    `budget` bounds the exit. `timeout` is the time in seconds from the request's arrival until its answer is due. A
    sample stops early in one way at most: at the first exit whose confidence, by `measure`, is at least
    `min_confidence`, of (0, 1], and else at the deepest in the budget; by a `rule`; or by the bundle's rule for a mean
    cost of `mean_flops` over many requests. In the mode "fixed" the exit that the budget names answers, whatever the
    load. Raises BudgetError.

    >>> Ask(Budget(flops=20e6), timeout=0.02).mode
    'anytime'
    """

    budget: Budget = UNLIMITED
    timeout: float | None = None
    min_confidence: float | None = None
    measure: Measure = "max-probability"
    mean_flops: Flops | None = None
    rule: Thresholds | None = None
    mode: Mode = "anytime"

    def __post_init__(self) -> None:
        if self.timeout is not None:
            check_positive(self.timeout, "a timeout in seconds")
        if self.mean_flops is not None and not isinstance(self.mean_flops, Share):
            check_positive(self.mean_flops, "a mean budget")
        if self.min_confidence is not None:
            check_confidence(self.min_confidence)
        is_set = {
            "'min_confidence'": self.min_confidence is not None,
            "'mean_flops'": self.mean_flops is not None,
            "a rule": self.rule is not None,
            'the mode "fixed", which goes to one exit': self.mode == "fixed",
        }
        ways = [way for way, is_chosen in is_set.items() if is_chosen]
        if len(ways) > 1:
            raise BudgetError(f"Expected one way to stop, got both {' and '.join(ways)}; leave one out.")


DEFAULT_ASK = Ask()  # no bounds, no deadline, no early stop


def check_confidence(number: object) -> None:
    """Raise BudgetError unless `number` is above 0 and at most 1."""
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number <= 1:
        raise BudgetError(f"Expected a confidence above 0 and up to 1, got {number!r}; give another.")


def check_positive(number: object, what: str) -> None:
    """Raise BudgetError, which names the number by `what`, unless it is a positive finite number."""
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < math.inf:
        raise BudgetError(f"Expected {what} that is a positive finite number, got {number!r}; give another.")


def parse_count(text: str) -> float:
    """Read a count such as "20M", "1.5k", "2G" (or "2B"), "1T", "3e6" or "250000"; raises BudgetError.

    >>> parse_count("20M")
    20000000.0
    """
    number, unit = _split(text, "a count like 20M, 1.5G or 250000")
    scale = COUNT_UNITS.get(unit if unit in COUNT_UNITS else unit.swapcase())
    if scale is None:
        raise BudgetError(f"Expected a count like 20M, 1.5G or 250000, got '{text}'; its unit is one of k, M, G, B, T.")
    return _positive(number * scale, text)


def parse_flops(text: str) -> Flops:
    """Read multiply-adds, such as "20M", or a share of the main network's, "70%" or "0.7"; raises BudgetError.

    A plain number below 1 is a share, one above 1 a count.

    >>> parse_flops("70%")
    Share(of_main=0.7)
    """
    number, unit = _split(text, "multiply-adds like 20M, or a share of the main network's like 70%")
    if unit == "%":
        return Share(_positive(number / 100, text))
    if unit or number > 1:
        return parse_count(text)
    if number == 1:
        raise BudgetError(
            f"Expected multiply-adds like 20M, or a share of the main network's like 70%, got '{text}', which could be "
            f"either; write 100% for all of them."
        )
    return Share(_positive(number, text))


def in_flops(amount: Flops, main: float) -> float:
    """Return an amount in multiply-adds, where the main network costs `main`.

    >>> in_flops(Share(0.5), 40e6)
    20000000.0
    """
    return amount.of_main * main if isinstance(amount, Share) else amount


def parse_seconds(text: str) -> float:
    """Read a time such as "800us", "5ms" or "0.1s" into seconds; raises BudgetError, for a missing unit too.

    >>> parse_seconds("5ms")
    0.005
    """
    number, unit = _split(text, "a time like 5ms")
    scale = SECOND_UNITS.get(unit.lower().replace("µ", "u"))
    if scale is None:
        raise BudgetError(f"Expected a time like 800us, 5ms or 0.1s, got '{text}'; its unit is one of us, ms, s.")
    return _positive(number * scale, text)


def parse_quality(text: str) -> float:
    """Read an accuracy, "0.93", "93%" or "93", into a fraction of 0 to 1; raises BudgetError.

    >>> parse_quality("93%")
    0.93
    """
    number, unit = _split(text, "an accuracy like 0.93 or 93%")
    value = float(number / 100 if unit == "%" or number > 1 else number)
    if unit not in ("", "%") or value > 1.0:
        raise BudgetError(
            f"Expected an accuracy like 0.93 or 93%, got '{text}'; give a fraction up to 1 or a percentage."
        )
    return value


def parse_drop(text: str, metric: MetricName) -> float:
    """Read how far an exit may be below the best into percentage points of accuracy, BPC, or RMSE.

    Points of accuracy are "1%", "1 point" or "1", or the fraction "0.01"; from "0.1" up to below "1" it could be a
    fraction or points, and needs the unit. Raises BudgetError.

    >>> parse_drop("0.01", "accuracy")
    1.0
    """
    if not METRICS[metric].of_hits:
        expected = f"{METRICS[metric].amount} like 0.05"
        number, unit = _split(text, expected)
        if unit.lower() not in ("", metric):
            raise BudgetError(f"Expected {expected}, got '{text}'; leave the unit out.")
        return float(number)
    expected = "a drop of accuracy like 1%, 1 point or 0.01"
    number, unit = _split(text, expected)
    if unit not in ("", *POINT_UNITS):
        raise BudgetError(f"Expected {expected}, got '{text}'; its unit is % or points.")
    if not unit and Decimal("0.1") <= number < 1:
        few, many = float(number), float(100 * number)
        raise BudgetError(
            f"Expected {expected}, got '{text}', which could be {few:g} points or {many:g}; write {few:g}% or "
            f"{many:g}%."
        )
    return float(number if unit or number >= 1 else 100 * number)


def show_count(count: float) -> str:
    """Format a count with four digits and its unit.

    >>> show_count(40_812_345)
    '40.81M'
    """
    for unit in ("T", "G", "M", "k"):
        if count >= COUNT_UNITS[unit]:
            return f"{count / COUNT_UNITS[unit]:.4g}{unit}"
    return f"{count:.4g}"


def show_seconds(seconds: float) -> str:
    """Format a time in the unit that suits it.

    >>> show_seconds(0.00512)
    '5.12ms'
    """
    unit = "s" if seconds >= 1 else "ms" if seconds >= 1e-3 else "us"
    return f"{seconds / float(SECOND_UNITS[unit]):.4g}{unit}"


def _split(text: str, expected: str) -> tuple[Decimal, str]:
    # Decimal, so that 1.1M is 1100000 and 93.1% is 0.931 to the bit.
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        raise BudgetError(f"Expected {expected}, got '{text}'; write a plain number with its unit.")
    return Decimal(match[1] + match[2]), match[3]


def _positive(number: Decimal, text: str) -> float:
    value = float(number)
    check_positive(value, f"an amount in '{text}'")
    return value
