"""Selection agrees with trying everything, whatever the order of costs."""

import random
from itertools import pairwise
from typing import Any

import pytest
from bundles import make_profile

from anytime_lct.errors import BudgetError, NothingFitsError
from anytime_lct.exits.budget import Budget
from anytime_lct.exits.profile import Profile
from anytime_lct.exits.selector import pareto_front, select


def _random_profile(rng: random.Random) -> Profile:
    """Few distinct values, so that ties are common; critics may cost more than the rest of the network."""
    N = rng.randint(1, 5)
    metric = rng.choice(["accuracy", "bpc"])
    values = [rng.choice([0.80, 0.85, 0.90, 0.95]) + (metric == "bpc") for _ in range(N)]
    costs = [[rng.randint(0, 3) for _ in range(n)] for n in (N, N - 1, N, N - 1)]
    return make_profile(
        values, costs[0], costs[1], params=(costs[2], costs[3]), metric=metric,
        seconds=[rng.choice([None, 0.001, 0.002, 0.003]) for _ in range(N)],
        p_worse=[[rng.choice([0.0, 0.049, 0.05, 0.5]) for _ in range(N)] for _ in range(N)],
        test=[rng.choice([0.7, 0.99]) for _ in range(N)], split=rng.choice(["validation", "test"]),
    )  # fmt: skip


def _brute_force(profile: Profile, conditions: dict[str, Any], budget: Budget, exits: list[int] | None) -> int | None:
    """Filter by each condition on its own, then compare every pair by the written order of preference."""
    N = len(profile.groups)
    table = []
    for i in range(N):
        parts = [*profile.groups[: i + 1], *([profile.critics[i]] if i < N - 1 else [])]
        exit = profile.exits[i]
        measurement = exit.test if profile.split == "test" else exit.validation
        assert measurement is not None
        good = measurement.value if profile.metric == "accuracy" else -measurement.value
        seconds = exit.latency.seconds if exit.latency else None
        table.append((i + 1, sum(p.flops for p in parts), sum(p.params for p in parts), seconds, good))
    top = max(row[4] for row in table)
    fitting = []
    for i, flops, params, seconds, good in table:
        if exits is not None and i not in exits:
            continue
        if budget.flops is not None and flops > budget.flops:
            continue
        if budget.params is not None and params > budget.params:
            continue
        if budget.latency is not None and (seconds is None or seconds > budget.latency):
            continue
        if budget.exit is not None and i > budget.exit:
            continue
        fitting.append((i, flops, params, good))
    if not fitting:
        return None

    def first(rows: list[tuple[int, int, int, float]], by_quality: bool) -> tuple[int, int, int, float]:
        best = rows[0]
        for row in rows[1:]:
            if by_quality and row[3] != best[3]:
                best = row if row[3] > best[3] else best
            elif (row[1], row[2], row[0]) < (best[1], best[2], best[0]):
                best = row
        return best

    best = first(fitting, True)
    satisfying = fitting
    if conditions.get("min_accuracy") is not None:
        satisfying = [row for row in satisfying if row[3] >= conditions["min_accuracy"]]
    if conditions.get("max_bpc") is not None:
        satisfying = [row for row in satisfying if -row[3] <= conditions["max_bpc"]]
    if conditions.get("max_drop") is not None:
        scale = 100 if profile.metric == "accuracy" else 1
        satisfying = [row for row in satisfying if scale * (top - row[3]) <= conditions["max_drop"] + 1e-6]
    if conditions.get("within_noise"):
        satisfying = [row for row in satisfying if row is best or profile.p_worse[row[0] - 1][best[0] - 1] >= 0.05]
    return first(satisfying, by_quality=not any(conditions.values()))[0] if satisfying else None


