"""The best sub-model under a budget, the cheapest above a floor, and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from anytime_lct.errors import BudgetError, NothingFitsError
from anytime_lct.exits.budget import Budget, in_flops, show_count, show_seconds
from anytime_lct.exits.profile import Cost, Profile, Quality
from anytime_lct.exits.tasks import METRICS

SIGNIFICANCE = 0.05
# A drop of 0.5 points is 0.5 points, though 0.95 - 0.945 is a little more in floating point.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Selection:
    """The chosen exit, its sub-model's cost, its quality on the choosing split, and why it was chosen."""

    exit: int
    cost: Cost
    quality: Quality
    reason: str


def select(
    profile: Profile,
    budget: Budget | None = None,
    *,
    min_accuracy: float | None = None,
    max_bpc: float | None = None,
    max_rmse: float | None = None,
    max_drop: float | None = None,
    within_noise: bool = False,
    exits: Iterable[int] | None = None,
) -> Selection:
    """Choose an exit by its quality on `profile.split`; several conditions must all hold.

    Budget alone: the most accurate exit that fits. With a floor (`min_accuracy`; `max_bpc`;
    `max_rmse`; `max_drop` below the best of all exits, in percentage points of accuracy, in BPC or in RMSE): the
    cheapest that reaches it. With `within_noise`: the cheapest that is not significantly worse than the best one that
    fits. Cheaper means fewer FLOPs, then fewer parameters, then a lower index; an exit without a latency fits no
    latency budget. `exits` limits the choice to these.

    Raises NothingFitsError, and BudgetError for a condition that the profile cannot judge.

    >>> select(profile, Budget(flops=20e6)).exit  # doctest: +SKIP
    2
    """
    budget = budget or Budget()
    wanted: dict[str, float | None] = {
        "min_accuracy": min_accuracy, "max_bpc": max_bpc, "max_rmse": max_rmse, "max_drop": max_drop,
    }  # fmt: skip
    floors = _floors(profile, {name: number for name, number in wanted.items() if number is not None})
    allowed = _allowed(profile, exits)
    bounds = _bounds(profile, budget, allowed)
    affordable = fitting(profile, budget, exits)
    best = min(affordable, key=lambda i: (-profile.merit(i), *_price(profile, i)))
    reaching = [i for i in affordable if all(profile.merit(i) >= floor for floor, _ in floors)]
    if not reaching:
        raise _nothing_reaches(profile, floors, bounds, allowed, best)
    if within_noise:
        row = [p[best - 1] for p in profile.p_worse]
        reaching = [i for i in reaching if i == best or row[i - 1] >= SIGNIFICANCE]
    cheapest = bool(floors) or within_noise
    exit = min(reaching, key=lambda i: _price(profile, i)) if cheapest else best
    conditions = [condition for _, condition in floors]
    if within_noise:
        conditions.append(f"is not significantly worse than exit {best} (p >= {SIGNIFICANCE})")
    reason = _reason(profile, cheapest, conditions, bounds)
    return Selection(exit, profile.cost(exit), profile.quality(exit), reason)


def fitting(profile: Profile, budget: Budget, exits: Iterable[int] | None = None) -> list[int]:
    """Return the exits that fit a budget, by rising index; raises NothingFitsError and BudgetError.

    >>> fitting(profile, Budget(flops=20e6))  # doctest: +SKIP
    [1, 2]
    """
    allowed = _allowed(profile, exits)
    bounds = _bounds(profile, budget, allowed)
    affordable = [i for i in allowed if all(need(i) <= limit for _, limit, need, _ in bounds)]
    if not affordable:
        raise _nothing_fits(profile, bounds, allowed)
    return affordable


def pareto_front(profile: Profile) -> tuple[int, ...]:
    """Return the exits that no other beats in FLOPs and quality, by rising FLOPs: all that FLOPs budgets choose."""
    front: list[int] = []
    cheapest_first = sorted(
        range(1, profile.num_groups + 1),
        key=lambda i: (profile.cost(i).flops, -profile.merit(i), *_price(profile, i)),
    )
    for i in cheapest_first:
        if not front or profile.merit(i) > profile.merit(front[-1]):
            front.append(i)
    return tuple(front)


def show_quality(profile: Profile, value: float) -> str:
    """Format a metric's value for people.

    >>> show_quality(profile, 0.9312)  # doctest: +SKIP
    '93.12%'
    """
    return profile.row.show_with_unit(value)


# A bound: its name, its limit, what an exit needs of it, and how amounts are formatted.
Bound = tuple[str, float, Callable[[int], float], Callable[[float], str]]
# A condition: the lowest merit (Profile.merit) that is allowed, and the words for it.
Condition = tuple[float, str]


def _price(profile: Profile, i: int) -> tuple[int, int, int]:
    cost = profile.cost(i)
    return cost.flops, cost.params, i


def _allowed(profile: Profile, exits: Iterable[int] | None) -> list[int]:
    indices = range(1, profile.num_groups + 1)
    allowed = list(indices) if exits is None else sorted(set(exits))
    if not allowed or not set(allowed) <= set(indices):
        raise BudgetError(f"Expected exits to choose from among 1 to {profile.num_groups}, got {allowed}; name others.")
    return allowed


