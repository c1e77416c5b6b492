"""The parameters of a request, read as an Ask, and those of a response, written from its reply.

timeout         whole microseconds from arrival, or a time like "20ms": the deadline; 0 is none
max_flops       multiply-adds for one sample: a number, a count like "20M", or a share of the main network's like "70%"
max_params      parameters of the sub-model: a number, or a count like "10M"
max_exit        go no deeper than this exit
max_latency     time of the exit on this machine for one sample: seconds, or a time like "5ms"
min_confidence  stop at the first exit whose confidence is at least this, (0, 1]
measure         of confidence: "max-probability", "margin" or "entropy"
mean_flops      stop by the bundle's rule for this mean of multiply-adds over many requests
mode            "anytime", or "fixed": the exit that the budget names, whatever the load
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast, get_args

from anytime_lct.errors import BudgetError
from anytime_lct.exits.budget import (
    Ask,
    Budget,
    Flops,
    Mode,
    check_confidence,
    check_positive,
    parse_count,
    parse_flops,
    parse_seconds,
)
from anytime_lct.exits.thresholds import MEASURES
from anytime_lct.serving.request import Refusal, Reply, show

# Clients send these by default; they change no answer here.
HARMLESS = frozenset({"binary_data_output", "priority", "content_type"})
UNSUPPORTED = frozenset({"sequence_id", "sequence_start", "sequence_end"})
MODES: tuple[Mode, ...] = get_args(Mode)
MAX_TEXT = 40
MAX_NUMBER = 1 << 63
LONGEST_TIMEOUT = 86_400.0


def read_ask(parameters: dict[str, Any], default: Ask) -> Ask:
    """Read a request's parameters; those that it leaves out are as in `default`. Raises Refusal, which names the key.

    >>> read_ask({"timeout": 20000, "max_flops": "20M"}, Ask()).timeout
    0.02
    """
    if not parameters.keys() - HARMLESS:
        return default
    values: dict[str, Any] = {}
    for key, value in parameters.items():
        if key == "timeout" and type(value) is int and value == 0:
            continue  # clients send 0 where there is no timeout
        if key in READERS:
            values[key] = _read(key, value)
        elif key in UNSUPPORTED:
            if value:  # clients send 0 or false where there is no sequence
                raise Refusal(f"Expected single requests, got '{key}': sequences are not supported; leave it out.")
        elif key not in HARMLESS:
            raise Refusal(f"Expected parameters among {', '.join(READERS)}, got '{show(key)[1:-1]}'; leave it out.")
    bounds = default.budget
    budget = Budget(
        flops=values.get("max_flops", bounds.flops),
        params=values.get("max_params", bounds.params),
        latency=values.get("max_latency", bounds.latency),
        exit=values.get("max_exit", bounds.exit),
    )
    others = ("timeout", "min_confidence", "measure", "mean_flops", "mode")
    try:
        ask = Ask(budget, **{key: values.get(key, getattr(default, key)) for key in others})
    except BudgetError as error:
        raise Refusal(str(error)) from None
    if "measure" in values and ask.min_confidence is None:
        raise Refusal("Expected 'measure' beside 'min_confidence', got it alone; add that or leave it out.")
    return ask


def reply_parameters(reply: Reply, ask: Ask, seconds: float) -> dict[str, Any]:
    """Return the parameters of a response, `seconds` after its request arrived."""
    parameters: dict[str, Any] = {
        "exit": reply.answer.exit,
        "exits_run": reply.answer.exits_run,
        "stopped": reply.answer.stopped,
        "flops": reply.answer.flops,
        "server_us": round(seconds * 1e6),
    }
    if ask.timeout is not None:
        parameters["on_time"] = seconds <= ask.timeout
    return parameters


def _read(key: str, value: object) -> object:
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise Refusal(f"The parameter '{key}': Expected a short text like 20M or 5ms, got {show(value)}.")
    if type(value) is int and abs(value) >= MAX_NUMBER:
        raise Refusal(f"The parameter '{key}': Expected a number of 64 bits, got {show(value)}.")
    try:
        return READERS[key](value)
    except (BudgetError, OverflowError) as error:
        raise Refusal(f"The parameter '{key}': {str(error)[:300]}") from None


def _timeout(value: object) -> float:
    if not isinstance(value, str) and (type(value) is not int or value < 1):
        raise BudgetError(f"Expected whole microseconds, or a time like 20ms, got {show(value)}.")
    seconds = parse_seconds(value) if isinstance(value, str) else value / 1e6
    if seconds > LONGEST_TIMEOUT:
        raise BudgetError(f"Expected at most {LONGEST_TIMEOUT:g} seconds, got {show(value)}; leave it out for none.")
    return seconds


def _count(value: object) -> float:
    if isinstance(value, str):
        return parse_count(value)
    check_positive(value, "a count")
    return float(cast(float, value))


def _flops(value: object) -> Flops:
    if isinstance(value, str):
        return parse_flops(value)
    check_positive(value, "multiply-adds")
    return parse_flops(repr(value))


def _exit(value: object) -> int:
    if type(value) is not int or value < 1:
        raise BudgetError(f"Expected the deepest exit as a whole number from 1 on, got {show(value)}.")
    return value


def _confidence(value: object) -> float:
    check_confidence(value)
    return float(cast(float, value))


def _seconds(value: object) -> float:
    if isinstance(value, str):
        return parse_seconds(value)
    check_positive(value, "a time in seconds")
    return float(cast(float, value))


def _measure(value: object) -> str:
    if value not in MEASURES:
        raise BudgetError(f"Expected one of {', '.join(MEASURES)}, got {show(value)}.")
    return cast(str, value)


def _mode(value: object) -> str:
    if value not in MODES:
        raise BudgetError(f'Expected "anytime" or "fixed", got {show(value)}.')
    return cast(str, value)


READERS: dict[str, Callable[[object], object]] = {
    "timeout": _timeout,
    "max_flops": _flops,
    "max_params": _count,
    "max_exit": _exit,
    "max_latency": _seconds,
    "min_confidence": _confidence,
    "measure": _measure,
    "mean_flops": _flops,
    "mode": _mode,
}