def test_agrees_with_brute_force() -> None:
    rng = random.Random(0)
    outcomes: set[int | None] = set()
    for _ in range(4000):
        profile = _random_profile(rng)
        N = profile.num_groups
        exits = sorted(rng.sample(range(1, N + 1), rng.randint(1, N))) if rng.random() < 0.4 else None
        timed = any(profile.exits[i - 1].latency for i in exits or range(1, N + 1))

        def maybe(values: list, rng: random.Random = rng) -> Any:
            return rng.choice(values) if rng.random() < 0.4 else None

        budget = Budget(
            flops=maybe([1, 3, 5, 8]), params=maybe([1, 3, 5, 8]), exit=maybe([1, 2, 3, 9]),
            latency=maybe([0.001, 0.002]) if timed else None,
        )  # fmt: skip
        drops = [0.0, 5.0, 10.0] if profile.metric == "accuracy" else [0.0, 0.05, 0.1]
        floor = ("min_accuracy", [0.8, 0.9, 0.95, 0.99]) if profile.metric == "accuracy" else ("max_bpc", [1.8, 1.9])
        wishes = {floor[0]: maybe(floor[1]), "max_drop": maybe(drops), "within_noise": rng.random() < 0.3}
        # A drop of 0 is asked for, though the number is falsy.
        conditions = {key: value for key, value in wishes.items() if value is not None and value is not False}
        expected = _brute_force(profile, {key: value or 1e-12 for key, value in conditions.items()}, budget, exits)
        try:
            choice = select(profile, budget, exits=exits, **conditions)
            assert (choice.cost, choice.quality) == (profile.cost(choice.exit), profile.quality(choice.exit))
            index = choice.exit
        except NothingFitsError:
            index = None
        assert index == expected, (profile, budget, conditions, exits)
        outcomes.add(index)
    assert outcomes == {None, 1, 2, 3, 4, 5}


def test_front_is_what_budgets_of_flops_choose() -> None:
    rng = random.Random(1)
    for _ in range(500):
        profile = _random_profile(rng)
        every = {profile.cost(i).flops for i in range(1, profile.num_groups + 1)} - {0}
        front = pareto_front(profile)
        selected = {select(profile, Budget(flops=flops)).exit for flops in every}
        free = {i for i in front if profile.cost(i).flops == 0}
        assert selected - free == set(front) - free
        for a, b in pairwise(front):
            assert profile.cost(a).flops < profile.cost(b).flops and profile.merit(a) < profile.merit(b)


def test_depth_need_not_be_dearer() -> None:
    """Table VIII of the paper: sub-model 2 may be cheaper than sub-model 1, when critic 1 is dear."""
    profile = make_profile((0.9, 0.8, 0.95), (30, 20, 100), (80, 5))
    assert [select(profile, Budget(flops=f)).exit for f in (60, 110, 150)] == [2, 1, 3]
    assert pareto_front(profile) == (2, 1, 3)


def test_a_drop_is_judged_as_written() -> None:
    # 100 * (0.95 - 0.945) is 0.5000000000000004 in floating point.
    assert select(make_profile((0.80, 0.945, 0.95)), max_drop=0.5).exit == 2


def test_reason_says_what_was_asked() -> None:
    reason = select(make_profile(), Budget(flops=120), max_drop=10).reason
    assert reason == (
        "the cheapest exit on the validation split that stays within 10 points of exit 3 and fits 120 FLOPs"
    )
    assert select(make_profile()).reason == "the most accurate exit on the validation split"


def test_nothing_fits_names_the_nearest() -> None:
    with pytest.raises(NothingFitsError) as caught:
        select(make_profile(), Budget(flops=10))
    assert str(caught.value) == (
        "No exit fits 10 FLOPs; exit 1 needs the least with 35 FLOPs (validation accuracy 80.00%)."
    )
    assert caught.value.exit_code == 3
    with pytest.raises(NothingFitsError) as caught:
        select(make_profile(), Budget(flops=120), min_accuracy=0.93)
    assert str(caught.value) == (
        "No exit that fits 120 FLOPs reaches 93.00%; the best is exit 2 with validation accuracy 90.00%, "
        "and exit 3 reaches it with 150 FLOPs and 150 parameters."
    )


@pytest.mark.parametrize(
    ("metric", "asked"),
    [
        ("accuracy", {"max_bpc": 1.9}), ("bpc", {"min_accuracy": 0.9}), ("accuracy", {"min_accuracy": 93.0}),
        ("accuracy", {"min_accuracy": float("nan")}), ("bpc", {"max_drop": -1.0}),
        ("accuracy", {"exits": [4]}),
        ("accuracy", {"exits": []}), ("accuracy", {"budget": Budget(latency=0.1)}),
    ],
)  # fmt: skip
def test_conditions_that_cannot_be_judged(metric: str, asked: dict) -> None:
    with pytest.raises(BudgetError):
        select(make_profile(metric=metric), **asked)


def test_latency_without_latencies_names_the_remedy() -> None:
    with pytest.raises(BudgetError, match="analyze RUN, or anytime-lct export"):
        select(make_profile(), Budget(latency=0.005))
