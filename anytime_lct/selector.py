"""The best sub-model under a budget, and the Pareto front.

Nothing is assumed to grow with depth: where a critic is expensive, a deeper sub-model may be the cheaper one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anytime_lct.budget import Budget, show_count, show_seconds
from anytime_lct.errors import BudgetError, NothingFitsError
from anytime_lct.profile import Cost, Profile, Quality

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Selection:
    """The exit chosen, what its sub-model costs, its quality on the split that chose it, and why."""

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
    max_drop: float | None = None,
    within_noise: bool = False,
    exits: Sequence[int] | None = None,
) -> Selection:
    """Choose among a profile's exits (or those of `exits`); every condition given must hold.

    With a budget only: the most accurate exit that fits, the cheapest of equals. With a floor, the cheapest that
    reaches it: `min_accuracy` (a share) or `max_bpc`; `max_drop` against the best of all exits, in percentage points of
    accuracy or in BPC; `within_noise`, exits whose loss against the best one that fits is not significant at 5%.
    Cheapest means fewest multiply-adds, then fewest weights, then the shallowest. Raises NothingFitsError.
    """
    budget = budget or Budget()
    _check(profile, budget, min_accuracy, max_bpc, max_drop)
    offered = list(exits) if exits is not None else list(range(1, profile.num_groups + 1))
    best_of_all = _best(profile, offered)
    fitting = [i for i in offered if fits(profile, i, budget)]
    wanted: list[str] = []
    reaching = list(fitting)
    if min_accuracy is not None or max_bpc is not None:
        floor = min_accuracy if min_accuracy is not None else max_bpc
        assert floor is not None
        wanted.append(f"{profile.metric} {'at least' if min_accuracy is not None else 'at most'} {_show(profile, floor)}")
        reaching = [i for i in reaching if not profile.better(floor, profile.quality(i).value)]
    if max_drop is not None:
        wanted.append(f"at most {max_drop:g} {'points' if profile.metric == 'accuracy' else 'BPC'} below exit {best_of_all}")
        reaching = [i for i in reaching if _drop(profile, i, best_of_all) <= max_drop + 1e-9]
    if within_noise and fitting:
        best = _best(profile, fitting)
        wanted.append(f"not significantly worse than exit {best}")
        reaching = [i for i in reaching if i == best or profile.p_worse[i - 1][best - 1] >= SIGNIFICANCE]
    if not reaching:
        raise NothingFitsError(_alternatives(profile, budget, wanted, offered, fitting))
    chosen = min(reaching, key=lambda i: _price(profile, i)) if wanted else _best(profile, reaching)
    what = f"the cheapest with {' and '.join(wanted)}" if wanted else f"the best {profile.metric}"
    reason = f"{what}, among {len(reaching)} of {len(offered)} exits that fit ({budget})"
    return Selection(chosen, profile.cost(chosen), profile.quality(chosen), reason)


def fits(profile: Profile, i: int, budget: Budget) -> bool:
    """Tell whether sub-model i stays within a budget."""
    cost, latency = profile.cost(i), profile.exits[i - 1].latency
    return (
        (budget.flops is None or cost.flops <= budget.flops)
        and (budget.params is None or cost.params <= budget.params)
        and (budget.latency is None or (latency is not None and latency.seconds <= budget.latency))
        and (budget.exit is None or i <= budget.exit)
    )


def pareto_front(profile: Profile) -> tuple[int, ...]:
    """Return the exits that no other exit beats or equals in both test quality and multiply-adds, cheapest first."""
    order = sorted(range(1, profile.num_groups + 1), key=lambda i: (profile.cost(i).flops, _worth(profile, i), i))
    front: list[int] = []
    for i in order:
        if not front or profile.better(profile.exits[i - 1].test.value, profile.exits[front[-1] - 1].test.value):
            front.append(i)
    return tuple(front)


def _worth(profile: Profile, i: int) -> float:
    value = profile.exits[i - 1].test.value
    return -value if profile.metric == "accuracy" else value


def _price(profile: Profile, i: int) -> tuple[int, int, int]:
    cost = profile.cost(i)
    return cost.flops, cost.params, i


def _best(profile: Profile, exits: Sequence[int]) -> int:
    sign = -1 if profile.metric == "accuracy" else 1
    return min(exits, key=lambda i: (sign * profile.quality(i).value, *_price(profile, i)))


def _drop(profile: Profile, i: int, best: int) -> float:
    difference = profile.quality(best).value - profile.quality(i).value
    return 100 * difference if profile.metric == "accuracy" else -difference


def _check(
    profile: Profile, budget: Budget, min_accuracy: float | None, max_bpc: float | None, max_drop: float | None
) -> None:
    if min_accuracy is not None and profile.metric != "accuracy":
        raise BudgetError("Expected a floor in bits per character for a language model, got an accuracy; use --max-bpc.")
    if max_bpc is not None and profile.metric != "bpc":
        raise BudgetError("Expected a floor in accuracy for a classifier, got bits per character; use --min-accuracy.")
    if max_drop is not None and not max_drop >= 0:
        raise BudgetError(f"Expected a drop of at least 0, got {max_drop}.")
    if budget.latency is not None and all(e.latency is None for e in profile.exits):
        raise BudgetError(
            "Expected measured latencies for a latency budget, but the profile has none; run anytime-lct analyze or export."
        )


def _alternatives(
    profile: Profile, budget: Budget, wanted: list[str], offered: Sequence[int], fitting: Sequence[int]
) -> str:
    """Say what comes nearest: the cheapest exit, and the best quality within reach."""
    asked = " and ".join([*([str(budget)] if budget != Budget() else []), *wanted])
    cheapest = min(offered, key=lambda i: _price(profile, i))
    cost, latency = profile.cost(cheapest), profile.exits[cheapest - 1].latency
    price = f"{show_count(cost.flops)} FLOPs and {show_count(cost.params)} parameters"
    price += f" and {show_seconds(latency.seconds)}" if latency else ""
    message = f"No sub-model has {asked}; the cheapest is exit {cheapest} with {price}"
    if fitting:
        best = _best(profile, fitting)
        message += f", the best that fits the budget is exit {best} with {profile.metric} {_show(profile, profile.quality(best).value)}"
    best = _best(profile, offered)
    return (
        message + f", the best of all is exit {best} with {profile.metric} {_show(profile, profile.quality(best).value)} "
        f"at {show_count(profile.cost(best).flops)} FLOPs."
    )


def _show(profile: Profile, value: float) -> str:
    return f"{100 * value:.2f}%" if profile.metric == "accuracy" else f"{value:.3f}"
