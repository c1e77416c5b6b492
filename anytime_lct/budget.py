"""Budgets: upper bounds on what an answer may cost, and reading them from text."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from anytime_lct.errors import BudgetError

COUNTS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


@dataclass(frozen=True)
class Budget:
    """Upper bounds of one answer; what is None is not bounded.

    `flops` are multiply-adds for one sample (one character of a text), `params` weights, `latency` seconds for one
    sample on one thread, `exit` the deepest exit allowed. Raises BudgetError for anything not positive.

    >>> Budget(flops=20e6).flops
    20000000.0
    """

    flops: float | None = None
    params: float | None = None
    latency: float | None = None
    exit: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0 or math.isinf(value):
                raise BudgetError(f"Expected a positive number as the budget of {field.name}, got {value!r}.")
        if self.exit is not None and int(self.exit) != self.exit:
            raise BudgetError(f"Expected a whole number as the deepest exit, got {self.exit!r}.")

    def __str__(self) -> str:
        shown = {"flops": show_count, "params": show_count, "latency": show_seconds, "exit": str}
        told = [(f.name, getattr(self, f.name)) for f in fields(self)]
        return ", ".join(f"{name} <= {shown[name](value)}" for name, value in told if value is not None) or "no budget"


def parse_count(text: str) -> float:
    """Read a count like 20M, 1.3G, 500k or 20000000; raises BudgetError.

    >>> parse_count("20M")
    20000000.0
    """
    return _read(text, COUNTS, "a count like 20M, 1.3G or 500k")


def parse_seconds(text: str) -> float:
    """Read a time like 5ms, 0.2s or 300us; raises BudgetError.

    >>> parse_seconds("5ms")
    0.005
    """
    return _read(text, SECONDS, "a time with its unit like 5ms, 0.2s or 300us")


def parse_accuracy(text: str) -> float:
    """Read an accuracy like 0.93 or 93%; raises BudgetError.

    >>> parse_accuracy("93%")
    0.93
    """
    value = _read(text, {"": 1.0, "%": 0.01}, "an accuracy like 0.93 or 93%")
    if value > 1:
        raise BudgetError(f"Expected an accuracy like 0.93 or 93%, got '{text}', which is above 1.")
    return round(value, 12)


def show_count(count: float) -> str:
    """Write a count with three or four digits and a unit.

    >>> show_count(20_437_000)
    '20.44M'
    """
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= size:
            return f"{count / size:.2f}{unit}" if count / size < 100 else f"{count / size:.1f}{unit}"
    return f"{count:g}"


def show_seconds(seconds: float) -> str:
    """Write a time in its natural unit.

    >>> show_seconds(0.00512)
    '5.12ms'
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.2f}{unit}"
    return f"{seconds / 1e-6:.0f}us"


def _read(text: str, units: dict[str, float], expected: str) -> float:
    stripped = text.strip()
    for unit in sorted(units, key=len, reverse=True):
        if not stripped.endswith(unit):
            continue
        number = stripped[: len(stripped) - len(unit)].strip()
        try:
            value = float(number)
        except ValueError:
            continue
        if value > 0 and math.isfinite(value):
            return value * units[unit] if units[unit] >= 1 else value / round(1 / units[unit])
    raise BudgetError(f"Expected {expected}, got '{text}'.")