def _bounds(profile: Profile, budget: Budget, allowed: list[int]) -> list[Bound]:
    def seconds(i: int) -> float:
        latency = profile.exits[i - 1].latency
        return math.inf if latency is None else latency.seconds

    bounds: list[Bound] = []
    if budget.flops is not None:
        flops = in_flops(budget.flops, profile.cost(profile.num_groups).flops)
        bounds.append(("FLOPs", flops, lambda i: profile.cost(i).flops, show_count))
    if budget.params is not None:
        bounds.append(("parameters", budget.params, lambda i: profile.cost(i).params, show_count))
    if budget.latency is not None:
        if all(math.isinf(seconds(i)) for i in allowed):
            raise BudgetError(
                "Expected a profile with latencies for a latency budget, got one without; measure them with: "
                "anytime-lct analyze RUN, or anytime-lct export RUN."
            )
        bounds.append(("latency", budget.latency, seconds, show_seconds))
    if budget.exit is not None:
        bounds.append(("depth", budget.exit, float, lambda i: f"exit {i:.0f}"))
    return bounds


def _floors(profile: Profile, conditions: Mapping[str, float]) -> list[Condition]:
    for name, number in conditions.items():
        if not (math.isfinite(number) and number >= 0):
            raise BudgetError(f"Expected {name} as a finite number of at least 0, got {number!r}; give another.")
    metric = profile.row
    others = [other.floor for other in METRICS.values() if other is not metric and other.floor in conditions]
    if others:
        raise BudgetError(
            f"Expected a condition on {profile.metric}, which this profile holds, got {others[0]}; use {metric.floor} "
            f"or max_drop."
        )
    floors: list[Condition] = []
    if (floor := conditions.get(metric.floor)) is not None:
        if metric.of_hits and floor > 1:
            raise BudgetError(f"Expected {metric.floor} as a fraction of 0 to 1, got {floor}; 93% is 0.93.")
        floors.append((metric.merit(floor), f"reaches {show_quality(profile, floor)}"))
    if (max_drop := conditions.get("max_drop")) is not None:
        best = max(range(1, profile.num_groups + 1), key=profile.merit)
        unit = "point" if metric.points == "points" and max_drop == 1 else metric.points
        lowest = profile.merit(best) - max_drop / metric.scale - ROUNDING
        floors.append((lowest, f"stays within {max_drop:g} {unit} of exit {best}"))
    return floors


def _reason(profile: Profile, cheapest: bool, conditions: list[str], bounds: list[Bound]) -> str:
    all_conditions = " and ".join(conditions + [f"fits {limit}" for limit in _limits(bounds)])
    if not all_conditions:
        return f"the most accurate exit on the {profile.split} split"
    return f"the {'cheapest' if cheapest else 'most accurate'} exit on the {profile.split} split that {all_conditions}"


def _limits(bounds: list[Bound]) -> list[str]:
    return [
        f"a depth of {show(limit)}" if name == "depth" else f"{show(limit)} {name}" for name, limit, _, show in bounds
    ]


def _nothing_fits(profile: Profile, bounds: list[Bound], allowed: list[int]) -> NothingFitsError:
    """Name, for every bound, the exit that needs the least of it."""
    nearest: dict[str, int] = {}
    for name, _, need, show in bounds:
        least = min(allowed, key=lambda i: (need(i), *_price(profile, i)))
        reason = "is the first" if name == "depth" else f"needs the least with {show(need(least))} {name}"
        nearest[f"exit {least} {reason} ({_quality(profile, least)})"] = least
    message = f"No exit fits {' and '.join(_limits(bounds))}; {', and '.join(nearest)}."
    return NothingFitsError(message, _rows(profile, nearest.values()))


def _nothing_reaches(
    profile: Profile, floors: list[Condition], bounds: list[Bound], allowed: list[int], best: int
) -> NothingFitsError:
    """Name the best exit that fits, and the cheapest one that a larger budget would allow."""
    subject = f"No exit that fits {' and '.join(_limits(bounds))}" if bounds else "No exit"
    conditions = " and ".join(condition for _, condition in floors)
    nearest, exits = f"the best is exit {best} with {_quality(profile, best)}", [best]
    reaching = [i for i in allowed if all(profile.merit(i) >= floor for floor, _ in floors)]
    if reaching:
        cheapest = min(reaching, key=lambda i: _price(profile, i))
        cost = profile.cost(cheapest)
        needs = f"{show_count(cost.flops)} FLOPs and {show_count(cost.params)} parameters"
        nearest += f", and exit {cheapest} reaches it with {needs}"
        exits.append(cheapest)
    return NothingFitsError(f"{subject} {conditions}; {nearest}.", _rows(profile, exits))


def _rows(profile: Profile, exits: Iterable[int]) -> list[dict[str, float]]:
    """Return exits as plain values: index, cost, and quality on the choosing split."""
    return [
        {
            "exit": i,
            "flops": profile.cost(i).flops,
            "params": profile.cost(i).params,
            "quality": profile.quality(i).value,
        }
        for i in dict.fromkeys(exits)
    ]


def _quality(profile: Profile, i: int) -> str:
    return f"{profile.split} {profile.metric} {show_quality(profile, profile.quality(i).value)}"
